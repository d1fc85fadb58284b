"""One OTLP export as arrays.

Envoy's sink names metrics and attributes as its metrics service names families and labels, so
the same table says what is read (``values.RAW``). What differs was measured on Envoy 1.40
(``tests/e2e/test_otlp_envoy.py``):

* One metric per series, integers; a histogram's buckets are not cumulative.
* With cumulative temporality histograms are cumulative too, since the start of the process, as
  counters are: nothing is lost with a message. ``start_time_unix_nano`` is then that start, and
  in microseconds.
* With delta temporality a counter that did not move, and a histogram without responses, is
  left out.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from xds_server.errors import RemoteProtocolError
from xds_server.generated import xds_server_otlp_pb2 as pb
from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import Floats
from xds_server.telemetry.messages import parsed
from xds_server.telemetry.values import (
    ABSURD,
    BOUNDS,
    BUCKETS,
    CLASS_LABEL,
    CLUSTER_LABEL,
    GAUGE_MOST,
    GAUGES,
    HISTOGRAM,
    HOSTS,
    LARGE,
    NAN,
    NEGATIVE,
    RAW,
    TIME,
    believable,
    interesting,
    rebinned,
)

NODE_ATTRIBUTE: Final = "service.instance.id"
"""The resource attribute that says whose metrics they are
(https://opentelemetry.io/docs/specs/semconv/resource/#service)."""
BOUNDS_MAX: Final = 512
"""Buckets of one histogram; of more it is dropped."""
TIMES: Final = BUCKETS + 2
"""Columns of a histogram: its buckets, and then the sum in ms."""
WRONG_TYPE: Final = "wrong type"
NO_TEMPORALITY: Final = "no temporality"
_DELTA: Final = pb.AGGREGATION_TEMPORALITY_DELTA
_CUMULATIVE: Final = pb.AGGREGATION_TEMPORALITY_CUMULATIVE
_MICROSECONDS_BELOW: Final = 10**17  # 1973 in nanoseconds, the year 5138 in microseconds
_NAN_COUNTERS: Final = (math.nan,) * len(RAW)
_NAN_TIMES: Final = (math.nan,) * TIMES


@dataclass(slots=True)
class OtlpValues:
    """What one export says; axis 0 (K) is the provider, of those that have any counter.

    Totals are cumulative, NaN where there is none. Deltas are increments since the node's
    export before, 0 where there is none.
    """

    names: tuple[ProviderName, ...]
    raw: Floats  # (K, len(RAW)) totals
    times: Floats  # (K, TIMES) totals
    raw_delta: Floats  # (K, len(RAW))
    times_delta: Floats  # (K, TIMES)
    active: Floats  # (K,) requests in flight
    hosts: dict[ProviderName, float] = field(default_factory=dict)  # healthy ones
    start_ms: int = 0  # since when totals count, 0: it is not said
    sent_ms: int = 0  # 0: it is not said
    samples: int = 0  # values of our providers that were read
    refused: Counter[str] = field(default_factory=Counter)  # of these, what cannot be true


def parse_otlp(body: bytes) -> pb.ExportMetricsServiceRequest:
    """Read one export. Raises RemoteProtocolError when it is none, or too large to be read."""
    return parsed(pb.ExportMetricsServiceRequest, body)


def node_of(message: pb.ExportMetricsServiceRequest) -> NodeId:
    """Say whose export it is. Raises RemoteProtocolError when it is nobody's, or of several."""
    found = {
        attribute.value.string_value
        for resource in message.resource_metrics
        for attribute in resource.resource.attributes
        if attribute.key == NODE_ATTRIBUTE
    }
    if len(found) != 1 or "" in found:
        raise RemoteProtocolError(
            f"an export needs the resource attribute {NODE_ATTRIBUTE}, one node's id"
        )
    return found.pop()


def read_otlp(
    message: pb.ExportMetricsServiceRequest, providers: frozenset[ProviderName]
) -> OtlpValues:
    """Read a parsed export. What cannot be true is dropped and counted."""
    reading = _Reading(providers)
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                reading.read(metric)
    return reading.values()


class _Reading:
    """One export while it is read; plain lists, which become arrays all at once."""

    def __init__(self, providers: frozenset[ProviderName]) -> None:
        self._providers = providers
        self._raw: dict[ProviderName, list[float]] = {}
        self._raw_delta: dict[ProviderName, list[float]] = {}
        self._times: dict[ProviderName, list[float]] = {}
        self._times_delta: dict[ProviderName, list[float]] = {}
        self._active: dict[ProviderName, float] = {}
        self._hosts: dict[ProviderName, float] = {}
        self._start_ns: list[int] = []
        self._sent_ns = 0
        self._samples = 0
        self._refused: Counter[str] = Counter()

    def read(self, metric: Any) -> None:
        name = metric.name
        if name not in RAW and name not in GAUGES and name != TIME:
            return
        kind = "histogram" if name == TIME else "sum" if name in RAW else "gauge"
        said = metric.WhichOneof("data")
        if said is None:
            return
        data = getattr(metric, said)
        for point in data.data_points:
            provider, code_class = _labels(point.attributes)
            if not interesting(name, provider, code_class, self._providers):
                continue
            self._samples += 1
            if said != kind:
                self._refused[WRONG_TYPE] += 1
                continue
            self._sent_ns = max(self._sent_ns, point.time_unix_nano)
            if kind == "gauge":
                self._gauge(name, provider, point)
            else:
                self._counted(name, provider, point, data.aggregation_temporality)

    def _gauge(self, name: str, provider: ProviderName, point: Any) -> None:
        value = self._believed(point, GAUGE_MOST)
        if value is not None:
            (self._hosts if name == HOSTS else self._active)[provider] = value

    def _counted(self, name: str, provider: ProviderName, point: Any, temporality: int) -> None:
        if temporality not in (_DELTA, _CUMULATIVE):
            self._refused[NO_TEMPORALITY] += 1
            return
        delta = temporality == _DELTA
        if not delta and point.start_time_unix_nano:
            self._start_ns.append(point.start_time_unix_nano)
        if name == TIME:
            row = _histogram(point)
            if row is None:
                self._refused[HISTOGRAM] += 1
            elif delta:
                before = self._times_delta.get(provider, [0.0] * TIMES)
                self._times_delta[provider] = [a + b for a, b in zip(before, row, strict=True)]
            else:
                self._times[provider] = row
            return
        value = self._believed(point, ABSURD)
        if value is None:
            return
        if delta:
            self._raw_delta.setdefault(provider, [0.0] * len(RAW))[RAW[name]] += value
        else:
            self._raw.setdefault(provider, list(_NAN_COUNTERS))[RAW[name]] = value

    def _believed(self, point: Any, most: float) -> float | None:
        said = point.WhichOneof("value")
        value = float(getattr(point, said)) if said is not None else math.nan
        if 0.0 <= value <= most:
            return value
        self._refused[NAN if value != value else NEGATIVE if value < 0.0 else LARGE] += 1
        return None

    def values(self) -> OtlpValues:
        parts = (self._raw, self._raw_delta, self._times, self._times_delta)
        names = tuple(dict.fromkeys(name for part in parts for name in part))
        no_counters, no_times = (0.0,) * len(RAW), (0.0,) * TIMES
        return OtlpValues(
            names,
            _rows(names, self._raw, _NAN_COUNTERS),
            _rows(names, self._times, _NAN_TIMES),
            _rows(names, self._raw_delta, no_counters),
            _rows(names, self._times_delta, no_times),
            np.array([self._active.get(n, 0.0) for n in names]),
            self._hosts,
            _ms(min(self._start_ns, default=0)),
            self._sent_ns // 10**6,
            self._samples,
            self._refused,
        )


def _rows(
    names: tuple[ProviderName, ...],
    found: dict[ProviderName, list[float]],
    nothing: tuple[float, ...],
) -> Floats:
    rows = [found.get(name, nothing) for name in names]
    return np.array(rows, dtype=np.float64).reshape(len(names), len(nothing))


def _histogram(point: Any) -> list[float] | None:
    """Responses per bucket of ours and their sum in ms; None when it cannot be true."""
    total, count = point.sum, point.count
    counts = list(point.bucket_counts)
    bounds = list(point.explicit_bounds)
    shaped = len(counts) == len(bounds) + 1 if counts else count == 0
    if not shaped or len(bounds) > BOUNDS_MAX or sum(counts) != count:
        return None
    if not believable(total, count):
        return None
    if not counts:
        return [0.0] * TIMES
    if bounds != BOUNDS:
        below = rebinned(bounds, np.cumsum(np.array(counts[:-1], dtype=np.float64)).tolist())
        counts = [b - a for a, b in zip([0.0, *below], [*below, float(count)], strict=True)]
    return [*map(float, counts), total]


def _labels(attributes: Iterable[Any]) -> tuple[ProviderName, str]:
    """Cluster and response code class; "" where there is none."""
    provider = code_class = ""
    for attribute in attributes:
        if attribute.key == CLUSTER_LABEL:
            provider = attribute.value.string_value
        elif attribute.key == CLASS_LABEL:
            code_class = attribute.value.string_value
    return provider, code_class


def _ms(start: int) -> int:
    """A start as nanoseconds, or as the microseconds that Envoy writes, in ms."""
    return start // 10**3 if start < _MICROSECONDS_BELOW else start // 10**6
