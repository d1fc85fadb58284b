"""Messages as Envoy writes them, for tests of what reads them."""

from collections.abc import Sequence
from itertools import count
from typing import Any

from envoy.config.core.v3 import base_pb2

from xds_server.generated import xds_server_metrics_pb2 as pb
from xds_server.model.telemetry import LATENCY_BUCKETS_MS
from xds_server.telemetry.metrics import parse_metrics

COUNTERS = {
    "total": "cluster.upstream_rq_total",
    "eject": "cluster.upstream_rq_pending_failure_eject",
    "cancelled": "cluster.upstream_rq_cancelled",
    "none_healthy": "cluster.upstream_cx_none_healthy",
    "5xx": "cluster.upstream_rq_xx",
    "retry": "cluster.upstream_rq_retry",
    "rx": "cluster.upstream_cx_rx_bytes_total",
    "tx": "cluster.upstream_cx_tx_bytes_total",
}


NOW_MS = 1_760_000_000_000


_seconds = count()


class Message:
    """One StreamMetricsMessage while it is built; each is a second younger, unless said."""

    def __init__(self, node_id: str = "", at_ms: int | None = None) -> None:
        self._at_ms = NOW_MS + 1000 * next(_seconds) if at_ms is None else at_ms
        self._message = pb.StreamMetricsMessage()
        if node_id:
            node = base_pb2.Node(id=node_id, cluster="shop")
            self._message.identifier.node = node.SerializeToString()

    def counts(self, provider: str, **values: float) -> "Message":
        for short, value in values.items():
            name = COUNTERS[short.removeprefix("_")]
            metric = self._metric(name, provider)
            metric.counter.value = value
            if name.endswith("_xx"):
                metric.label.add(name="envoy.response_code_class", value="5")
        return self

    def active(self, provider: str, value: float) -> "Message":
        self._metric("cluster.upstream_rq_active", provider).gauge.value = value
        return self

    def gauge(self, name: str, provider: str, value: float) -> "Message":
        self._metric(name, provider).gauge.value = value
        return self

    def times(
        self,
        provider: str,
        cumulative: Sequence[int],
        *,
        sum_ms: float = 0.0,
        responses: int | None = None,
        bounds: Sequence[float] = LATENCY_BUCKETS_MS,
    ) -> "Message":
        histogram = self._metric("cluster.upstream_rq_time", provider).histogram
        histogram.sample_count = cumulative[-1] if responses is None else responses
        histogram.sample_sum = sum_ms
        for bound, seen in zip(bounds, cumulative, strict=False):
            histogram.bucket.add(cumulative_count=seen, upper_bound=bound)
        return self

    def other(self, name: str, **labels: str) -> "Message":
        metric = self._metric(name, None)
        metric.counter.value = 1e6
        for label, value in labels.items():
            metric.label.add(name=label.replace("__", "."), value=value)
        return self

    @property
    def body(self) -> bytes:
        return self._message.SerializeToString()

    @property
    def ours(self) -> pb.StreamMetricsMessage:
        return parse_metrics(self.body)

    def _metric(self, name: str, provider: str | None) -> Any:
        metric = self._message.envoy_metrics.add(name=name).metric.add(timestamp_ms=self._at_ms)
        if provider is not None:
            metric.label.add(name="envoy.cluster_name", value=provider)
        return metric
