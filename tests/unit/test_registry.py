import math

import numpy as np
import pytest

from xds_server.model.snapshot import Node
from xds_server.model.telemetry import COUNTERS, LATENCY_BUCKETS_MS, LoadReport, SampleBatch
from xds_server.registry.registry import SLOTS, Registry

B = len(LATENCY_BUCKETS_MS)
SERVICES = {"a": "search", "b": "search", "c": "mail"}


def registry(*nodes: str, max_pairs: int = 100) -> Registry:
    made = Registry(SERVICES, slot_s=1.0, load_valid_s=30.0, max_pairs=max_pairs)
    for node in nodes:
        made.node_connected(Node(node, "shop"), 0.0)
    return made


def batch(
    node: str = "n1",
    *providers: str,
    requests: float = 10.0,
    errors: float = 0.0,
    ms: float = 10.0,
    rx_bytes: float = 1000.0,
    active: float = 2.0,
    covered_s: float = 1.0,
) -> SampleBatch:
    names = providers or ("a",)
    hist = np.zeros((len(names), B + 1))
    hist[:, LATENCY_BUCKETS_MS.index(ms)] = requests
    counts = np.tile([requests, errors, rx_bytes, 5.0], (len(names), 1))
    times = np.full(len(names), requests * ms / 1e3)
    return SampleBatch(node, names, covered_s, counts, times, hist, np.full(len(names), active))


def test_batch_columns_are_the_counters() -> None:
    assert COUNTERS == ("requests", "errors", "rx_bytes", "tx_bytes")


def test_a_window_sums_completed_slots_only() -> None:
    reg = registry("n1")
    for requests in (1.0, 2.0, 4.0):
        reg.observe(batch(requests=requests), 0.0)
        reg.roll()
    reg.observe(batch(requests=8.0), 0.5)
    window = reg.window(1.0, 2)
    assert window.requests.tolist() == [6.0]
    assert window.window_s == 2.0
    assert window.covered_s.tolist() == [2.0]
    assert window.latency_sum_s == pytest.approx([0.06])
    assert window.latency_count.tolist() == [6.0]
    assert window.latency_hist.sum() == 6.0
    assert window.rx_bytes.tolist() == [2000.0]
    assert window.tx_bytes.tolist() == [10.0]
    assert window.active.tolist() == [2.0]
    assert window.age_s.tolist() == [0.5]


def test_the_ring_forgets_what_is_older_than_its_slots() -> None:
    reg = registry("n1")
    reg.observe(batch(requests=5.0), 0.0)
    for _ in range(SLOTS - 1):
        reg.roll()
    assert reg.window(0.0, SLOTS).requests.tolist() == [5.0]
    reg.roll()
    assert reg.window(0.0, SLOTS).requests.tolist() == [0.0]


def test_pairs_are_named_by_node_and_provider() -> None:
    reg = registry("n1", "n2")
    reg.observe(batch("n1", "a", "c", requests=1.0), 0.0)
    reg.observe(batch("n2", "c", requests=2.0), 0.0)
    reg.roll()
    window = reg.window(0.0, 1)
    found = {
        (window.nodes[n], window.providers[p]): r
        for n, p, r in zip(
            window.node_row, window.provider_row, window.requests.tolist(), strict=True
        )
    }
    assert found == {("n1", "a"): 1.0, ("n1", "c"): 1.0, ("n2", "c"): 2.0}


def test_a_window_of_nothing_is_empty() -> None:
    window = registry("n1").window(0.0, 5)
    assert window.requests.shape == (0,)
    assert window.latency_hist.shape == (0, B + 1)


def test_samples_of_a_node_without_a_stream_are_refused_and_counted() -> None:
    reg = registry()
    reg.observe(batch("stranger"), 0.0)
    reg.observe_load("stranger", [LoadReport("a", 0.5, 0.5, 1.0)], 0.0)
    assert reg.refused == {"no ADS stream": 2}
    assert reg.pairs == 0
    assert math.isnan(reg.provider_load(0.0).utilisation_ratio[0])


def test_a_node_leaves_with_its_last_stream() -> None:
    reg = registry("n1", "n1", "n2")
    reg.observe(batch("n1", "a", "b"), 0.0)
    reg.node_disconnected("n1")
    assert (set(reg.nodes), reg.pairs) == ({"n1", "n2"}, 2)
    reg.node_disconnected("n1")
    assert (set(reg.nodes), reg.pairs) == ({"n2"}, 0)


def test_a_row_that_is_used_again_begins_empty() -> None:
    reg = registry("n1", "n2")
    reg.observe(batch("n1", requests=7.0), 0.0)
    reg.roll()
    reg.node_disconnected("n1")
    reg.observe(batch("n2", requests=1.0), 1.0)
    reg.roll()
    window = reg.window(1.0, 5)
    assert (window.nodes, window.requests.tolist()) == (("n2",), [1.0])
    assert window.latency_hist.sum() == 1.0


def test_new_pairs_beyond_the_bound_are_refused_and_old_ones_are_not_touched() -> None:
    reg = registry("n1", "n2", max_pairs=2)
    reg.observe(batch("n1", "a", "b"), 0.0)
    reg.observe(batch("n2", "a"), 0.0)
    reg.observe(batch("n1", "a", "c"), 0.0)
    reg.roll()
    window = reg.window(0.0, 1)
    assert reg.refused == {"too many pairs": 2}
    assert reg.pairs == 2
    assert sorted(window.requests.tolist()) == [10.0, 20.0]


def test_tables_grow_without_losing_what_they_hold() -> None:
    reg = registry(*(f"n{i}" for i in range(200)), max_pairs=1000)
    for i in range(200):
        reg.observe(batch(f"n{i}", requests=float(i)), 0.0)
    reg.roll()
    assert reg.window(0.0, 1).requests.tolist() == [float(i) for i in range(200)]


def test_a_reload_keeps_the_history_of_providers_that_stay() -> None:
    reg = registry("n1")
    reg.observe(batch("n1", "a", "b"), 0.0)
    reg.observe_load("n1", [LoadReport("b", 0.5, 0.5, 1.0)], 0.0)
    reg.roll()
    reg.set_providers({"a": "search", "d": "mail"}, slot_s=1.0, load_valid_s=30.0)
    window = reg.window(0.0, 1)
    assert (window.providers, window.requests.tolist()) == (("a",), [10.0])
    assert reg.pairs == 1
    assert reg.provider_load(0.0).providers == ("a", "d")


def test_slots_of_another_length_begin_anew_and_keep_the_bound_and_the_count() -> None:
    reg = registry("n1", max_pairs=1)
    reg.observe(batch("n1", "a", "b"), 0.0)
    reg.roll()
    reg.set_providers(SERVICES, slot_s=2.0, load_valid_s=30.0)
    window = reg.window(0.0, 1)
    assert (window.window_s, window.requests.tolist()) == (2.0, [0.0])
    reg.observe(batch("n1", "a", "b"), 0.0)
    assert reg.refused == {"too many pairs": 2}


def test_providers_speak_for_a_while_and_nodes_are_averaged() -> None:
    reg = registry("n1", "n2")
    reg.observe_load("n1", [LoadReport("a", 0.2, math.nan, 1.0)], 0.0)
    reg.observe_load("n2", [LoadReport("a", 0.4, 0.5, 3.0), LoadReport("z", 1, 1, 1)], 10.0)
    load = reg.provider_load(20.0)
    assert load.providers == ("a", "b", "c")
    assert load.utilisation_ratio == pytest.approx([0.3, np.nan, np.nan], nan_ok=True)
    assert load.memory_ratio[0] == 0.5
    assert load.price_per_million_usd[0] == 3.0
    assert load.age_s[0] == 10.0
    assert reg.provider_load(35.0).utilisation_ratio[0] == pytest.approx(0.4)
    assert math.isnan(reg.provider_load(41.0).utilisation_ratio[0])


def test_a_price_holds_until_another_is_said_or_the_node_is_gone() -> None:
    reg = registry("n1")
    reg.observe_load("n1", [LoadReport("a", 0.2, math.nan, 3.0)], 0.0)
    late = reg.provider_load(1000.0)  # hardly anybody calls it any more
    assert math.isnan(late.utilisation_ratio[0])
    assert late.price_per_million_usd[0] == 3.0
    reg.observe_load("n1", [LoadReport("a", 0.2, math.nan, math.nan)], 1001.0)
    assert math.isnan(reg.provider_load(1001.0).price_per_million_usd[0])
    reg.observe_load("n1", [LoadReport("a", 0.2, math.nan, 3.0)], 1002.0)
    reg.node_disconnected("n1")
    assert math.isnan(reg.provider_load(1002.0).price_per_million_usd[0])


def test_what_was_said_to_a_node_leaves_with_it() -> None:
    reg = registry("n1")
    reg.observe_load("n1", [LoadReport("a", 0.2, math.nan, 1.0)], 0.0)
    reg.node_disconnected("n1")
    assert math.isnan(reg.provider_load(0.0).utilisation_ratio[0])


def test_an_instance_is_what_its_sidecar_reports() -> None:
    reg = registry("n0", "n1", "n2")
    for _ in range(5):
        reg.observe(batch("n1", "a", "b", requests=10.0, errors=1.0, rx_bytes=4000.0), 5.0)
        reg.observe(batch("n1", "c", requests=30.0, ms=80.0, rx_bytes=300.0), 5.0)
        reg.observe(batch("n2", "a", requests=1.0, ms=5.0), 5.0)
        reg.roll()
    silent, one, two = reg.signals(6.0)
    assert one.node_id == "n1"
    assert one.age_s == 6.0
    assert one.rps == pytest.approx(50.0)
    assert one.rps_by_service == pytest.approx({"search": 20.0, "mail": 30.0})
    assert one.response_bytes_by_service == pytest.approx({"search": 400.0, "mail": 10.0})
    assert one.error_ratio == pytest.approx(0.04)
    assert 0.056 < one.latency_p95_s <= 0.08
    assert one.telemetry_age_s == 1.0
    assert (two.rps, two.rps_by_service) == (pytest.approx(1.0), pytest.approx({"search": 1.0}))
    assert 0.004 < two.latency_p95_s <= 0.005
    assert (silent.rps, silent.error_ratio, silent.rps_by_service) == (0.0, 0.0, {})
    assert math.isnan(silent.latency_p95_s)
    assert silent.telemetry_age_s == math.inf


def test_failures_that_end_after_their_window_make_no_ratio_above_one() -> None:
    reg = registry("n1")
    reg.observe(batch(requests=1.0, errors=3.0), 0.0)
    reg.roll()
    assert reg.signals(0.0)[0].error_ratio == 1.0


def test_a_registry_without_nodes_has_no_signals() -> None:
    assert registry().signals(0.0) == []


def counted(provider: str, succeeded_rps: float, busy: float = math.nan) -> LoadReport:
    return LoadReport(provider, busy, math.nan, math.nan, succeeded_rps, 1.0, 2.0)


def test_the_rate_behind_a_utilisation_is_that_of_all_nodes() -> None:
    reg = registry("n1", "n2")
    reg.observe_load("n1", [counted("a", 10.0, busy=0.5)], 0.0)
    reg.observe_load("n2", [counted("a", 30.0), counted("b", 5.0)], 0.5)
    load = reg.provider_load(1.0)
    assert load.succeeded_rps is not None
    assert load.failed_rps is not None
    assert load.succeeded_rps[0] == 40.0
    assert load.failed_rps[0] == 2.0
    assert load.ended_count is not None
    assert load.ended_count[0] == 84.0
    assert math.isnan(load.succeeded_rps[1])  # nobody says how busy it was meanwhile


def test_a_rate_is_replaced_by_the_nodes_next_report_even_if_that_is_silent() -> None:
    reg = registry("n1", "n2")
    reg.observe_load("n1", [counted("a", 10.0, busy=0.5)], 0.0)
    reg.observe_load("n2", [counted("a", 30.0)], 0.0)
    reg.observe_load("n2", [], 2.0)
    load = reg.provider_load(3.0)
    assert load.succeeded_rps is not None
    assert load.succeeded_rps[0] == 10.0
    assert load.utilisation_ratio[0] == 0.5


@pytest.mark.parametrize("ends", ["disconnected", "silent for too long"])
def test_the_rates_of_a_node_that_is_gone_do_not_count(ends: str) -> None:
    reg = registry("n1", "n2")
    reg.observe_load("n2", [counted("a", 30.0)], 0.0)
    reg.observe_load("n1", [counted("a", 10.0, busy=0.5)], 20.0)
    if ends == "disconnected":
        reg.node_disconnected("n2")
    load = reg.provider_load(25.0 if ends == "disconnected" else 31.0)
    assert load.succeeded_rps is not None
    assert load.succeeded_rps[0] == 10.0
