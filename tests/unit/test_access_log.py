"""Sampled calls: read from the log, summed in a bounded ring, shown with the sample's size."""

import math
from collections import Counter
from typing import Any

import pytest

from xds_server.admin.encode import to_json
from xds_server.errors import RemoteProtocolError
from xds_server.generated import xds_server_access_log_pb2 as pb
from xds_server.model.calls import CALL_BOUNDS_MS, CALL_COLUMNS, CallBatch
from xds_server.model.snapshot import Node
from xds_server.registry.calls import SLOTS, TOO_MANY, TURNS, CallSamples
from xds_server.registry.instance_views import instance_views
from xds_server.registry.registry import Registry
from xds_server.registry.sampled import calls_by_node, calls_by_provider, sampled_calls
from xds_server.telemetry.access_log import parse_access_log, read_calls
from xds_server.telemetry.messages import MESSAGE_MAX_BYTES

OURS = frozenset({"a", "b"})
GET, HEAD, POST, OPTIONS = 1, 2, 3, 7


class Log:
    """One StreamAccessLogsMessage while it is built."""

    def __init__(self) -> None:
        self.message = pb.StreamAccessLogsMessage()

    def call(
        self,
        provider: str = "a",
        method: int = GET,
        *,
        code: int = 200,
        sizes: tuple[int, int] = (100, 300),
        sent_ms: float | None = 1.0,
        answered_ms: float | None = 11.0,
        duration_ms: float = 12.0,
        **common: Any,
    ) -> "Log":
        entry = self.message.http_logs.log_entry.add()
        properties = entry.common_properties
        properties.upstream_cluster = provider.encode()
        properties.access_log_type = 6
        for name, value_ms in (
            ("time_to_first_upstream_tx_byte", sent_ms),
            ("time_to_last_upstream_rx_byte", answered_ms),
            ("duration", duration_ms),
        ):
            if value_ms is not None:
                time = getattr(properties, name)
                time.SetInParent()
                time.seconds, time.nanos = divmod(round(value_ms * 1e6), 10**9)
        for name, value in common.items():
            flags = properties.response_flags
            setattr(flags if hasattr(flags, name) else properties, name, value)
        entry.request.request_method = method
        entry.request.request_headers_bytes, entry.request.request_body_bytes = 50, sizes[0] - 50
        entry.response.response_code.value = code
        entry.response.response_headers_bytes = 60
        entry.response.response_body_bytes = sizes[1] - 60
        return self

    def read(self) -> tuple[CallBatch, Counter[str]]:
        return read_calls(parse_access_log(self.message.SerializeToString()), "n1", OURS)


def columns(batch: CallBatch, row: int = 0) -> dict[str, float]:
    values = zip(CALL_COLUMNS, batch.counts[row].tolist(), strict=True)
    return {name: value for name, value in values if value}


def test_calls_are_summed_by_provider() -> None:
    log = Log().call("a").call("b", POST, sizes=(1000, 60)).call("a", HEAD).call("a", OPTIONS)
    batch, refused = log.read()
    assert batch.providers == ("a", "b")
    assert columns(batch, 0) == pytest.approx(
        {"calls": 3, "reads": 3, "request_bytes": 300, "response_bytes": 900, "timed": 3,
         "latency_s": 0.03, "duration_s": 0.036}
    )  # fmt: skip
    assert columns(batch, 1)["request_bytes"] == 1000
    assert "reads" not in columns(batch, 1)
    assert batch.latency_hist.sum(axis=1).tolist() == [3.0, 1.0]
    assert not refused


@pytest.mark.parametrize(
    ("call", "failed"),
    [
        ({"code": 503}, True),
        ({"code": 499}, False),
        ({"upstream_remote_reset": True}, True),
        ({"upstream_request_timeout": True, "code": 504}, True),
        ({"downstream_connection_termination": True, "code": 0}, False),
    ],
)
def test_a_failure_has_a_5xx_or_a_flag_that_says_so(call: dict[str, Any], failed: bool) -> None:
    batch, _ = Log().call(**call).read()
    assert ("failed" in columns(batch)) is failed
    flags = {name for name, value in call.items() if value is True}
    assert flags <= columns(batch).keys()


def test_a_call_without_an_answer_has_no_response_time() -> None:
    for times in ({"answered_ms": None}, {"sent_ms": None}):
        batch, refused = Log().call(**times).read()  # type: ignore[arg-type]
        assert "timed" not in columns(batch)
        assert columns(batch)["duration_s"] == pytest.approx(0.012)
        assert batch.latency_hist.sum() == 0.0
        assert not refused


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ({"sizes": (2**60, 100)}, "too large"),
        ({"sizes": (100, 2**60)}, "too large"),
        ({"duration_ms": -1.0}, "negative"),
        ({"duration_ms": 1e12}, "too large"),
        ({"sent_ms": 5.0, "answered_ms": 4.0}, "false times"),
    ],
)
def test_a_call_that_cannot_be_true_is_dropped_alone(call: dict[str, Any], why: str) -> None:
    batch, refused = Log().call(**call).call().read()
    assert columns(batch)["calls"] == 1.0
    assert refused == {why: 1}


def test_what_is_not_the_end_of_a_call_to_us_is_ignored() -> None:
    log = Log().call("xds").call("").call(intermediate_log_entry=True).call(access_log_type=9)
    batch, refused = log.read()
    assert batch.providers == ()
    assert batch.latency_hist.shape == (0, len(CALL_BOUNDS_MS) + 1)
    assert not refused


def test_a_name_that_is_no_text_is_ignored_alone() -> None:
    log = Log().call()
    log.message.http_logs.log_entry.add().common_properties.upstream_cluster = b"\xff\xfe"
    batch, _ = log.read()
    assert columns(batch)["calls"] == 1.0


def test_what_is_no_message_or_too_large_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="does not parse"):
        parse_access_log(b"\xff")
    with pytest.raises(RemoteProtocolError, match="8 MiB"):
        parse_access_log(bytes(MESSAGE_MAX_BYTES + 1))


def sampling(max_pairs: int = 100) -> tuple[CallSamples, Counter[str]]:
    refused: Counter[str] = Counter()
    return CallSamples(refused, slot_s=1.0, max_pairs=max_pairs), refused


def batch_of(*providers: str, node_id: str = "n1", method: int = GET) -> CallBatch:
    log = Log()
    for provider in providers:
        log.call(provider, method)
    batch, _ = log.read()
    return CallBatch(node_id, batch.providers, batch.counts, batch.latency_hist)


def calls_of(samples: CallSamples) -> dict[tuple[str, str], float]:
    window = samples.window(10.0)
    pairs = zip(window.node_row, window.provider_row, window.counts[:, 0], strict=True)
    return {(window.nodes[n], window.providers[p]): float(calls) for n, p, calls in pairs}


def test_calls_count_at_once_and_for_about_a_window() -> None:
    samples, _ = sampling()
    samples.observe(batch_of("a", "a", "b"), 1.0)
    assert calls_of(samples) == {("n1", "a"): 2.0, ("n1", "b"): 1.0}
    for _ in range((SLOTS - 1) * TURNS):
        samples.roll()
    assert calls_of(samples) == {("n1", "a"): 2.0, ("n1", "b"): 1.0}
    for _ in range(TURNS):
        samples.roll()
    assert calls_of(samples) == {}


def test_reads_of_a_node_are_those_of_all_its_providers() -> None:
    samples, _ = sampling()
    assert samples.read_ratios() == {}
    samples.observe(batch_of("a", "b", "b"), 1.0)
    samples.observe(batch_of("a", method=POST), 1.0)
    samples.observe(batch_of("a", node_id="n2", method=POST), 1.0)
    assert samples.read_ratios() == {"n1": 0.75, "n2": 0.0}
    assert samples.by_provider("n1") == {"a": 2.0, "b": 2.0}


def test_who_leaves_frees_its_rows() -> None:
    samples, refused = sampling(max_pairs=2)
    samples.observe(batch_of("a", "b"), 1.0)
    samples.observe(batch_of("a", node_id="n2"), 1.0)
    assert refused == {TOO_MANY: 1}
    samples.forget("n1")
    samples.observe(batch_of("a", node_id="n2"), 1.0)
    assert calls_of(samples) == {("n2", "a"): 1.0}
    samples.observe(batch_of("b", node_id="n2"), 1.0)
    samples.keep_providers(["b"])
    assert calls_of(samples) == {("n2", "b"): 1.0}
    samples.restart(2.0)
    assert calls_of(samples) == {}
    assert refused == {TOO_MANY: 1}


def test_many_pairs_grow_the_tables_and_keep_what_was_counted() -> None:
    samples, refused = sampling(max_pairs=200)
    for k in range(200):
        samples.observe(batch_of("a", node_id=f"n{k}"), 1.0)
    assert set(calls_of(samples).values()) == {1.0}
    assert len(calls_of(samples)) == 200
    assert not refused


def test_a_sample_says_its_size_and_what_chance_may_have_done() -> None:
    samples, _ = sampling()
    log = Log().call(method=POST, code=503, upstream_overflow=True)
    for _ in range(9):
        log.call()
    samples.observe(log.read()[0], 8.0)
    window = samples.window(10.0)
    found = sampled_calls(window, calls_by_provider, valid_s=1.0)["a"]
    assert found == sampled_calls(window, calls_by_node, valid_s=1.0)["n1"]
    assert found.calls == 10
    assert found.read_ratio.value == 0.9
    assert found.read_ratio.samples == 10
    assert found.read_ratio.standard_error == pytest.approx(0.11, abs=0.02)
    assert found.read_ratio.age_s == 2.0
    assert found.read_ratio.stale
    assert found.failed_ratio.value == 0.1
    assert found.flags == {"upstream_overflow": 1}
    assert found.request_bytes.value == 100
    assert found.response_bytes.value == 300
    for quantile in (found.latency_p50_ms, found.latency_p99_ms):
        assert quantile.value == pytest.approx(10.0, rel=0.19)
    assert found.latency_mean_ms.value == pytest.approx(10.0)
    assert found.duration_mean_ms.value == pytest.approx(12.0)
    assert found.window_s == SLOTS * TURNS


def test_a_sample_without_any_answer_has_no_times() -> None:
    samples, _ = sampling()
    samples.observe(Log().call(answered_ms=None).read()[0], 8.0)
    found = sampled_calls(samples.window(10.0), calls_by_provider)["a"]
    assert found.latency_p50_ms.value is None
    assert found.latency_mean_ms.value is None
    assert found.duration_mean_ms.value == pytest.approx(12.0)


def test_the_registry_takes_calls_of_nodes_that_are_connected_and_shows_them() -> None:
    registry = Registry({"a": "search", "b": "mail"}, slot_s=1.0, load_valid_s=30.0)
    registry.observe_calls(batch_of("a"), 0.5)
    assert registry.refused["no ADS stream"] == 1
    registry.node_connected(Node("n1", "shop"), 0.0)
    assert instance_views(registry, {}, {}, {}, 1.0)[0].sampled is None
    assert math.isnan(registry.signals(1.0)[0].read_ratio)
    registry.observe_calls(batch_of("a", "a", "b"), 0.5)
    assert registry.signals(1.0)[0].read_ratio == 1.0
    view: Any = to_json(instance_views(registry, {}, {}, {}, 1.0)[0])
    assert view["sampled"]["calls"] == 3
    assert view["sampled_by_service"] == {"search": 2.0, "mail": 1.0}
    registry.set_providers({"a": "search"}, slot_s=1.0, load_valid_s=30.0)
    assert registry.sampled_by_service("n1") == {"search": 2.0}
    registry.node_disconnected("n1")
    registry.node_connected(Node("n1", "shop"), 2.0)
    assert registry.sampled_by_service("n1") == {}
