"""Whatever a peer sends by OTLP or as an access log is read, dropped or refused."""

from contextlib import suppress
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.otlp_messages import CUMULATIVE, DELTA, START_MS, Export
from tests.unit.telemetry_messages import COUNTERS
from xds_server.errors import RemoteProtocolError
from xds_server.generated import xds_server_access_log_pb2 as pb
from xds_server.model.snapshot import Node
from xds_server.model.telemetry import SampleBatch
from xds_server.registry.registry import Registry
from xds_server.telemetry.access_log import parse_access_log, read_calls
from xds_server.telemetry.otlp import OtlpDecoder
from xds_server.telemetry.otlp_values import node_of, parse_otlp, read_otlp
from xds_server.wire.node import parse_node

OURS = frozenset({"a", "b"})
anything = st.floats(allow_nan=True, allow_infinity=True)
count64 = st.integers(0, 2**64 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)
provider = st.sampled_from(("a", "b", "stranger", ""))
names = (*COUNTERS.values(), "cluster.upstream_rq_active", "cluster.membership_healthy")


@st.composite
def exports(draw: st.DrawFn) -> Export:
    """An export of the right shape with any values, any labels, any buckets, any times."""
    export = Export(
        at_ms=draw(st.integers(-(10**6), 10**6)),
        start_ms=draw(st.sampled_from((START_MS, 0)) | st.integers(0, 2**53)),
        temporality=draw(st.sampled_from((CUMULATIVE, DELTA, 0))),
    )
    for _ in range(draw(st.integers(0, 6))):
        match draw(st.integers(0, 2)):
            case 0:
                labels = {"envoy.cluster_name": draw(provider)}
                point = export.sum(draw(st.sampled_from(names)), labels)
            case 1:
                point = export.gauge(draw(st.sampled_from(names)), draw(provider))
            case _:
                export.times(
                    draw(provider),
                    draw(st.lists(st.integers(0, 9) | count64, max_size=30)),
                    sum_ms=draw(anything),
                    count=draw(count64 | st.integers(0, 99)),
                    bounds=draw(st.lists(anything, max_size=30)),
                )
                continue
        if draw(st.booleans()):
            point.as_int = draw(int64)
        elif draw(st.booleans()):
            point.as_double = draw(anything)
    return export


def decode(decoder: OtlpDecoder, body: bytes, now_s: float) -> SampleBatch | None:
    message = parse_otlp(body)
    return decoder.decode(body, read_otlp(message, OURS), node_of(message), now_s)


def check(batch: SampleBatch) -> None:
    assert set(batch.providers) <= OURS
    assert batch.covered_s > 0.0
    for column in (batch.counts, batch.latency_sum_s, batch.latency_hist, batch.active):
        assert len(column) == len(batch.providers)
        assert np.all(np.isfinite(column))
        assert np.all(column >= 0.0)


@given(st.lists(exports(), min_size=1, max_size=4))
def test_any_values_leave_finite_increments_that_are_not_negative(sent: list[Export]) -> None:
    decoder = OtlpDecoder()
    registry = Registry(dict.fromkeys(OURS, "s"), slot_s=1.0, load_valid_s=1.0)
    registry.node_connected(Node("n", "shop"), 0.0)
    for now_s, export in enumerate(sent):
        batch = decode(decoder, export.body, float(now_s))
        assert all(count > 0 for count in decoder.refused.values())
        if batch is not None:
            check(batch)
            registry.observe(batch, float(now_s))
    registry.roll()
    assert np.all(np.isfinite(registry.window(10.0, 1).requests))


@given(st.lists(exports(), min_size=1, max_size=3), st.data())
def test_a_damaged_export_breaks_nothing(sent: list[Export], data: st.DataObject) -> None:
    decoder = OtlpDecoder()
    decode(decoder, Export(at_ms=-1000).body, 0.0)
    for now_s, export in enumerate(sent, start=1):
        changed = bytearray(export.body)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(changed) - 1))
            changed[at] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(changed)))
        with suppress(RemoteProtocolError):
            batch = decode(decoder, bytes(changed[:cut]), float(now_s))
            if batch is not None:
                check(batch)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=12),
       st.sampled_from((CUMULATIVE, DELTA)))  # fmt: skip
def test_increments_add_up_to_what_was_counted(
    steps: list[tuple[int, int]], temporality: int
) -> None:
    decoder = OtlpDecoder()
    decode(decoder, Export(at_ms=0, temporality=temporality).body, 0.0)
    total, summed = np.zeros(2, dtype=np.int64), np.zeros(2)
    for now_s, step in enumerate(steps, start=1):
        total += step
        a, b = (total if temporality == CUMULATIVE else np.array(step)).tolist()
        export = Export(at_ms=1000 * now_s, temporality=temporality)
        export.counts("a", total=a).counts("b", total=b)
        batch = decode(decoder, export.body, float(now_s))
        assert batch is not None
        summed += batch.counts[:, 0]
    assert summed.tolist() == total.tolist()


@st.composite
def logs(draw: st.DrawFn) -> bytes:
    """An access log of the right shape with any numbers."""
    message = pb.StreamAccessLogsMessage()
    for _ in range(draw(st.integers(0, 5))):
        entry: Any = message.http_logs.log_entry.add()
        common = entry.common_properties
        common.upstream_cluster = draw(provider).encode()
        for time in (
            common.time_to_first_upstream_tx_byte,
            common.time_to_last_upstream_rx_byte,
            common.duration,
        ):
            if draw(st.booleans()):
                time.seconds = draw(st.integers(0, 60) | int64)
                time.nanos = draw(st.integers(-(2**31), 2**31 - 1))
        entry.request.request_method = draw(st.integers(-(2**31), 2**31 - 1))
        entry.request.request_body_bytes = draw(count64)
        entry.response.response_code.value = draw(st.integers(0, 2**32 - 1))
        entry.response.response_body_bytes = draw(st.integers(0, 99) | count64)
        common.response_flags.upstream_overflow = draw(st.booleans())
    body: bytes = message.SerializeToString()
    return body


def read(body: bytes) -> None:
    message = parse_access_log(body)
    batch, refused = read_calls(message, "n", OURS)
    assert set(batch.providers) <= OURS
    assert np.all(np.isfinite(batch.counts))
    assert np.all(batch.counts >= 0.0)
    assert np.all(batch.latency_hist >= 0.0)
    assert batch.counts[:, 0].sum() + refused.total() <= len(message.http_logs.log_entry)


@given(logs(), st.data())
def test_any_log_leaves_sums_that_can_be_true(body: bytes, data: st.DataObject) -> None:
    read(body)
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(0, 3)) if changed else 0):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    with suppress(RemoteProtocolError):
        read(bytes(changed[: data.draw(st.integers(0, len(changed)))]))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with suppress(RemoteProtocolError):
        decode(OtlpDecoder(), body, 0.0)
    with suppress(RemoteProtocolError):
        read(body)
        parse_node(parse_access_log(body).identifier.node)
