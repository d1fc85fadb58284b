"""How long one decision takes, from the window that was measured to bytes for sidecars.

``python -m bench.tick [--size S|M|L] [--json]``. Times the engine's own tick (evaluate,
bottlenecks, generate, simulate, select, deploy, learn) over a synthetic mesh, with the real
publisher that encodes what changed. Beside it the floor in the same run: six bare passes of
softmax and bincount over the same arrays, what six iterations of any such solver must do.
``stages_ms`` is the median of each stage, and of the dear parts within.

Garbage is collected as a server has it (``xds_server.app.collector``), which leaves out for good
what exists when it starts: here, when the mesh is built and its first ticks are over.
"""

import argparse
import gc
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from bench.arguments import positive_integer
from bench.output import dumped
from xds_server.app import collector
from xds_server.cache.publisher import Publisher
from xds_server.core import latency, solver
from xds_server.core.latency import Stations
from xds_server.core.tables import Floats
from xds_server.engine import evaluate, loop
from xds_server.engine.loop import Tick, tick
from xds_server.engine.problem import build_problem
from xds_server.engine.state import EngineState, initial_state
from xds_server.engine.types import Group
from xds_server.model.ids import GroupKey, Locality
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, PairWindow, ProviderLoad
from xds_server.model.template import Call, Profile, Template
from xds_server.model.topology import (
    Address,
    Application,
    Capacity,
    EngineSettings,
    Mesh,
    Mode,
    Price,
    Provider,
    ServerSettings,
    Service,
    TelemetrySettings,
)
from xds_server.resources.mesh import MeshResources

SIZES = {"S": (200, 40), "M": (2_000, 200), "L": (10_000, 1_000)}
PER_ROUTE = 10
CURVE = (1_000, 10_000, 100_000, 1_000_000)
TICKS = 40
FLOOR_PASSES = 6
CALLS = 10
"""Services that one application calls, and so routes of one group."""
REGIONS = 4
LOAD_RATIO = 0.6
STAGES: tuple[tuple[object, str], ...] = (
    (loop, "evaluate"),
    (evaluate, "observe"),
    (evaluate, "update_models"),
    (loop, "find_bottlenecks"),
    (loop, "generate"),
    (solver, "solve"),
    (loop, "simulate"),
    (loop, "select"),
    (loop, "survive"),
    (loop, "foresee"),
    (loop, "review"),
    (loop, "account"),
    (loop, "deploy"),
    (Publisher, "publish"),
    (loop, "learn"),
    (loop, "follow"),
)
"""What is timed, by where it is called from; parts come after what they are part of."""
_BOUNDS_S = np.array(LATENCY_BUCKETS_MS) / 1e3


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", choices=SIZES, default="L")
    parser.add_argument("--ticks", type=positive_integer, default=TICKS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-curve", action="store_true", help="only the one size")
    options = parser.parse_args()
    result = measure(*SIZES[options.size], options.ticks)
    result["size"] = options.size
    result["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
    if not options.no_curve:
        result["curve"] = {str(p): curve_point(p) for p in CURVE}
    if options.json:
        print(dumped(result))
        return
    for key, value in result.items():
        print(f"{key:14} {value}")


def measure(routes: int, providers: int, ticks: int = TICKS) -> dict[str, object]:
    """Run a drifting mesh for that many ticks; times in milliseconds."""
    world = World(routes, providers)
    # The first are cold: models start, maps are made. Like the runner, keep none but the last.
    last = [world.tick() for _ in range(3)][-1:]
    gc.collect()
    collector.tune()
    floors, times, found = [], [], []
    with timed_stages() as stages:
        for _ in range(ticks):
            world.drift()
            floors.append(timed_ms(world.floor))
            times.append(timed_ms(lambda: last.__setitem__(0, world.tick())))
            decision = last[0].decision
            found.append((decision.gap_ratio, decision.iterations, moved(last[0])))
    gc.unfreeze()  # a curve measures several meshes
    p50, p99 = np.percentile(times, [50, 99])
    floor = float(np.median(floors))
    return {
        "pairs": len(world.state.problem.pairs.route),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "floor_ms": round(floor, 2),
        "floor_ratio": round(float(p50) / floor, 2),
        "gap_ratio": float(f"{max(gap for gap, _, _ in found):.2e}"),
        "iterations": round(float(np.mean([iterations for _, iterations, _ in found])), 1),
        "routes_moved": round(float(np.mean([routes for _, _, routes in found])), 1),
        "stages_ms": {name: round(float(np.median(ms)), 2) for name, ms in stages.items()},
    }


def moved(done: Tick) -> int:
    """How many routes got other weights."""
    return int((done.decision.move > 0).sum())


def curve_point(pairs: int) -> float:
    """p50 of a tick over that many pairs, ms."""
    found = measure(pairs // PER_ROUTE, max(20, pairs // 100), ticks=7)
    return float(str(found["p50_ms"]))


@contextmanager
def timed_stages() -> Iterator[dict[str, list[float]]]:
    """Note how long each stage takes, tick by tick, as long as the context lasts."""
    times: dict[str, list[float]] = {name: [] for _, name in STAGES}
    plain = [getattr(where, name) for where, name in STAGES]

    def timed(stage: Callable[..., object], taken: list[float]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            begun = time.perf_counter()
            try:
                return stage(*args, **options)
            finally:
                taken.append(1e3 * (time.perf_counter() - begun))

        return run

    for (where, name), stage in zip(STAGES, plain, strict=True):
        setattr(where, name, timed(stage, times[name]))
    try:
        yield times
    finally:
        for (where, name), stage in zip(STAGES, plain, strict=True):
            setattr(where, name, stage)


def timed_ms(call: Callable[[], object]) -> float:
    """Wall time of one call, ms; garbage of the bench itself is collected outside of it."""
    gc.collect(0)
    begun = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begun)


@dataclass(frozen=True, slots=True)
class _Truth:
    """Stations that answer; another seed than the engine's priors."""

    stations: Stations
    price_per_million_usd: Floats


class World:
    """Applications that call ten services each, of ten providers each, at 60 % load."""

    def __init__(self, routes: int, providers: int) -> None:
        self.rng = np.random.default_rng(1)
        self.mesh, groups = _mesh(self.rng, routes, providers)
        endpoints = {p.name: p.endpoints for p in self.mesh.providers.values()}
        problem = build_problem(self.mesh, endpoints, groups)
        self.state: EngineState = initial_state(problem)
        self.publisher = Publisher(self.mesh, MeshResources(self.mesh, endpoints))
        count = len(problem.providers)
        servers = self.rng.integers(4, 32, count).astype(float)
        service_s = self.rng.uniform(0.005, 0.05, count)
        ones = np.ones(count)
        self.truth = _Truth(
            Stations(service_s, servers, ones, ones, 2.0 * ones),
            self.rng.uniform(0.1, 2.0, count),
        )
        self.demand = self.rng.uniform(0.5, 2.0, len(problem.routes))
        # Each service's demand is scaled to its providers: a mesh that can carry its load.
        row = {
            p.name: s
            for s, service in enumerate(self.mesh.services.values())
            for p in service.providers
        }
        service_of = np.array([row[name] for name in problem.providers])
        of_route = service_of[problem.pairs.provider[problem.pairs.starts]]
        capacity = np.bincount(service_of, servers / service_s)
        asked = np.bincount(of_route, self.demand, len(capacity))
        self.demand *= (LOAD_RATIO * capacity / np.maximum(asked, 1e-9))[of_route]
        self.now_s = 0.0
        rows = len(problem.pairs.route)
        self.nodes = tuple(node for g in groups for node in sorted(g.nodes))
        self.node_row = np.array(
            _node_rows(self.state, self.nodes),
            dtype=np.int64,
        )
        self.provider_row = problem.pairs.provider.copy()
        self.window = self._observe(rows)

    def drift(self) -> None:
        """Demand and service times move a little; new counts arrive."""
        self.demand *= self.rng.lognormal(0.0, 0.02, len(self.demand))
        stations = self.truth.stations
        service_s = stations.service_s * self.rng.lognormal(0.0, 0.01, len(stations.service_s))
        self.truth = replace(self.truth, stations=replace(stations, service_s=service_s))
        self.window = self._observe(len(self.provider_row))

    def tick(self) -> Tick:
        """One tick of the engine, weights published."""
        self.now_s += 1.0
        providers = self.state.problem.providers
        blank = np.full(len(providers), np.nan)
        rps = np.bincount(self.provider_row, self.window.requests, len(providers)) / 2.0
        busy = np.minimum(latency.utilisation_ratio(self.truth.stations, rps), 1.0)
        load = ProviderLoad(providers, busy, blank, self.truth.price_per_million_usd, blank)
        return tick(
            self.state,
            self.window,
            load,
            self.publisher,
            self.mesh.engine,
            self.mesh.mode,
            now_s=self.now_s,
            elapsed_s=1.0,
        )

    def floor(self) -> Floats:
        """What six iterations cost at the very least."""
        pairs = self.state.problem.pairs
        rps, cost = np.zeros(pairs.providers), np.ones(len(pairs.route))
        demand, allowed = self.demand[pairs.route], self.state.problem.allowed
        for _ in range(FLOOR_PASSES):
            shares, _ = solver.softmax_by_route(
                pairs, -(cost + rps[pairs.provider]) / 25.0, allowed
            )
            rps = pairs.sum_by_provider(demand * shares)
        return rps

    def _observe(self, rows: int) -> PairWindow:
        problem = self.state.problem
        rates = self.demand[problem.pairs.route] * self.state.shares
        count = self.rng.poisson(2.0 * rates).astype(float)
        load = problem.pairs.sum_by_provider(rates)
        answered = np.minimum(1.0, 1.0 / latency.utilisation_ratio(self.truth.stations, load))
        responses = count * answered[problem.pairs.provider]
        mean = latency.mean_s(self.truth.stations, load)
        seen = mean[problem.pairs.provider] * self.rng.lognormal(0.0, 0.05, rows)
        hist = np.zeros((rows, len(_BOUNDS_S) + 1))
        bucket = np.searchsorted(_BOUNDS_S, seen)
        hist[np.arange(rows), bucket] = 0.7 * responses
        hist[np.arange(rows), np.minimum(bucket + 1, len(_BOUNDS_S))] += 0.3 * responses
        zeros = np.zeros(rows)
        return PairWindow(
            window_s=2.0,
            nodes=self.nodes,
            providers=problem.providers,
            node_row=self.node_row,
            provider_row=self.provider_row,
            covered_s=np.full(rows, 2.0),
            requests=count,
            errors=zeros,
            latency_sum_s=responses * seen,
            latency_count=responses,
            latency_hist=hist,
            active=zeros,
            rx_bytes=2000.0 * count,
            tx_bytes=100.0 * count,
            age_s=np.full(rows, 0.1),
        )


def _node_rows(state: EngineState, nodes: tuple[str, ...]) -> list[int]:
    """Row of the one node of each pair's group."""
    at = {node: i for i, node in enumerate(nodes)}
    problem = state.problem
    of_group = {key: at[next(iter(g.nodes))] for key, g in problem.groups.items()}
    by_route = [of_group[route.group] for route in problem.routes]
    return [by_route[r] for r in problem.pairs.route]


def _mesh(rng: np.random.Generator, routes: int, providers: int) -> tuple[Mesh, list[Group]]:
    services: dict[str, Service] = {}
    for s in range(max(1, providers // PER_ROUTE)):
        offered = tuple(
            Provider(
                f"s{s}-p{p}",
                f"s{s}",
                locality=Locality(f"region-{p % REGIONS}"),
                endpoints=(Address("127.0.0.1", 9000),),
                capacity=Capacity(float(rng.uniform(200, 2000)), int(rng.integers(4, 32))),
                price=Price(float(rng.uniform(0.1, 2.0)), egress_per_gib_usd=0.01),
            )
            for p in range(PER_ROUTE)
        )
        services[f"s{s}"] = Service(f"s{s}", offered)
    names = list(services)
    calls = min(CALLS, len(names))
    profile = Profile("steady", latency_p95_s=0.3)
    templates, applications, groups = {}, {}, []
    for g in range(max(1, routes // calls)):
        t = g % max(1, len(names) // calls)
        if t not in templates:
            chosen = names[t * calls : (t + 1) * calls]
            templates[t] = Template(
                f"t{t}",
                tuple(Call(name, f"127.0.0.1:{15000 + i}") for i, name in enumerate(chosen)),
                (profile,),
            )
            applications[f"a{t}"] = Application(f"a{t}", templates[t])
        where = Locality(f"region-{g % REGIONS}", f"zone-{g}")
        groups.append(
            Group(GroupKey(f"a{t}", "steady", where), frozenset({f"n{g}"}), f"t{t}", None, 0.0)
        )
    declared: Mapping[str, Template] = {t.name: t for t in templates.values()}
    mesh = Mesh(
        "bench",
        Mode.ENFORCE,
        EngineSettings(),
        TelemetrySettings(),
        services,
        declared,
        applications,
        ServerSettings(),
    )
    return mesh, groups


if __name__ == "__main__":
    main()
