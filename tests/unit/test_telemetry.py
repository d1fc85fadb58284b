import math
from collections import Counter

import numpy as np
import pytest
from envoy.config.endpoint.v3 import load_report_pb2
from envoy.service.load_stats.v3 import lrs_pb2

from tests.unit.telemetry_messages import Message
from xds_server.errors import RemoteProtocolError
from xds_server.model.telemetry import COUNTERS, LATENCY_BUCKETS_MS, LoadReport, SampleBatch
from xds_server.telemetry.counters import NODES_KEPT, Bases
from xds_server.telemetry.layout import SHARED_MAX, Layouts
from xds_server.telemetry.load import parse_load_stats, read_reports
from xds_server.telemetry.messages import MESSAGE_MAX_BYTES
from xds_server.telemetry.metrics import MetricsDecoder, parse_metrics
from xds_server.wire.node import parse_node

PRICE = "named_metrics.price_per_million_requests_usd"


class Stream:
    """Messages of one node, a second apart."""

    def __init__(self, *providers: str) -> None:
        self.bases, self.now_s = Bases(), 0.0
        self.decoder = MetricsDecoder(self.bases, frozenset(providers or ("a", "b")))

    def say(self, message: Message, *, after_s: float = 1.0) -> SampleBatch | None:
        self.now_s += after_s
        return self.decoder.decode(message.body, "n1", self.now_s)

    def increments(self, message: Message, **late: float) -> dict[str, dict[str, float]]:
        batch = self.say(message, **late)
        assert batch is not None
        return {
            name: dict(zip(COUNTERS, row, strict=True))
            for name, row in zip(batch.providers, batch.counts.tolist(), strict=True)
        }


def test_the_node_of_a_message_is_read_as_envoy_wrote_it() -> None:
    assert parse_node(Message("n7").ours.identifier.node).node_id == "n7"


def test_the_first_message_is_only_a_base() -> None:
    stream = Stream()
    assert stream.say(Message().counts("a", total=100)) is None
    assert stream.increments(Message().counts("a", total=130))["a"]["requests"] == 30


def test_what_appears_later_counts_from_zero() -> None:
    stream = Stream()
    stream.say(Message())
    assert stream.increments(Message().counts("a", total=7))["a"]["requests"] == 7
    late = Message().counts("a", total=8, _5xx=1)
    assert stream.increments(late)["a"] == {
        "requests": 1, "errors": 1, "rx_bytes": 0, "tx_bytes": 0,
    }  # fmt: skip


def test_attempts_and_failures_are_sums_of_their_counters() -> None:
    stream = Stream()
    stream.say(Message())
    message = Message().counts(
        "a", total=1, eject=2, cancelled=4, none_healthy=8, _5xx=16, retry=32, rx=64, tx=128
    )
    assert stream.increments(message)["a"] == {
        "requests": 15, "errors": 48, "rx_bytes": 64, "tx_bytes": 128,
    }  # fmt: skip


def test_a_value_below_the_one_before_counts_anew() -> None:
    stream = Stream()
    stream.say(Message().counts("a", total=100))
    assert stream.increments(Message().counts("a", total=5))["a"]["requests"] == 5


def test_the_time_that_an_envoy_was_away_is_not_covered() -> None:
    stream = Stream()
    stream.say(Message().counts("a", total=100))
    stream.say(Message().counts("a", total=101))
    restarted = stream.say(Message().counts("a", total=5), after_s=60.0)
    assert restarted is not None
    assert restarted.covered_s == 1.0


def test_a_gap_between_messages_is_covered_by_the_next() -> None:
    stream = Stream()
    stream.say(Message().counts("a", total=100))
    batch = stream.say(Message().counts("a", total=200), after_s=10.0)
    assert batch is not None
    assert (batch.covered_s, batch.counts[0, 0]) == (10.0, 100.0)


def test_a_counter_that_a_message_lacks_keeps_its_value() -> None:
    stream = Stream()
    stream.say(Message().counts("a", total=100, retry=10))
    assert stream.increments(Message().counts("a", retry=11))["a"]["requests"] == 0
    assert stream.increments(Message().counts("a", total=101, retry=11))["a"]["requests"] == 1


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf, 1e300])
def test_a_value_that_cannot_be_true_is_dropped_and_changes_nothing(value: float) -> None:
    stream = Stream()
    stream.say(Message().counts("a", total=100))
    assert stream.increments(Message().counts("a", total=value, retry=1))["a"]["requests"] == 0
    assert stream.decoder.refused.total() == 1
    assert stream.increments(Message().counts("a", total=101))["a"]["requests"] == 1


def test_what_is_no_providers_is_ignored() -> None:
    stream = Stream("a")
    stream.say(Message())
    message = (
        Message()
        .counts("xds", total=5)
        .other("cluster.upstream_rq_total")
        .other("http.downstream_rq_total", envoy__cluster_name="a")
        .other("cluster.upstream_rq_xx", envoy__cluster_name="a", envoy__response_code_class="2")
        .counts("a", total=5)
    )
    assert stream.increments(message) == {
        "a": {"requests": 5, "errors": 0, "rx_bytes": 0, "tx_bytes": 0}
    }
    assert (stream.decoder.samples, stream.decoder.refused) == (1, {})


def test_response_times_become_counts_per_bucket() -> None:
    stream = Stream()
    stream.say(Message())
    cumulative = [0, 3, *[5] * (len(LATENCY_BUCKETS_MS) - 2)]
    message = Message().counts("a", total=6).times("a", cumulative, sum_ms=2500.0, responses=6)
    batch = stream.say(message.counts("b", total=1))
    assert batch is not None
    assert batch.providers == ("a", "b")
    expected = np.zeros(len(LATENCY_BUCKETS_MS) + 1)
    expected[[1, 2, -1]] = (3, 2, 1)
    assert batch.latency_hist[0].tolist() == expected.tolist()
    assert batch.latency_hist[1].sum() == 0
    assert batch.latency_sum_s.tolist() == [2.5, 0.0]


def test_buckets_of_a_foreign_bootstrap_fall_into_ours() -> None:
    stream = Stream()
    stream.say(Message())
    message = Message().counts("a", total=9).times("a", [1, 4, 9], bounds=[0.5, 25.0, 3.6e6])
    batch = stream.say(message)
    assert batch is not None
    found = {int(i): float(batch.latency_hist[0, i]) for i in batch.latency_hist[0].nonzero()[0]}
    assert found == {0: 1.0, LATENCY_BUCKETS_MS.index(28.0): 3.0, len(LATENCY_BUCKETS_MS): 5.0}


@pytest.mark.parametrize(
    ("cumulative", "count", "sum_ms"),
    [([5, 3], 5, 1.0), ([1, 3], 2, 1.0), ([1, 3], 3, math.nan), ([1, 3], 3, -1.0),
     ([1, 3], 2**63, 1.0)],
)  # fmt: skip
def test_a_histogram_that_cannot_be_true_is_dropped(
    cumulative: list[int], count: int, sum_ms: float
) -> None:
    stream = Stream()
    stream.say(Message())
    message = Message().counts("a", total=1).times("a", cumulative, responses=count, sum_ms=sum_ms)
    batch = stream.say(message)
    assert batch is not None
    assert batch.latency_hist.sum() == 0.0
    assert stream.decoder.refused == {"false histogram": 1}


def test_requests_in_flight_are_those_of_the_moment() -> None:
    stream = Stream()
    stream.say(Message())
    batch = stream.say(Message().counts("a", total=3).active("a", 2).counts("b", total=1))
    assert batch is not None
    assert batch.active.tolist() == [2.0, 0.0]


def test_a_message_without_providers_is_an_empty_batch() -> None:
    stream = Stream()
    stream.say(Message())
    batch = stream.say(Message())
    assert batch is not None
    assert batch.counts.shape == (0, len(COUNTERS))


def test_a_message_that_is_too_large_is_refused_unread() -> None:
    stream = Stream()
    stream.say(Message().counts("a", total=1))
    body = Message().counts("a", total=5).body.ljust(MESSAGE_MAX_BYTES + 1, b"\x00")
    with pytest.raises(RemoteProtocolError, match="8 MiB"):
        stream.decoder.decode(body, "n1", 5.0)
    assert stream.increments(Message().counts("a", total=6))["a"]["requests"] == 5


def flush(*providers: str, total: float = 1.0) -> bytes:
    message = Message()
    for name in providers:
        message.counts(name, total=total, _5xx=total).active(name, total)
        message.times(name, range(1, 27), sum_ms=total)
    return message.body


def test_streams_that_write_alike_share_a_layout_until_the_providers_change() -> None:
    layouts, both = Layouts(), frozenset({"a", "b"})
    first = layouts.learn(flush("a", "b"), 0, both)
    assert first is not None
    assert layouts.learn(flush("a", "b", total=9.0), 0, both) is first
    assert layouts.learn(flush("b", "a"), 0, both) is not first
    fewer = layouts.learn(flush("a", "b"), 0, frozenset({"a"}))
    assert fewer is not None
    assert fewer.names == ("a",)


def test_of_many_layouts_those_learned_last_are_shared() -> None:
    layouts, ours = Layouts(), frozenset({"a", "b"})
    bodies = [
        Message().counts("a", total=1).other(f"cluster.{k}").body for k in range(2 * SHARED_MAX)
    ]
    first = layouts.learn(bodies[0], 0, ours)
    for body in bodies[1:]:
        assert layouts.learn(body, 0, ours) is not None
        assert layouts.learn(bodies[0], 0, ours) is first
    assert len(layouts._known) == SHARED_MAX
    assert layouts.learn(bodies[-1], 0, ours) is layouts.learn(bodies[-1], 0, ours)


def test_another_order_of_families_is_read_like_the_first() -> None:
    stream = Stream()
    stream.decoder.decode(flush("a", "b"), "n1", 1.0)
    for now_s, order in enumerate((("a", "b"), ("b", "a"), ("b",), ("b", "a")), start=2):
        batch = stream.decoder.decode(flush(*order, total=float(now_s)), "n1", float(now_s))
        assert batch is not None
        assert set(batch.providers) == set(order)
        if "a" in order and now_s < 4:
            assert batch.counts[list(batch.providers).index("a"), 0] == 1.0
    assert batch.counts[list(batch.providers).index("a"), 0] == 2.0  # it missed one


def test_providers_that_a_reload_adds_are_read() -> None:
    stream = Stream("a")
    stream.decoder.decode(flush("a", "c"), "n1", 1.0)
    stream.decoder.use(frozenset({"a", "c"}))
    batch = stream.decoder.decode(flush("a", "c", total=3.0), "n1", 2.0)
    assert batch is not None
    assert batch.providers == ("a", "c")


def test_nodes_do_not_share_bases_and_the_least_recent_is_forgotten() -> None:
    bases = Bases()
    decoder = MetricsDecoder(bases, frozenset({"a"}))
    message = Message().counts("a", total=1).body
    for node in range(NODES_KEPT + 1):
        assert decoder.decode(message, f"n{node}", 0.0) is None
    assert bases.get("n0") is None
    assert bases.get("n1") is not None


@pytest.mark.parametrize("parse", [parse_metrics, parse_load_stats])
def test_bytes_that_are_no_message_are_refused(parse) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RemoteProtocolError):
        parse(b"\xff\xff\xff")


def load(*metrics: tuple[str, int, float], cluster: str = "a") -> lrs_pb2.LoadStatsRequest:
    """A report as Envoy writes it; scalars have fields of their own."""
    message = lrs_pb2.LoadStatsRequest()
    message.node.id = "n1"
    locality = load_report_pb2.UpstreamLocalityStats()
    for name, count, total in metrics:
        if name.startswith("named_metrics"):
            metric = locality.load_metric_stats.add(metric_name=name)
        else:
            metric = getattr(locality, name)
        metric.num_requests_finished_with_metric, metric.total_metric_value = count, total
    message.cluster_stats.add(cluster_name=cluster).upstream_locality_stats.append(locality)
    return message


def reports(message: lrs_pb2.LoadStatsRequest) -> tuple[list[LoadReport], Counter[str]]:
    return read_reports(parse_load_stats(message.SerializeToString()))


def test_what_providers_say_is_the_mean_over_requests() -> None:
    message = load(
        ("application_utilization", 4, 2.0), ("mem_utilization", 4, 1.0), (PRICE, 2, 9.0)
    )
    assert reports(message) == ([LoadReport("a", 0.5, 0.25, 4.5)], {})
    assert parse_node(parse_load_stats(message.SerializeToString()).node).node_id == "n1"


def ended(
    *localities: tuple[int, int], interval_s: float = 2.0, cluster: str = "a"
) -> lrs_pb2.LoadStatsRequest:
    """A report of (succeeded, failed) requests of each locality, and nothing that was said."""
    message = lrs_pb2.LoadStatsRequest()
    stats = message.cluster_stats.add(cluster_name=cluster)
    stats.load_report_interval.FromNanoseconds(round(interval_s * 1e9))
    for succeeded, failed in localities:
        stats.upstream_locality_stats.add(
            total_successful_requests=succeeded, total_error_requests=failed
        )
    return message


def test_rates_are_those_of_the_reports_own_interval() -> None:
    (report,), refused = reports(ended((30, 2), (10, 0), interval_s=2.5))
    assert (report.succeeded_rps, report.failed_rps) == (16.0, 0.8)
    assert not report.says_anything
    assert refused == {}


@pytest.mark.parametrize("interval_s", [0.0, -1.0])
def test_a_report_of_no_time_has_no_rate(interval_s: float) -> None:
    assert reports(ended((30, 2), interval_s=interval_s)) == ([], {})


def test_a_rate_that_cannot_be_true_is_dropped() -> None:
    found, refused = reports(ended((10**8, 0), interval_s=1e-3))
    assert (found, refused) == ([], {"too large": 1})


def test_the_applications_own_utilisation_goes_before_cpu() -> None:
    both = load(("cpu_utilization", 1, 0.9), ("application_utilization", 1, 0.4))
    assert reports(both)[0][0].utilisation_ratio == 0.4
    unsaid = load(("cpu_utilization", 1, 0.9), ("application_utilization", 1, 0.0))
    assert reports(unsaid)[0][0].utilisation_ratio == 0.9


def test_localities_are_averaged_by_their_requests() -> None:
    message = load(("cpu_utilization", 1, 1.0))
    more = load(("cpu_utilization", 3, 0.0)).cluster_stats[0].upstream_locality_stats[0]
    message.cluster_stats[0].upstream_locality_stats.append(more)
    assert reports(message)[0][0].utilisation_ratio == 0.25


def test_a_cluster_that_said_nothing_is_not_reported() -> None:
    assert reports(load(("cpu_utilization", 10, 0.0))) == ([], {})


@pytest.mark.parametrize(
    ("total", "reason"),
    [
        (math.nan, "not a number"), (-1.0, "negative"), (math.inf, "too large"),
        (1e300, "too large"), (1001.0, "too large"),
    ],
)  # fmt: skip
def test_a_metric_that_cannot_be_true_is_dropped(total: float, reason: str) -> None:
    found, refused = reports(load(("cpu_utilization", 1, total), ("mem_utilization", 1, 0.5)))
    assert refused == {reason: 1}
    assert math.isnan(found[0].utilisation_ratio)
    assert found[0].memory_ratio == 0.5
