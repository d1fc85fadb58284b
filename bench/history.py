"""What history costs a tick, and its thread: ``python -m bench.history [--size S|M|L] [--json]``.

``tick_ms`` is on the tick's path: the copy of a slot and the record of a tick. ``thread_ms`` is
what the thread spends on one record, ``write_ms`` on one transaction of a second. ``pause_ms`` is
how late a timer of the event loop came at most while the thread worked, ``bare_pause_ms`` without.
``bytes_per_row`` is of the file after ``--ticks`` ticks.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.output import dumped
from xds_server.app.clock import SystemClock
from xds_server.core.tables import Floats
from xds_server.engine.loop import Tick, tick
from xds_server.engine.problem import build_problem
from xds_server.engine.record import Records
from xds_server.engine.state import initial_state
from xds_server.engine.types import Group, Problem
from xds_server.history.batch import Batcher
from xds_server.history.series import SeriesIds
from xds_server.history.store import Store
from xds_server.history.writer import History
from xds_server.model.history import TickRecord
from xds_server.model.ids import GroupKey, Locality
from xds_server.model.snapshot import Node, Overlay
from xds_server.model.telemetry import COUNTERS, LATENCY_BUCKETS_MS, SampleBatch
from xds_server.model.template import Call, Profile, Template
from xds_server.model.topology import (
    Address,
    Application,
    EngineSettings,
    HistorySettings,
    Mesh,
    Mode,
    Price,
    Provider,
    ServerSettings,
    Service,
    TelemetrySettings,
)
from xds_server.observability import Metrics
from xds_server.registry.registry import Registry

SIZES = {"S": (20, 4), "M": (200, 20), "L": (1_000, 100)}
"""Groups of one node each, and services of ten providers each; every group calls ten services,
or as many as there are."""
CALLED = 10
PER_SERVICE = 10
KEEP_S = {"1s": 3600.0, "1m": 7 * 86400.0, "1h": 400 * 86400.0}
TIMER_S = 0.001


class Nowhere:
    """An actuator without sidecars."""

    def publish(self, overlay: Overlay, now_s: float) -> None:
        """Take weights."""

    def renew(self, now_s: float) -> None:
        """Keep them."""


class World:
    """A mesh, a registry full of reports, and one tick of the engine."""

    def __init__(self, groups: int, services: int) -> None:
        self.mesh = _mesh(services)
        endpoints = {p.name: p.endpoints for p in self.mesh.providers.values()}
        found = [_group(i, services) for i in range(groups)]
        self.problem: Problem = build_problem(self.mesh, endpoints, found)
        by_provider = {p.name: p.service for p in self.mesh.providers.values()}
        self.registry = Registry(by_provider, slot_s=1.0, load_valid_s=30.0)
        self.records = Records()
        self.now_s = 0.0
        self._batches = [_report(self.mesh, group) for group in found]
        for group in found:
            (node_id,) = group.nodes
            self.registry.node_connected(Node(node_id, group.key.application), 0.0)
        self.observe()
        self.tick: Tick = tick(
            initial_state(self.problem),
            self.registry.window(self.now_s, 2),
            self.registry.provider_load(self.now_s),
            Nowhere(),
            self.mesh.engine,
            Mode.ENFORCE,
            now_s=self.now_s,
            elapsed_s=1.0,
        )

    def observe(self) -> None:
        """Every node reports once, and the slot is completed."""
        for batch in self._batches:
            self.registry.observe(batch, self.now_s)
        self.registry.roll()
        self.now_s += 1.0

    def record(self) -> TickRecord:
        """Do what the control plane does on the tick's path."""
        return self.records.of(
            self.mesh,
            self.problem,
            self.tick,
            self.registry.newest(),
            at_s=1_800_000_000.0 + self.now_s,
            span_s=1.0,
        )


def measure(world: World, ticks: int) -> dict[str, float]:
    """Times in milliseconds, medians over ``ticks``."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "h.duckdb", KEEP_S, 2**40)
        batcher = Batcher(SeriesIds(store.series()))
        on_tick, in_thread, writing = [], [], []
        rows = 0
        for i in range(ticks):
            world.observe()
            begun = time.perf_counter()
            record = world.record()
            on_tick.append(_ms_since(begun))
            begun = time.perf_counter()
            batcher.add(record)
            in_thread.append(_ms_since(begun))
            begun = time.perf_counter()
            rows += store.write(batcher.take())
            store.maintain(float(i))
            writing.append(_ms_since(begun))
        store.close()
        size_bytes = store.size_bytes()
    return {
        "pairs": len(world.problem.pairs.route),
        "tick_ms": _median(on_tick),
        "tick_max_ms": round(max(on_tick), 2),
        "thread_ms": _median(in_thread),
        "write_ms": _median(writing),
        "write_max_ms": round(max(writing), 2),
        "rows": rows,
        "bytes_per_row": round(size_bytes / max(rows, 1), 1),
    }


async def pause_ms(put: Callable[[], object] | None, seconds: float) -> float:
    """How late a timer came at most, with ``put`` called once a second."""
    loop = asyncio.get_running_loop()
    end_s, due_s, worst_s = loop.time() + seconds, loop.time(), 0.0
    while loop.time() < end_s:
        if put is not None and loop.time() >= due_s:
            due_s += 1.0
            put()
        begun_s = loop.time()
        await asyncio.sleep(TIMER_S)
        worst_s = max(worst_s, loop.time() - begun_s - TIMER_S)
    return round(1e3 * worst_s, 1)


def pauses(world: World, seconds: float) -> dict[str, float]:
    """Pauses of an event loop with and without a history."""
    with tempfile.TemporaryDirectory() as folder:
        settings = HistorySettings("h.duckdb", KEEP_S)
        history = History(settings, Path(folder), Metrics(), SystemClock())
        history.start()
        held = [world.record() for _ in range(int(seconds) + 1)]
        found = asyncio.run(pause_ms(lambda: history.put(held.pop()), seconds))
        history.stop()
    return {"pause_ms": found, "bare_pause_ms": asyncio.run(pause_ms(None, seconds))}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="L")
    parser.add_argument("--ticks", type=int, default=70)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    world = World(*SIZES[options.size])
    result: dict[str, object] = {"size": options.size, **measure(world, options.ticks)}
    result |= pauses(world, 10.0)
    if options.json:
        print(dumped(result))
        return
    for key, value in result.items():
        print(f"{key:14} {value}")


def _mesh(services: int) -> Mesh:
    def provider(s: int, j: int) -> Provider:
        name = f"s{s}-p{j}"
        return Provider(
            name, f"s{s}", endpoints=(Address("127.0.0.1", 9000),), price=Price(1.0 + j)
        )

    templates = {
        f"t{a}": Template(
            f"t{a}",
            tuple(
                Call(f"s{s}", f"127.0.0.1:{15001 + k}")
                for k, s in enumerate(sorted({(a + k) % services for k in range(CALLED)}))
            ),
            (Profile("steady"),),
        )
        for a in range(services)
    }
    return Mesh(
        "bench",
        Mode.ENFORCE,
        engine=EngineSettings(),
        telemetry=TelemetrySettings(),
        services={
            f"s{s}": Service(f"s{s}", tuple(provider(s, j) for j in range(PER_SERVICE)))
            for s in range(services)
        },
        templates=templates,
        applications={f"t{a}": Application(f"t{a}", templates[f"t{a}"]) for a in range(services)},
        server=ServerSettings(),
    )


def _group(i: int, services: int) -> Group:
    name = f"t{i % services}"
    key = GroupKey(name, "steady", Locality(f"r{i}"))
    return Group(key, frozenset({f"n{i}"}), name, None, 0.0)


def _report(mesh: Mesh, group: Group) -> SampleBatch:
    """What a node's sidecar counts in a second."""
    calls = mesh.applications[group.key.application].template.calls
    names = tuple(p.name for call in calls for p in mesh.services[call.service].providers)
    (node_id,) = group.nodes
    rng = np.random.default_rng(int(node_id[1:]))
    hist: Floats = np.zeros((len(names), len(LATENCY_BUCKETS_MS) + 1))
    hist[:, 6:12] = rng.poisson(0.5, (len(names), 6))
    counts = np.zeros((len(names), len(COUNTERS)))
    counts[:, 0] = hist.sum(axis=1)
    return SampleBatch(node_id, names, 1.0, counts, 0.02 * counts[:, 0], hist, np.ones(len(names)))


def _ms_since(begun: float) -> float:
    return 1e3 * (time.perf_counter() - begun)


def _median(values: list[float]) -> float:
    return round(float(np.median(values)), 2)


if __name__ == "__main__":
    main()
