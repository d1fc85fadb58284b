from pathlib import Path

import pytest

from xds_server.docs import PAGES, declared, exposed_name
from xds_server.observability import Metrics

DOCS = Path(__file__).parent.parent.parent / "docs"
UNITS = (
    "_seconds",
    "_ms",
    "_bytes",
    "_ratio",
    "_rps",
    "_share",
    "_usd_per_million",
    "_total",
    "_info",
)
COUNTED = {  # gauges and histograms of things that are simply counted, or have no unit
    "xds_server_streams_open",
    "xds_server_streams_waiting",
    "xds_server_tasks",
    "xds_server_silent_nodes",
    "xds_server_nodes",
    "xds_server_instances",
    "xds_server_registry_pairs",
    "xds_server_registry_leases",
    "xds_server_registry_watchers",
    "xds_server_solver_iterations",
    "xds_server_forecast_z",
    "xds_server_behaviour_breaches",
    "xds_server_history_up",
    "xds_server_config_last_reload_success",
}
METRICS = declared(Metrics())


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name):
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run: make generate"


@pytest.mark.parametrize("metric", METRICS, ids=exposed_name)
def test_every_metric_has_a_prefix_a_unit_and_help(metric):
    name = exposed_name(metric)
    assert name.startswith("xds_server_")
    assert name.endswith(UNITS) or name in COUNTED
    (family,) = metric.describe()
    assert family.documentation.endswith(".")


def test_every_metric_is_an_attribute_of_the_same_name():
    metrics = Metrics()
    for metric in METRICS:
        attribute = exposed_name(metric).removeprefix("xds_server_").removesuffix("_info")
        assert exposed_name(getattr(metrics, attribute)) == exposed_name(metric)


def test_operations_names_every_endpoint_and_metric_that_exists():
    from xds_server.admin.app import ENDPOINTS

    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert [path for path in ENDPOINTS if path not in text] == []
    named = {word.strip("`{(,.;:") for word in text.split() if "xds_server_" in word}
    known = {exposed_name(m) for m in METRICS}
    assert {n.split("`")[0].split("{")[0] for n in named} <= known
