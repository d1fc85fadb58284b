"""What telemetry costs: sidecars' metrics into the registry, beside a bare parse of the same bytes.

``python -m bench.ingest [--sidecars 1000] [--series 200] [--json]``. Ours is the whole path of a
message: decode, difference, histograms, windows, and once per flush of all sidecars the
completed slot. Bare is upb's ``ParseFromString`` and one look at each value. Runs take turns in
one process, on one core; figures are medians. See ``bench/README.md``.
"""

import argparse
import gc
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np

from bench.output import dumped
from xds_server.generated import xds_server_metrics_pb2 as pb
from xds_server.model.snapshot import Node
from xds_server.model.telemetry import LATENCY_BUCKETS_MS
from xds_server.registry.registry import Registry
from xds_server.telemetry.counters import Bases
from xds_server.telemetry.layout import Layouts
from xds_server.telemetry.metrics import MetricsDecoder

NUMBERS = (
    "cluster.upstream_rq_total",
    "cluster.upstream_rq_pending_failure_eject",
    "cluster.upstream_rq_cancelled",
    "cluster.upstream_cx_none_healthy",
    "cluster.upstream_rq_retry",
    "cluster.upstream_rq_timeout",
    "cluster.upstream_rq_rx_reset",
    "cluster.upstream_cx_connect_fail",
    "cluster.upstream_cx_rx_bytes_total",
    "cluster.upstream_cx_tx_bytes_total",
)
GAUGES = ("cluster.upstream_rq_active", "cluster.membership_healthy")
PER_PROVIDER = len(NUMBERS) + len(GAUGES) + 2  # and the 5xx of a class, and the histogram
START_MS = 1_760_000_000_000
FLUSHES_PER_DAY = 86_400


@dataclass(frozen=True, slots=True)
class World:
    """Sidecars that all call the same providers."""

    sidecars: int
    providers: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of the providers."""
        return tuple(f"provider-{j:04}" for j in range(self.providers))

    @property
    def series(self) -> int:
        """Of one sidecar."""
        return self.providers * PER_PROVIDER


class Sidecar:
    """Writes its statistics as Envoy does: cumulative counters, interval histograms."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._generator = np.random.default_rng(seed)
        self._counters = np.ones((world.providers, len(NUMBERS) + 1))

    def flush(self, at_ms: int) -> bytes:
        """Return the next message."""
        message = pb.StreamMetricsMessage()
        draw = self._generator
        self._counters += draw.integers(1, 60, self._counters.shape)
        for provider, counters in zip(self._world.names, self._counters.tolist(), strict=True):
            for name, value in zip((*NUMBERS, "cluster.upstream_rq_xx"), counters, strict=True):
                metric = _metric(message, name, provider, at_ms)
                metric.counter.value = value
                if name.endswith("_xx"):
                    metric.label.add(name="envoy.response_code_class", value="5")
            for name in GAUGES:
                _metric(message, name, provider, at_ms).gauge.value = float(draw.integers(1, 9))
            histogram = _metric(message, "cluster.upstream_rq_time", provider, at_ms).histogram
            below = np.cumsum(draw.integers(0, 12, len(LATENCY_BUCKETS_MS))).tolist()
            histogram.sample_count, histogram.sample_sum = below[-1], 40.0 * below[-1]
            for bound, count in zip(LATENCY_BUCKETS_MS, below, strict=True):
                histogram.bucket.add(cumulative_count=count, upper_bound=bound)
        return bytes(message.SerializeToString())


def _metric(message: pb.StreamMetricsMessage, name: str, provider: str, at_ms: int) -> pb.Metric:
    metric = message.envoy_metrics.add(name=name).metric.add(timestamp_ms=at_ms)
    metric.label.add(name="envoy.cluster_name", value=provider)
    return metric


class Ours:
    """Registry and decoders as the metrics service uses them."""

    def __init__(self, world: World) -> None:
        self.registry = Registry(
            dict.fromkeys(world.names, "service"), slot_s=1.0, load_valid_s=30.0
        )
        bases, layouts = Bases(), Layouts()
        self._nodes = [f"n{i}" for i in range(world.sidecars)]
        providers = self.registry.providers
        self._decoders = [MetricsDecoder(bases, providers, layouts) for _ in self._nodes]
        for node_id in self._nodes:
            self.registry.node_connected(Node(node_id, "shop"), 0.0)

    def take(self, bodies: list[bytes], now_s: float) -> None:
        """One flush of every sidecar, and the tick that completes the slot."""
        for node_id, decoder, body in zip(self._nodes, self._decoders, bodies, strict=True):
            batch = decoder.decode(body, node_id, now_s)
            self.registry.observe_hosts(node_id, decoder.hosts, now_s)
            if batch is not None:
                self.registry.observe(batch, now_s)
        self.registry.roll()


def bare(bodies: list[bytes]) -> float:
    """Parse, and look at every value once."""
    total = 0.0
    for body in bodies:
        message = pb.StreamMetricsMessage()
        message.ParseFromString(body)
        for family in message.envoy_metrics:
            for metric in family.metric:
                if metric.HasField("counter"):
                    total += metric.counter.value
                elif metric.HasField("gauge"):
                    total += metric.gauge.value
                else:
                    histogram = metric.histogram
                    total += histogram.sample_sum
                    for bucket in histogram.bucket:
                        total += bucket.cumulative_count
    return total


def _cpu_s(work: object, *arguments: object) -> float:
    begun = time.process_time()
    work(*arguments)  # type: ignore[operator]
    return time.process_time() - begun


def measure(world: World, flushes: int) -> dict[str, float]:
    """Interleave flushes of ours with bare parses of the same bytes."""
    sidecars = [Sidecar(world, seed) for seed in range(world.sidecars)]
    ours = Ours(world)
    ours.take([s.flush(START_MS) for s in sidecars], 0.0)  # a base, and the layouts
    ours.take([s.flush(START_MS + 1000) for s in sidecars], 1.0)
    pairs, size = [], 0
    gc.collect()
    for k in range(2, 2 + flushes):
        bodies = [s.flush(START_MS + 1000 * k) for s in sidecars]
        size = sum(map(len, bodies))
        pairs.append((_cpu_s(ours.take, bodies, float(k)), _cpu_s(bare, bodies)))
    mine, theirs = np.array(pairs).T
    series = world.sidecars * world.series
    return {
        "cpu_ratio": float(np.median(mine / theirs)),
        "metrics_per_s": series / float(np.median(mine)),
        "bare_metrics_per_s": series / float(np.median(theirs)),
        "us_per_message": 1e6 * float(np.median(mine)) / world.sidecars,
        "bytes_per_message": size / world.sidecars,
    }


def memory(world: World) -> dict[str, float]:
    """Bytes that are held per (sidecar, provider)."""
    sidecars = [Sidecar(world, seed) for seed in range(world.sidecars)]
    bodies = [[s.flush(START_MS + 1000 * k) for s in sidecars] for k in range(3)]
    gc.collect()
    tracemalloc.start()
    ours = Ours(world)
    for k, flush in enumerate(bodies):
        ours.take(flush, float(k))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"bytes_per_pair": held / (world.sidecars * world.providers), "held_bytes": float(held)}


def day(world: World) -> dict[str, float]:
    """Growth of what is held over a simulated day of a few sidecars, in bytes.

    Eight flushes take turns; between the last and the first of them the sidecars' clocks go
    back, and their counters start anew, which is taken in like any other.
    """
    few = World(min(world.sidecars, 10), world.providers)
    sidecars = [Sidecar(few, seed) for seed in range(few.sidecars)]
    ours = Ours(few)
    bodies = [[s.flush(START_MS + 1000 * k) for s in sidecars] for k in range(8)]
    tracemalloc.start()
    after_hour = 0
    steps = FLUSHES_PER_DAY // 24  # 24 s apart
    for k in range(steps):
        ours.take(bodies[k % len(bodies)], 24.0 * k)
        if k == steps // 24:
            gc.collect()
            after_hour = tracemalloc.get_traced_memory()[0]
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - after_hour
    tracemalloc.stop()
    return {"day_growth_bytes": float(grown)}


def curve(series: int) -> list[dict[str, float]]:
    """Cost of a flush, and what is held, for growing numbers of sidecars and of providers."""
    providers = max(series // PER_PROVIDER, 1)
    worlds = [World(count, providers) for count in (50, 200, 800)]
    worlds += [World(100, count * providers) for count in (1, 4)]
    return [_point(world) for world in worlds]


def _point(world: World) -> dict[str, float]:
    found = measure(world, 3)
    pairs = world.sidecars * world.providers
    return {
        "sidecars": world.sidecars,
        "providers": world.providers,
        "us_per_pair": 1e6 * world.series * world.sidecars / found["metrics_per_s"] / pairs,
        "bytes_per_pair": memory(world)["bytes_per_pair"],
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sidecars", type=int, default=1000)
    parser.add_argument("--series", type=int, default=200, help="per sidecar")
    parser.add_argument("--flushes", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    world = World(chosen.sidecars, max(chosen.series // PER_PROVIDER, 1))
    result: dict[str, object] = {
        "sidecars": world.sidecars,
        "providers": world.providers,
        "series": world.series,
        **measure(world, chosen.flushes),
        **memory(world),
        **day(world),
        "curve": curve(chosen.series),
    }
    if chosen.json:
        print(dumped(result))
        return
    for key, value in result.items():
        print(f"{key:20} {value}")


if __name__ == "__main__":
    main()
