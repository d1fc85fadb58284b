"""OTLP exports as Envoy writes them, for tests of what reads them."""

from collections.abc import Sequence
from typing import Any

from tests.unit.telemetry_messages import COUNTERS
from xds_server.generated import xds_server_otlp_pb2 as pb
from xds_server.model.telemetry import LATENCY_BUCKETS_MS
from xds_server.telemetry.otlp_values import NODE_ATTRIBUTE

START_MS = 1_760_000_000_000
DELTA = pb.AGGREGATION_TEMPORALITY_DELTA
CUMULATIVE = pb.AGGREGATION_TEMPORALITY_CUMULATIVE


class Export:
    """One ExportMetricsServiceRequest while it is built, sent ``at_ms`` after the start."""

    def __init__(
        self,
        node_id: str = "n",
        at_ms: int = 1000,
        *,
        start_ms: int = START_MS,
        temporality: int = CUMULATIVE,
    ) -> None:
        self._message = pb.ExportMetricsServiceRequest()
        self._resource = self._message.resource_metrics.add()
        if node_id:
            self._attribute(self._resource.resource, NODE_ATTRIBUTE, node_id)
        self._scope = self._resource.scope_metrics.add()
        self._sent_ns = (START_MS + at_ms) * 10**6
        self._start_us = start_ms * 10**3  # as Envoy has it
        self._temporality: Any = temporality

    def counts(self, provider: str, **values: int) -> "Export":
        for short, value in values.items():
            name = COUNTERS[short.removeprefix("_")]
            labels = {"envoy.cluster_name": provider}
            if name.endswith("_xx"):
                labels["envoy.response_code_class"] = "5"
            self.sum(name, labels).as_int = value
        return self

    def sum(self, name: str, labels: dict[str, str]) -> Any:
        """A sum's point, without its value."""
        metric = self._scope.metrics.add(name=name)
        metric.sum.aggregation_temporality = self._temporality
        return self._point(metric.sum, labels)

    def gauge(self, name: str, provider: str) -> Any:
        """A gauge's point, without its value."""
        metric = self._scope.metrics.add(name=name)
        return self._point(metric.gauge, {"envoy.cluster_name": provider})

    def times(
        self,
        provider: str,
        buckets: Sequence[int],
        *,
        sum_ms: float = 0.0,
        count: int | None = None,
        bounds: Sequence[float] = LATENCY_BUCKETS_MS,
    ) -> "Export":
        metric = self._scope.metrics.add(name="cluster.upstream_rq_time")
        metric.histogram.aggregation_temporality = self._temporality
        point = self._point(metric.histogram, {"envoy.cluster_name": provider})
        point.count = sum(buckets) if count is None else count
        point.sum = sum_ms
        point.bucket_counts.extend(buckets)
        point.explicit_bounds.extend(bounds)
        return self

    @property
    def body(self) -> bytes:
        return self._message.SerializeToString()

    def _point(self, data: Any, labels: dict[str, str]) -> Any:
        point = data.data_points.add(time_unix_nano=self._sent_ns)
        point.start_time_unix_nano = self._start_us
        for key, value in labels.items():
            self._attribute(point, key, value)
        return point

    @staticmethod
    def _attribute(to: Any, key: str, value: str) -> None:
        to.attributes.add(key=key).value.string_value = value
