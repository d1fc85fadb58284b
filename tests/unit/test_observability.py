import json
import logging

import pytest
import structlog
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from xds_server.model.ids import CDS, GroupKey, Locality, RouteKey
from xds_server.observability import Metrics, RateLimit, configure_logging, type_label

EAST = RouteKey(GroupKey("checkout", "steady", Locality("us-east-1", "a")), "search")
WEST = RouteKey(GroupKey("checkout", "steady", Locality("us-west-2", "b")), "search")


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    root = logging.getLogger()
    chatty = {n: logging.getLogger(n).level for n in ("uvicorn", "watchfiles", "asyncio")}
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in chatty.items():
        logging.getLogger(name).setLevel(was)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _passes(limit: RateLimit, **event: object) -> bool:
    try:
        limit(None, "info", dict(event))
    except structlog.DropEvent:
        return False
    return True


def test_json_lines_have_event_level_and_iso_time_on_stderr(capsys):
    configure_logging("json", "info")
    structlog.get_logger().info("xds.stream_opened", node_id="n1")
    structlog.get_logger().debug("xds.event")

    out, err = capsys.readouterr()
    (line,) = [json.loads(text) for text in err.splitlines()]
    assert out == ""
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "xds.stream_opened", "level": "info", "node_id": "n1"}


def test_an_exception_is_a_structured_traceback(capsys):
    configure_logging("json", "info")
    try:
        int("no")
    except ValueError:
        structlog.get_logger().exception("engine.tick_failed")

    line = json.loads(capsys.readouterr().err)
    (error,) = line["exception"]
    assert (error["exc_type"], error["exc_value"]) == (
        "ValueError",
        "invalid literal for int() with base 10: 'no'",
    )
    assert error["frames"][-1]["name"] == "test_an_exception_is_a_structured_traceback"


def test_the_standard_library_logs_through_the_same_chain(capsys):
    configure_logging("json", "warning")
    logging.getLogger("uvicorn.error").warning("odd %s", "thing")
    logging.getLogger("uvicorn.error").info("started")

    (line,) = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert line["event"] == "odd thing"
    assert line["logger"] == "uvicorn.error"
    assert line["level"] == "warning"


def test_the_console_format_is_for_people(capsys):
    configure_logging("console", "INFO")
    structlog.get_logger().info("xds.stream_opened", node_id="n1")
    assert "xds.stream_opened" in (err := capsys.readouterr().err)
    assert not err.startswith("{")


def test_a_level_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no log level 'loud'"):
        configure_logging("json", "loud")


def test_only_so_many_lines_of_one_event_pass_in_a_period():
    limit = RateLimit(limit=3, period_s=10.0, now_s=_Clock())
    assert [_passes(limit, event="xds.nack") for _ in range(5)] == [True] * 3 + [False] * 2
    assert _passes(limit, event="xds.stream_opened")


def test_what_was_dropped_is_reported_once_after_the_period():
    clock = _Clock()
    limit = RateLimit(limit=1, period_s=10.0, now_s=clock)
    for _ in range(4):
        _passes(limit, event="xds.nack")
    with capture_logs() as logs:
        clock.now = 9.9
        assert _passes(limit, event="other")
        assert logs == []
        clock.now = 10.0
        assert _passes(limit, event="xds.nack")
        clock.now = 40.0
        assert _passes(limit, event="xds.nack")
    assert logs == [
        {"event": "log.dropped", "of": "xds.nack", "dropped": 3, "log_level": "warning"}
    ]


def test_free_texts_of_a_logger_count_together():
    limit = RateLimit(limit=2, period_s=10.0, now_s=_Clock())
    texts = [_passes(limit, event=f"text {i}", logger="uvicorn.error") for i in range(3)]
    assert texts == [True, True, False]


def test_the_table_of_event_names_is_bounded():
    limit = RateLimit(limit=1, period_s=10.0, now_s=_Clock())
    passed = sum(_passes(limit, event=f"e{i}") for i in range(3000))
    assert passed == 1001  # a thousand names, and one line for all others


def test_a_type_that_is_not_served_shares_one_label():
    assert type_label(CDS) == "CDS"
    assert type_label("type.googleapis.com/anything") == "other"


def _text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def _share(metrics: Metrics, route: RouteKey, provider: str) -> None:
    group = route.group
    metrics.route_share.labels(
        group.application, group.phase, str(group.locality), route.service, provider
    ).set(0.5)


def test_a_route_that_went_takes_its_series_along():
    metrics = Metrics()
    metrics.keep_routes([EAST, WEST])
    for route in (EAST, WEST):
        _share(metrics, route, "search-east")
        _share(metrics, route, "search-west")
    metrics.keep_routes([WEST])

    text = _text(metrics)
    assert 'locality="us-east-1/a"' not in text
    assert text.count('locality="us-west-2/b"') == 2


def test_a_provider_that_went_takes_its_series_along():
    metrics = Metrics()
    metrics.provider_rps.labels("search-east").set(3.0)
    metrics.provider_rps.labels("search-west").set(4.0)
    _share(metrics, EAST, "search-east")
    metrics.forget_provider("search-east")

    text = _text(metrics)
    assert 'provider="search-east"' not in text
    assert 'xds_server_provider_rps{provider="search-west"} 4.0' in text


def test_two_sets_of_metrics_do_not_meet():
    first, second = Metrics(), Metrics()
    first.ticks_total.inc()
    assert "xds_server_ticks_total 1.0" in _text(first)
    assert "xds_server_ticks_total 0.0" in _text(second)


def test_the_process_and_the_build_are_exposed():
    text = _text(Metrics())
    assert "process_resident_memory_bytes " in text
    assert "xds_server_build_info{" in text
