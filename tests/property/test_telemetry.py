"""Whatever a peer sends is read, dropped or refused; it never breaks the reader."""

import math
from contextlib import suppress
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.telemetry_messages import COUNTERS, Message
from xds_server.errors import RemoteProtocolError
from xds_server.generated import xds_server_load_report_pb2 as load_pb
from xds_server.model.snapshot import Node
from xds_server.registry.registry import Registry
from xds_server.telemetry.counters import Bases
from xds_server.telemetry.layout import Layouts
from xds_server.telemetry.load import parse_load_stats, read_reports
from xds_server.telemetry.metrics import MetricsDecoder, parse_metrics
from xds_server.telemetry.values import read_message
from xds_server.wire.node import parse_node

PROVIDERS = ("a", "b")
anything = st.floats(allow_nan=True, allow_infinity=True)
_SHORT = tuple(f"_{name}" for name in COUNTERS)
usual = st.floats(0.5, 1e6)
count64 = st.integers(0, 2**64 - 1)


@st.composite
def hostile(draw: st.DrawFn) -> Message:
    """A message of the right shape with any values, any labels, any buckets."""
    message = Message()
    for _ in range(draw(st.integers(0, 6))):
        provider = draw(st.sampled_from((*PROVIDERS, "stranger", "")))
        match draw(st.integers(0, 3)):
            case 0:
                message.counts(provider, **{draw(st.sampled_from(_SHORT)): draw(anything)})
            case 1:
                message.active(provider, draw(anything))
            case 2:
                message.times(
                    provider,
                    draw(st.lists(count64, min_size=1, max_size=30)),
                    sum_ms=draw(anything),
                    responses=draw(count64),
                    bounds=draw(st.lists(anything, max_size=30)),
                )
            case _:
                message.other(draw(st.text("._xu", max_size=20)), envoy__cluster_name=provider)
    return message


@given(st.lists(hostile(), min_size=1, max_size=4))
def test_any_values_leave_finite_increments_that_are_not_negative(messages: list[Message]) -> None:
    decoder = MetricsDecoder(Bases(), frozenset(PROVIDERS))
    registry = Registry(dict.fromkeys(PROVIDERS, "s"), slot_s=1.0, load_valid_s=1.0)
    registry.node_connected(Node("n", "shop"), 0.0)
    for now_s, message in enumerate(messages):
        batch = decoder.decode(message.body, "n", float(now_s))
        if batch is None:
            continue
        assert set(batch.providers) <= set(PROVIDERS)
        assert batch.covered_s > 0.0
        for column in (batch.counts, batch.latency_sum_s, batch.latency_hist, batch.active):
            assert len(column) == len(batch.providers)
            assert np.all(np.isfinite(column))
            assert np.all(column >= 0.0)
        registry.observe(batch, float(now_s))
    registry.roll()
    window = registry.window(10.0, 1)
    assert np.all(np.isfinite(window.requests))
    assert len(registry.signals(10.0)) == 1


@given(st.lists(st.tuples(hostile(), st.integers(0, 10**6)), min_size=2, max_size=6))
def test_whatever_one_node_sends_another_counts_what_it_counted(
    turns: list[tuple[Message, int]],
) -> None:
    bases, layouts = Bases(), Layouts()
    ours, theirs = (MetricsDecoder(bases, frozenset(PROVIDERS), layouts) for _ in range(2))
    total, summed = 0, 0.0
    ours.decode(Message().counts("a", total=0).body, "honest", 0.0)
    for now_s, (message, more) in enumerate(turns, start=1):
        theirs.decode(message.body, "hostile", float(now_s))
        total += more
        batch = ours.decode(Message().counts("a", total=total).body, "honest", float(now_s))
        assert batch is not None
        summed += batch.counts[0, 0]
        assert ours.refused == {}
    assert summed == total


@given(st.lists(st.lists(st.integers(0, 10**7), min_size=2, max_size=2), min_size=2, max_size=20))
def test_increments_of_growing_counters_add_up_to_what_was_counted(steps: list[list[int]]) -> None:
    decoder = MetricsDecoder(Bases(), frozenset(PROVIDERS))
    decoder.decode(Message().body, "n", 0.0)
    total, summed = np.zeros(2), np.zeros(2)
    for now_s, step in enumerate(steps, start=1):
        total += step
        message = Message().counts("a", total=total[0]).counts("b", total=total[1])
        batch = decoder.decode(message.body, "n", float(now_s))
        assert batch is not None
        summed += batch.counts[:, 0]
    assert summed.tolist() == total.tolist()


@st.composite
def flushes(draw: st.DrawFn) -> list[bytes]:
    """Messages of one Envoy: the same families each time, other values; sometimes one more."""
    series = draw(
        st.lists(
            st.tuples(
                st.sampled_from((*PROVIDERS, "stranger")), st.sampled_from((*_SHORT, "t", "a"))
            ),
            unique=True,
            min_size=1,
            max_size=12,
        )
    )
    bodies = []
    for _ in range(draw(st.integers(2, 4))):
        message = Message()
        for provider, what in series:
            if what == "t":
                counts = sorted(draw(st.lists(st.integers(0, 300), min_size=26, max_size=26)))
                message.times(provider, counts, sum_ms=draw(usual))
            elif what == "a":
                message.active(provider, draw(usual))
            else:
                message.counts(provider, **{what: draw(usual)})
        if draw(st.booleans()) and draw(st.booleans()):
            message.other("cluster.other", envoy__cluster_name="a")
        bodies.append(message.body)
    return bodies


@given(flushes())
def test_what_a_layout_reads_is_what_a_parser_reads(bodies: list[bytes]) -> None:
    decoder = MetricsDecoder(Bases(), frozenset(PROVIDERS))
    for body in bodies:
        expected = read_message(parse_metrics(body), frozenset(PROVIDERS))
        found = decoder._read(body, 0)
        order = [found.names.index(name) for name in expected.names]
        assert len(order) == len(found.names)
        for name in ("raw", "active", "times_s", "hist"):
            np.testing.assert_array_equal(getattr(found, name)[order], getattr(expected, name))
        assert found.hosts == expected.hosts
        assert found.samples == expected.samples


@given(flushes(), st.data())
def test_a_message_that_is_damaged_after_its_layout_is_known_breaks_nothing(
    bodies: list[bytes], data: st.DataObject
) -> None:
    """Its own node's figures may be wrong then, as they may from any client that lies."""
    decoder = MetricsDecoder(Bases(), frozenset(PROVIDERS))
    first, *others = bodies
    decoder.decode(first, "n", 0.0)
    for now_s, body in enumerate(others, start=1):
        changed = bytearray(body)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(changed) - 1))
            changed[at] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(changed)))
        with suppress(RemoteProtocolError):
            batch = decoder.decode(bytes(changed[:cut]), "n", float(now_s))
            if batch is not None:
                for column in (batch.counts, batch.latency_sum_s, batch.latency_hist, batch.active):
                    assert np.all(np.isfinite(column))
                    assert np.all(column >= 0.0)


def _cut(message: Message, at: int) -> bytes:
    return message.body[: at % (len(message.body) + 1)]


@given(st.binary(max_size=200) | st.builds(_cut, hostile(), st.integers(0, 10**6)))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with suppress(RemoteProtocolError):
        message = parse_metrics(body)
        MetricsDecoder(Bases(), frozenset(PROVIDERS)).decode(body, "n", 0.0)
        parse_node(message.identifier.node)
    with suppress(RemoteProtocolError):
        read_reports(parse_load_stats(body))


@given(st.lists(st.tuples(st.sampled_from(("cpu_utilization", "mem_utilization", "other", "")),
                          count64, anything), max_size=8))  # fmt: skip
def test_any_load_leaves_ratios_that_can_be_true(metrics: list[tuple[str, int, float]]) -> None:
    message = load_pb.LoadStatsRequest()
    locality: Any = message.cluster_stats.add(cluster_name="a").upstream_locality_stats.add()
    for name, finished, total in metrics:
        locality.load_metric_stats.add(
            metric_name=name, num_requests_finished_with_metric=finished, total_metric_value=total
        )
    reports, refused = read_reports(parse_load_stats(message.SerializeToString()))
    assert 0 <= refused.total() <= len(metrics)
    for report in reports:
        for value in (report.utilisation_ratio, report.memory_ratio, report.price_per_million_usd):
            assert math.isnan(value) or 0.0 < value <= 1e12
