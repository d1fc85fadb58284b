"""How long one decision takes: evaluate to encoded weights, beside the least it could cost.

``python -m bench.tick [--size S|M|L] [--json]``. The floor is six bare passes of softmax and
bincount over the same arrays in the same run: what the solver's iterations must at least do.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable

import numpy as np

from xds_server.core import limits, solver
from xds_server.core.latency import Stations
from xds_server.core.tables import Floats, Pairs

SIZES = {"S": (200, 40), "M": (2_000, 200), "L": (10_000, 1_000)}
PER_ROUTE = 10
CURVE = (1_000, 10_000, 100_000, 1_000_000)
TICKS = 30
FLOOR_PASSES = 6


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="L")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-curve", action="store_true", help="only the one size")
    options = parser.parse_args()
    routes, providers = SIZES[options.size]
    result = measure(routes, providers)
    result["size"] = options.size
    result["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
    if not options.no_curve:
        result["curve"] = {str(p): curve_point(p) for p in CURVE}
    if options.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:14} {value}")


def measure(routes: int, providers: int, ticks: int = TICKS) -> dict[str, object]:
    """Run a drifting mesh for that many ticks; times in milliseconds."""
    world = World(routes, providers)
    world.tick()  # the first is cold
    times = [timed_ms(world.tick) for _ in range(ticks)]
    floors = [timed_ms(world.floor) for _ in range(max(5, ticks // 3))]
    p50, p99 = np.percentile(times, [50, 99])
    return {
        "pairs": len(world.pairs.route),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "floor_ms": round(float(np.median(floors)), 2),
        "floor_ratio": round(float(p50 / np.median(floors)), 2),
        "gap_ratio": world.worst_gap,
        "iterations": round(float(np.mean(world.iterations)), 1),
    }


def curve_point(pairs: int) -> float:
    """p50 of a tick over that many pairs, ms."""
    found = measure(pairs // PER_ROUTE, max(10, pairs // 100), ticks=7)
    return float(str(found["p50_ms"]))


def timed_ms(call: Callable[[], object]) -> float:
    """Wall time of one call, ms."""
    begun = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begun)


class World:
    """Random routes over random providers at 60 % load; demand and costs drift each tick."""

    def __init__(self, routes: int, providers: int) -> None:
        self.rng = np.random.default_rng(1)
        rng = self.rng
        # Ten different providers per route: a random start and random gaps around the ring.
        gaps = rng.integers(1, max(2, providers // PER_ROUTE + 1), (routes, PER_ROUTE))
        columns = (rng.integers(0, providers, (routes, 1)) + gaps.cumsum(axis=1)) % providers
        self.pairs = Pairs(
            np.repeat(np.arange(routes), PER_ROUTE), columns.ravel(), routes, providers
        )
        count = routes * PER_ROUTE
        self.service_s = rng.uniform(0.005, 0.05, providers)
        self.servers = rng.integers(4, 64, providers).astype(float)
        self.allowed = rng.random(count) < 0.95
        self.allowed[::PER_ROUTE] = True
        self.shares = limits.onto_allowed(self.pairs, np.ones(count), self.allowed)
        capacity = (self.servers / self.service_s).sum()
        self.demand = rng.uniform(0.5, 2.0, routes)
        self.demand *= 0.6 * capacity / self.demand.sum()
        self.fixed_ms = rng.uniform(0.0, 20.0, count)
        self.tau_ms = np.full(routes, 25.0)
        self.iterations: list[int] = []
        self.worst_gap = 0.0

    def stations(self) -> Stations:
        """The providers' models."""
        ones = np.ones(len(self.servers))
        return Stations(self.service_s, self.servers, ones, ones, 2.0 * ones)

    def tick(self) -> Floats:
        """Solve, bound, quantise."""
        self.demand *= self.rng.lognormal(0.0, 0.05, len(self.demand))
        self.service_s *= self.rng.lognormal(0.0, 0.02, len(self.service_s))
        found = solver.solve(
            self.pairs,
            self.allowed,
            self.shares,
            self.demand,
            self.fixed_ms,
            self.tau_ms,
            self.stations(),
        )
        self.iterations.append(found.iterations)
        self.worst_gap = max(self.worst_gap, found.gap_ratio)
        floor = np.full(len(self.shares), 0.002)
        wanted = limits.with_floor(self.pairs, found.shares, self.allowed, floor)
        self.shares = limits.limit_shift(self.pairs, self.shares, wanted, 0.25)
        return limits.to_weights(self.pairs, self.shares).astype(float)

    def floor(self) -> Floats:
        """What six iterations cost at the very least."""
        rps = np.zeros(self.pairs.providers)
        demand = self.demand[self.pairs.route]
        for _ in range(FLOOR_PASSES):
            logits = -(self.fixed_ms + rps[self.pairs.provider]) / self.tau_ms[self.pairs.route]
            shares, _ = solver.softmax_by_route(self.pairs, logits, self.allowed)
            rps = self.pairs.sum_by_provider(demand * shares)
        return rps


if __name__ == "__main__":
    main()
