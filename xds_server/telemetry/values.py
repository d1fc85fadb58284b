"""One metrics message as arrays, and how a parsed message becomes that.

Attempts are what left for a provider or would have left. Each is in exactly one counter
(measured on Envoy 1.40, ``tests/e2e/test_telemetry_envoy.py``):

=====================================  ==================================================
``upstream_rq_total``                  it got a connection
``upstream_rq_pending_failure_eject``  the connection was refused, or took too long
``upstream_rq_cancelled``              the request timed out, or its client left, before that
``upstream_cx_none_healthy``           there was no endpoint to connect to
=====================================  ==================================================

A failed attempt is either the request's last, then Envoy answers with its 5xx or with a 502,
503 or 504 of its own (``upstream_rq_5xx``), or it is retried (``upstream_rq_retry``; the
answer that was not passed on is not in ``upstream_rq_5xx``). So each is counted once. Not
counted is an answer that broke off after its headers: Envoy has no counter for it that does
not also count resets before them. A failure is counted when it ends, its attempt when it
begins, so the errors of a short window can exceed its attempts.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from xds_server.generated import xds_server_metrics_pb2 as pb
from xds_server.model.ids import ProviderName
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, Floats

ABSURD: Final = 1e15
"""Counters above this are not believed."""
GAUGE_MOST: Final = 1e7
"""Requests in flight and hosts above this are not believed."""
LONGEST_MS: Final = 86_400_000.0
"""Responses that take longer on average are not believed."""
CLUSTER_LABEL: Final = "envoy.cluster_name"
CLASS_LABEL: Final = "envoy.response_code_class"
# Raw counters in the order of a provider's array.
RAW: Final = {
    "cluster.upstream_rq_total": 0,
    "cluster.upstream_rq_pending_failure_eject": 1,
    "cluster.upstream_rq_cancelled": 2,
    "cluster.upstream_cx_none_healthy": 3,
    "cluster.upstream_rq_xx": 4,  # upstream_rq_5xx, its class made a label
    "cluster.upstream_rq_retry": 5,
    "cluster.upstream_cx_rx_bytes_total": 6,
    "cluster.upstream_cx_tx_bytes_total": 7,
}
MOST_PER_S: Final = np.array([*[1e7] * 6, *[1e12] * 2])
"""What one Envoy can count in a second, requests and bytes; above that it is not believed."""
ACTIVE: Final = "cluster.upstream_rq_active"
HOSTS: Final = "cluster.membership_healthy"
TIME: Final = "cluster.upstream_rq_time"
GAUGES: Final = (ACTIVE, HOSTS)
BOUNDS: Final = list(LATENCY_BUCKETS_MS)
BUCKETS: Final = len(BOUNDS)

NAN: Final = "not a number"
NEGATIVE: Final = "negative"
LARGE: Final = "too large"
HISTOGRAM: Final = "false histogram"
WRONG_TYPE: Final = "wrong type"
"""Why a value is dropped. A histogram is false whose counts fall from bucket to bucket, or
whose sum its count cannot have."""


@dataclass(slots=True)
class Values:
    """What one message says; axis 0 (K) is the provider, of those that have any counter.

    Counters are cumulative, NaN where the message has none. Times are of the interval since
    the message before.
    """

    names: tuple[ProviderName, ...]
    raw: Floats  # (K, len(RAW))
    active: Floats  # (K,) requests in flight
    times_s: Floats  # (K,) sum of response times
    hist: Floats  # (K, BUCKETS + 1) responses per bucket
    hosts: dict[ProviderName, float] = field(default_factory=dict)  # healthy ones
    samples: int = 0  # values of our providers that were read
    refused: Counter[str] = field(default_factory=Counter)  # of these, what cannot be true


def interesting(name: str, provider: str, code_class: str, ours: frozenset[ProviderName]) -> bool:
    """Whether a metric is one that is read, of one of our providers."""
    if name not in RAW and name not in GAUGES and name != TIME:
        return False
    return provider in ours and code_class in ("", "5")


def why_not(values: Floats, most: Floats) -> Counter[str]:
    """Say why those of these values cannot be true that cannot: by reason, how many."""
    nan, negative = np.isnan(values), values < 0.0
    counts = {NAN: nan.sum(), NEGATIVE: negative.sum(), LARGE: (values > most).sum()}
    return Counter({reason: int(count) for reason, count in counts.items() if count})


def histograms(cumulative: Floats, counts: Floats, sums_ms: Floats) -> tuple[Floats, Floats, int]:
    """Cumulative buckets (K, BUCKETS), totals (K,) and sums to sums in s and counts per bucket.

    Returns also how many histograms were false, and are all zero: counts that fall.
    """
    edges = np.zeros((len(counts), BUCKETS + 2))
    edges[:, 1:-1], edges[:, -1] = cumulative, counts
    hist = np.diff(edges, axis=1)
    false = (hist < 0.0).any(axis=1)
    if false.any():
        hist[false] = 0.0
        sums_ms = np.where(false, 0.0, sums_ms)
    return sums_ms / 1e3, hist, int(false.sum())


def believable(total: float, count: float) -> bool:
    """Whether a histogram's sum in ms and count can be true."""
    return 0.0 <= total <= LONGEST_MS * count and count <= ABSURD  # false for NaN


def rebinned(bounds: Sequence[float], cumulative: Sequence[float]) -> list[float]:
    """Counts below bounds that are not ours (a foreign bootstrap), below ours.

    What a foreign bucket holds goes to the bucket of ours that holds its bound.
    """
    increments = np.diff(np.array(cumulative, dtype=np.float64), prepend=0.0)
    hist = np.zeros(BUCKETS + 1)
    np.add.at(hist, np.searchsorted(LATENCY_BUCKETS_MS, bounds), increments)
    below: list[float] = np.cumsum(hist[:BUCKETS]).tolist()
    return below


class _Reading:
    """One parsed message while it is read; plain lists, which become arrays all at once."""

    def __init__(self, providers: frozenset[ProviderName]) -> None:
        self._providers = providers
        self.counters: dict[ProviderName, list[float]] = {}
        self.active: dict[ProviderName, float] = {}
        self.hosts: dict[ProviderName, float] = {}
        # Sum in ms, count, cumulative counts over our buckets.
        self.times: dict[ProviderName, tuple[float, float, list[float]]] = {}
        self.samples = 0
        self.refused: Counter[str] = Counter()

    def read(self, family: Any) -> None:
        name = family.name
        if name not in RAW and name not in GAUGES and name != TIME:
            return
        for metric in family.metric:
            provider, code_class = labels(metric)
            if not interesting(name, provider, code_class, self._providers):
                continue
            self.samples += 1
            column = RAW.get(name)
            kind = "histogram" if name == TIME else "gauge" if column is None else "counter"
            if not metric.HasField(kind):
                self.refused[WRONG_TYPE] += 1
                continue
            if name == TIME:
                self._read_times(metric.histogram, provider)
                continue
            value = getattr(metric, kind).value
            most = GAUGE_MOST if column is None else ABSURD
            if not 0.0 <= value <= most:  # false for NaN
                self.refused += why_not(np.array([value]), np.array([most]))
            elif name == HOSTS:
                self.hosts[provider] = value
            elif column is None:
                self.active[provider] = value
            else:
                row = self.counters.get(provider)
                if row is None:
                    row = self.counters[provider] = [math.nan] * len(RAW)
                row[column] = value

    def _read_times(self, histogram: Any, provider: ProviderName) -> None:
        total, count = histogram.sample_sum, histogram.sample_count
        if not believable(total, count):
            self.refused[HISTOGRAM] += 1
            return
        buckets = [(b.upper_bound, b.cumulative_count) for b in histogram.bucket]
        bounds, cumulative = [b for b, _ in buckets], [c for _, c in buckets]
        below = cumulative if bounds == BOUNDS else rebinned(bounds, cumulative)
        self.times[provider] = total, count, below


def read_message(message: pb.StreamMetricsMessage, providers: frozenset[ProviderName]) -> Values:
    """Read a parsed message. What cannot be true (NaN, negative, absurd) is dropped."""
    reading = _Reading(providers)
    for family in message.envoy_metrics:
        reading.read(family)
    names = tuple(reading.counters)
    nothing = (0.0, 0.0, [0.0] * BUCKETS)
    times = [reading.times.get(n, nothing) for n in names]
    sums_s, hist, false = histograms(
        np.array([below for _, _, below in times], dtype=np.float64).reshape(len(names), BUCKETS),
        np.array([count for _, count, _ in times], dtype=np.float64),
        np.array([total for total, _, _ in times]),
    )
    if false:
        reading.refused[HISTOGRAM] += false
    return Values(
        names,
        np.array(list(reading.counters.values())).reshape(len(names), len(RAW)),
        np.array([reading.active.get(n, 0.0) for n in names]),
        sums_s,
        hist,
        reading.hosts,
        reading.samples,
        reading.refused,
    )


def labels(metric: Any) -> tuple[ProviderName, str]:
    """Cluster and response code class; "" where there is none."""
    provider = code_class = ""
    for label in metric.label:
        if label.name == CLUSTER_LABEL:
            provider = label.value
        elif label.name == CLASS_LABEL:
            code_class = label.value
    return provider, code_class
