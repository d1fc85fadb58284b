"""OTLP exports become the increments that happened; what cannot be true is dropped by name."""

import math

import numpy as np
import pytest

from tests.unit.otlp_messages import DELTA, START_MS, Export
from tests.unit.telemetry_messages import Message
from xds_server.errors import RemoteProtocolError
from xds_server.generated import xds_server_otlp_pb2 as pb
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, SampleBatch
from xds_server.telemetry.counters import Bases
from xds_server.telemetry.messages import MESSAGE_MAX_BYTES
from xds_server.telemetry.metrics import MetricsDecoder
from xds_server.telemetry.otlp import OtlpDecoder
from xds_server.telemetry.otlp_values import node_of, parse_otlp, read_otlp

OURS = frozenset({"a", "b"})
BUCKETS = len(LATENCY_BUCKETS_MS) + 1


class Stream:
    """A decoder that takes one export per second."""

    def __init__(self, bases: Bases | None = None) -> None:
        self.decoder = OtlpDecoder(bases)
        self.now_s = 0.0

    def take(self, export: Export, step_s: float = 1.0) -> SampleBatch | None:
        message = parse_otlp(export.body)
        self.now_s += step_s
        values = read_otlp(message, OURS)
        return self.decoder.decode(export.body, values, node_of(message), self.now_s)

    def counted(self, export: Export) -> SampleBatch:
        batch = self.take(export)
        assert batch is not None
        return batch


def buckets(**counts: int) -> list[int]:
    row = [0] * BUCKETS
    for bucket, count in counts.items():
        row[int(bucket.removeprefix("_"))] = count
    return row


def test_totals_are_differenced_and_a_new_provider_counts_from_nothing() -> None:
    stream = Stream()
    assert stream.take(Export(at_ms=1000).counts("a", total=100, _5xx=3, rx=900)) is None
    more = Export(at_ms=2000).counts("a", total=130, _5xx=5, rx=1000).counts("b", total=7, retry=2)
    batch = stream.counted(more)
    assert batch.providers == ("a", "b")
    assert batch.covered_s == 1.0
    assert batch.counts.tolist() == [[30.0, 2.0, 100.0, 0.0], [7.0, 2.0, 0.0, 0.0]]


def test_histograms_are_differenced_too() -> None:
    stream = Stream()
    stream.take(Export(at_ms=1000).counts("a", total=3).times("a", buckets(_4=3), sum_ms=15.0))
    later = Export(at_ms=2000).counts("a", total=5).times("a", buckets(_4=4, _6=1), sum_ms=29.0)
    batch = stream.counted(later)
    assert batch.latency_hist[0].tolist() == buckets(_4=1, _6=1)
    assert batch.latency_sum_s.tolist() == [pytest.approx(0.014)]


def test_what_was_lost_is_in_the_next_export() -> None:
    stream = Stream()
    stream.take(Export(at_ms=1000).counts("a", total=10).times("a", buckets(_0=10)))
    batch = stream.counted(Export(at_ms=9000).counts("a", total=90).times("a", buckets(_0=90)))
    assert batch.counts[0, 0] == 80.0
    assert batch.latency_hist[0, 0] == 80.0
    assert stream.decoder.events == []


@pytest.mark.parametrize("total", [4, 50])
def test_an_envoy_that_started_anew_counts_from_nothing_even_when_it_is_further(total: int) -> None:
    stream = Stream()
    stream.take(Export(at_ms=1000).counts("a", total=10).times("a", buckets(_0=10)))
    stream.take(Export(at_ms=2000).counts("a", total=20).times("a", buckets(_0=20)))
    anew = Export(at_ms=9000, start_ms=START_MS + 8000)
    stream.now_s += 7.0
    batch = stream.counted(anew.counts("a", total=total).times("a", buckets(_0=2, _5=total - 2)))
    assert batch.counts[0, 0] == total
    assert batch.latency_hist[0].tolist() == buckets(_0=2, _5=total - 2)
    assert batch.covered_s == 1.0  # not what it was away
    assert stream.decoder.events.count("reset") == 1


def test_a_cluster_that_came_back_has_a_new_histogram_as_a_whole() -> None:
    stream = Stream()
    stream.take(Export(at_ms=1000).counts("a", total=9).times("a", buckets(_0=8, _3=1)))
    batch = stream.counted(Export(at_ms=2000).counts("a", total=6).times("a", buckets(_0=1, _3=5)))
    assert batch.counts[0, 0] == 6.0
    assert batch.latency_hist[0].tolist() == buckets(_0=1, _3=5)


def test_deltas_add_up_and_one_that_is_left_out_is_none() -> None:
    stream = Stream()
    stream.take(Export(at_ms=1000, temporality=DELTA).counts("a", total=500))
    first = Export(at_ms=2000, temporality=DELTA).counts("a", total=5).times("a", buckets(_2=5))
    batch = stream.counted(first)
    assert batch.counts[0, 0] == 5.0
    assert batch.latency_hist[0].tolist() == buckets(_2=5)
    assert stream.counted(Export(at_ms=3000, temporality=DELTA)).providers == ()
    again = stream.counted(Export(at_ms=4000, temporality=DELTA).counts("a", total=2))
    assert again.counts[0, 0] == 2.0
    assert again.latency_hist.sum() == 0.0


def test_a_repeated_and_a_late_export_are_not_counted() -> None:
    stream = Stream()
    old = Export(at_ms=1000).counts("a", total=10)
    new = Export(at_ms=2000).counts("a", total=30)
    new.gauge("cluster.membership_healthy", "a").as_int = 3
    stream.take(old)
    assert stream.counted(new).counts[0, 0] == 20.0
    assert stream.decoder.hosts == {"a": 3.0}
    for export, why in ((new, "duplicate"), (old, "out of order")):
        assert stream.take(export) is None
        assert stream.decoder.refused == {why: 1}
        assert stream.decoder.hosts == {}
    assert stream.counted(Export(at_ms=3000).counts("a", total=31)).counts[0, 0] == 1.0


def test_gauges_are_what_they_are_now() -> None:
    stream = Stream()
    stream.take(Export(at_ms=1000).counts("a", total=1))
    export = Export(at_ms=2000).counts("a", total=2)
    export.gauge("cluster.upstream_rq_active", "a").as_int = 4
    export.gauge("cluster.membership_healthy", "a").as_double = 2.0
    assert stream.counted(export).active.tolist() == [4.0]
    assert stream.decoder.hosts == {"a": 2.0}


def test_what_cannot_be_true_is_dropped_by_name_and_the_rest_counts() -> None:
    stream = Stream()
    stream.take(Export(at_ms=1000))
    export = Export(at_ms=2000).counts("a", total=5, _5xx=-1, rx=2**62)
    export.sum("cluster.upstream_rq_retry", {"envoy.cluster_name": "a"}).as_double = math.nan
    export.gauge("cluster.upstream_rq_cancelled", "a").as_int = 1
    export.gauge("cluster.upstream_rq_active", "a").as_int = 10**9
    export.times("a", buckets(_0=5), count=6)
    batch = stream.counted(export)
    assert batch.counts.tolist() == [[5.0, 0.0, 0.0, 0.0]]
    assert batch.latency_hist.sum() == 0.0
    assert stream.decoder.refused == {
        "negative": 1, "too large": 2, "not a number": 1, "wrong type": 1, "false histogram": 1,
    }  # fmt: skip


def test_increments_that_no_envoy_can_count_are_dropped() -> None:
    stream = Stream()
    stream.take(Export(at_ms=1000, temporality=DELTA))
    batch = stream.counted(Export(at_ms=2000, temporality=DELTA).counts("a", total=10**9, rx=7))
    assert batch.counts.tolist() == [[0.0, 0.0, 7.0, 0.0]]
    assert stream.decoder.refused == {"absurd rate": 1}


def test_a_sum_without_temporality_is_dropped() -> None:
    stream = Stream()
    stream.take(Export(at_ms=1000))
    assert stream.counted(Export(at_ms=2000, temporality=0).counts("a", total=5)).providers == ()
    assert stream.decoder.refused == {"no temporality": 1}


@pytest.mark.parametrize(
    ("counts", "bounds", "total"),
    [
        ([1, 2], [5.0], math.nan),
        ([1, 2], [5.0], -1.0),
        ([1, 2], [5.0], 1e15),
        ([1, 2, 3], [5.0], 1.0),
        ([1] * 1001, [float(k) for k in range(1000)], 1.0),
    ],
)
def test_a_false_histogram_is_dropped(counts: list[int], bounds: list[float], total: float) -> None:
    stream = Stream()
    stream.take(Export(at_ms=1000))
    batch = stream.counted(Export(at_ms=2000).times("a", counts, sum_ms=total, bounds=bounds))
    assert batch.latency_hist.sum() == 0.0
    assert stream.decoder.refused == {"false histogram": 1}


def test_foreign_buckets_go_to_ours() -> None:
    stream = Stream()
    stream.take(Export(at_ms=1000))
    export = Export(at_ms=2000).times("a", [3, 2, 1], bounds=[2.0, 6.0])
    hist = stream.counted(export).latency_hist[0]
    assert hist.tolist() == buckets(_1=3, _5=2, _26=1)


def test_nanoseconds_are_known_from_microseconds() -> None:
    export = Export(at_ms=2000).counts("a", total=1)
    message = parse_otlp(export.body)
    assert read_otlp(message, OURS).start_ms == START_MS
    point = message.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0]
    point.start_time_unix_nano = START_MS * 10**6
    assert read_otlp(message, OURS).start_ms == START_MS


def test_providers_of_others_and_other_metrics_are_ignored() -> None:
    export = Export().counts("xds", total=5)
    export.sum("cluster.upstream_cx_total", {"envoy.cluster_name": "a"}).as_int = 5
    values = read_otlp(parse_otlp(export.body), OURS)
    assert values.names == ()
    assert values.samples == 0
    assert not values.refused


def test_an_export_is_one_nodes() -> None:
    two = pb.ExportMetricsServiceRequest.FromString(Export("n1").body + Export("n2").body)
    for message in (two, parse_otlp(Export("").body), parse_otlp(b"")):
        with pytest.raises(RemoteProtocolError, match=r"service\.instance\.id"):
            node_of(message)
    both = pb.ExportMetricsServiceRequest.FromString(Export("n1").body + Export("n1").body)
    assert node_of(both) == "n1"


def test_what_is_no_message_or_too_large_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="ExportMetricsServiceRequest does not parse"):
        parse_otlp(b"\xff")
    with pytest.raises(RemoteProtocolError, match="8 MiB"):
        parse_otlp(bytes(MESSAGE_MAX_BYTES + 1))


def test_counters_that_another_process_left_go_on_and_histograms_start() -> None:
    before = Stream(first := Bases())
    before.take(Export(at_ms=1000).counts("a", total=10).times("a", buckets(_0=10)))
    (after := Bases()).restore(first.saved(before.now_s, 60.0), before.now_s)
    stream = Stream(after)
    stream.now_s = before.now_s
    batch = stream.counted(Export(at_ms=2000).counts("a", total=14).times("a", buckets(_0=14)))
    assert batch.counts[0, 0] == 4.0
    assert batch.latency_hist.sum() == 0.0
    batch = stream.counted(Export(at_ms=3000).counts("a", total=15).times("a", buckets(_0=15)))
    assert batch.latency_hist.sum() == 1.0


def test_a_node_that_reports_by_both_sinks_is_counted_once() -> None:
    both = Bases()
    stream, metrics = Stream(both), MetricsDecoder(both, OURS)
    attempts = 0.0
    for second in range(1, 5):
        export = Export(at_ms=1000 * second).counts("a", total=100 * second)
        batches = [stream.take(export)]
        message = Message(at_ms=START_MS + 1000 * second + 3).counts("a", total=100 * second)
        batches.append(metrics.decode(message.body, "n", stream.now_s))
        attempts += sum(batch.counts[0, 0] for batch in batches if batch is not None)
    assert attempts == 300.0


def test_nodes_do_not_mix() -> None:
    stream = Stream()
    for node_id in ("n1", "n2"):
        assert stream.take(Export(node_id, 1000).counts("a", total=10)) is None
    for node_id, total in (("n1", 11), ("n2", 15)):
        batch = stream.counted(Export(node_id, 2000).counts("a", total=total))
        assert batch.node_id == node_id
        assert batch.counts[0, 0] == total - 10
        assert np.isfinite(batch.counts).all()
