"""Messages of Envoy's metrics service to batches of samples.

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
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from xds_server.errors import RemoteProtocolError
from xds_server.generated import xds_server_metrics_pb2 as pb
from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, Floats, SampleBatch
from xds_server.telemetry.counters import Bases

METRICS_MAX: Final = 200_000
"""Metric families in one message; the message is dropped beyond."""
ABSURD: Final = 1e15
"""Counters above this are not believed."""
_CLUSTER_LABEL: Final = "envoy.cluster_name"
_CLASS_LABEL: Final = "envoy.response_code_class"
_BUCKETS: Final = len(LATENCY_BUCKETS_MS)
_BOUNDS: Final = list(LATENCY_BUCKETS_MS)
# Raw counters in the order of a provider's array.
_RAW: Final = {
    "cluster.upstream_rq_total": 0,
    "cluster.upstream_rq_pending_failure_eject": 1,
    "cluster.upstream_rq_cancelled": 2,
    "cluster.upstream_cx_none_healthy": 3,
    "cluster.upstream_rq_xx": 4,  # upstream_rq_5xx, its class made a label
    "cluster.upstream_rq_retry": 5,
    "cluster.upstream_cx_rx_bytes_total": 6,
    "cluster.upstream_cx_tx_bytes_total": 7,
}
_ACTIVE: Final = "cluster.upstream_rq_active"
_HOSTS: Final = "cluster.membership_healthy"
_TIME: Final = "cluster.upstream_rq_time"


class _Reading:
    """One message while it is read; plain lists, which become arrays all at once."""

    def __init__(self) -> None:
        self.counters: dict[ProviderName, list[float]] = {}
        self.active: dict[ProviderName, float] = {}
        self.hosts: dict[ProviderName, float] = {}
        # Sum in ms, count, cumulative counts over our buckets.
        self.times: dict[ProviderName, tuple[float, int, list[float]]] = {}


class MetricsDecoder:
    """Decodes one stream's messages; the bases belong to all streams together.

    What cannot be true (NaN, negative, absurd) is dropped and counted, what is not a
    provider's is ignored. ``hosts`` are the healthy hosts per provider of the message that
    was decoded last.
    """

    def __init__(self, bases: Bases, providers: frozenset[ProviderName]) -> None:
        self._bases, self._providers = bases, providers
        self.samples = 0
        self.dropped = 0
        self.hosts: dict[ProviderName, float] = {}

    def decode(
        self, message: pb.StreamMetricsMessage, node_id: NodeId, now_s: float
    ) -> SampleBatch | None:
        """Return the increments since the node's message before; None for its first."""
        if len(message.envoy_metrics) > METRICS_MAX:
            self.dropped += len(message.envoy_metrics)
            return None
        reading = _Reading()
        for family in message.envoy_metrics:
            self._read(family, reading)
        self.hosts = reading.hosts
        names = tuple(reading.counters)
        current = np.array(list(reading.counters.values())).reshape(len(names), len(_RAW))
        base = self._bases.get(node_id)
        if base is None:
            self._bases.start(node_id, names, current, now_s)
            return None
        raw, covered_s = base.advance(names, current, now_s)
        attempts, failures = raw[:, :4].sum(axis=1), raw[:, 4] + raw[:, 5]
        latency_sum_s, latency_hist = self._times(names, reading)
        return SampleBatch(
            node_id,
            names,
            covered_s,
            np.stack([attempts, failures, raw[:, 6], raw[:, 7]], axis=1),
            latency_sum_s,
            latency_hist,
            np.array([reading.active.get(n, 0.0) for n in names]),
        )

    def _read(self, family: Any, reading: _Reading) -> None:
        name = family.name
        column = _RAW.get(name)
        if column is None and name not in (_ACTIVE, _HOSTS, _TIME):
            return
        for metric in family.metric:
            provider, code_class = _labels(metric)
            if provider not in self._providers or code_class not in ("", "5"):
                continue
            self.samples += 1
            if name == _TIME:
                self._read_times(metric.histogram, provider, reading)
                continue
            value = metric.gauge.value if column is None else metric.counter.value
            if not 0.0 <= value <= ABSURD:  # false for NaN
                self.dropped += 1
            elif name == _HOSTS:
                reading.hosts[provider] = value
            elif column is None:
                reading.active[provider] = value
            else:
                row = reading.counters.get(provider)
                if row is None:
                    row = reading.counters[provider] = [math.nan] * len(_RAW)
                row[column] = value

    def _read_times(self, histogram: Any, provider: ProviderName, reading: _Reading) -> None:
        total, count = histogram.sample_sum, histogram.sample_count
        if not 0.0 <= total <= ABSURD or count > ABSURD:  # true for NaN
            self.dropped += 1
            return
        buckets = [(b.upper_bound, b.cumulative_count) for b in histogram.bucket]
        bounds, cumulative = [b for b, _ in buckets], [c for _, c in buckets]
        if bounds != _BOUNDS:
            cumulative = _rebinned(bounds, cumulative)
        reading.times[provider] = total, count, cumulative

    def _times(self, names: tuple[ProviderName, ...], reading: _Reading) -> tuple[Floats, Floats]:
        """Sums in s, and counts per bucket."""
        nothing = (0.0, 0, [0.0] * _BUCKETS)
        times = [reading.times.get(n, nothing) for n in names]
        edges = np.zeros((len(names), _BUCKETS + 2))
        for k, (_, count, cumulative) in enumerate(times):
            edges[k, 1:-1], edges[k, -1] = cumulative, count
        hist = np.diff(edges, axis=1)
        false = (hist < 0.0).any(axis=1)
        self.dropped += int(false.sum())
        hist[false] = 0.0
        total_s = np.array([total for total, _, _ in times]) / 1e3
        return np.where(false, 0.0, total_s), hist


def _rebinned(bounds: list[float], cumulative: list[int]) -> list[float]:
    """Counts below bounds that are not ours (a foreign bootstrap), below ours.

    What a foreign bucket holds goes to the bucket of ours that holds its bound.
    """
    increments = np.diff(np.array(cumulative, dtype=np.float64), prepend=0.0)
    hist = np.zeros(_BUCKETS + 1)
    np.add.at(hist, np.searchsorted(LATENCY_BUCKETS_MS, bounds), increments)
    below: list[float] = np.cumsum(hist[:_BUCKETS]).tolist()
    return below


def parse_metrics(body: bytes) -> pb.StreamMetricsMessage:
    """Read one message. Raises RemoteProtocolError when it is none."""
    message = pb.StreamMetricsMessage()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise RemoteProtocolError(f"metrics do not parse: {error}") from None
    return message


def _labels(metric: Any) -> tuple[ProviderName, str]:
    """Cluster and response code class; "" where there is none."""
    provider = code_class = ""
    for label in metric.label:
        if label.name == _CLUSTER_LABEL:
            provider = label.value
        elif label.name == _CLASS_LABEL:
            code_class = label.value
    return provider, code_class
