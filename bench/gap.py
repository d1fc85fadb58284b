"""How near the solver comes to the optimum, by an oracle that shares nothing with it.

``python -m bench.gap [--seeds N] [--json]``. Random instances of one step, of up to 2,000 shares,
from calm to overload. The oracle is clarabel through cvxpy: an interior point method over
exponential and second-order cones. *Cold* is a step from random shares; *warm* is one from where
three steps before it led, demand and service times having drifted by a few per cent.

A station's x T(x) has the term rho^(n + 1) / (1 - rho) with n = sqrt(2 (c + 1)) - 1. For 1, 7, 17
and 31 servers n + 1 is even, and the term is a square over something linear, which cones can say.
"""

import argparse
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any, Final

import cvxpy
import numpy as np

from bench.arguments import positive_integer
from bench.output import dumped
from xds_server.core import latency, limits, solver
from xds_server.core.latency import RHO_LINEAR, Stations
from xds_server.core.tables import Bools, Floats, Pairs

cp: Any = cvxpy  # its own types lack half of what it has

SIZES: Final = ((6, 5), (20, 10), (50, 20), (100, 20))
"""Routes and providers; as many shares as their product."""
LOADS: Final = (0.3, 0.6, 0.9, 1.2)
"""Demand over the capacity of all."""
SERVERS: Final = (1, 7, 17, 31)
SEEDS: Final = 10
RELUCTANCE: Final = 0.9
"""Of the route's present mean latency, as in the engine."""
_WARM_STEPS: Final = 3
_UNITS: Final = (1.0, 0.1, 0.01, 10.0)


@dataclass(frozen=True, slots=True)
class Instance:
    """One step to be solved."""

    pairs: Pairs
    allowed: Bools  # (P,)
    now: Floats  # (P,)
    demand_rps: Floats  # (R,)
    fixed_ms: Floats  # (P,)
    stations: Stations

    @property
    def flow_rps(self) -> Floats:
        """(P,) demand of the pair's route."""
        return self.demand_rps[self.pairs.route]

    @property
    def tau_ms(self) -> Floats:
        """(R,) reluctance to move."""
        pairs = self.pairs
        mean = latency.mean_s(self.stations, pairs.sum_by_provider(self.flow_rps * self.now))
        return 1e3 * RELUCTANCE * pairs.sum_by_route(self.now * mean[pairs.provider])

    def solve(self) -> Floats:
        """(P,) shares of the engine's solver."""
        found = solver.solve(
            self.pairs,
            self.allowed,
            self.now,
            self.demand_rps,
            self.fixed_ms,
            self.tau_ms,
            self.stations,
        )
        return found.shares

    def total_ms(self, shares: Floats) -> float:
        """Objective of the step, ms-equivalent per second."""
        flow = self.flow_rps * shares
        rps = self.pairs.sum_by_provider(flow)
        anchor = np.maximum(self.now, solver.SHARE_FLOOR)
        ratio = np.where(shares > 0.0, shares, anchor) / anchor
        drift = self.tau_ms[self.pairs.route] * self.flow_rps * shares * np.log(ratio)
        waits = 1e3 * rps * latency.mean_s(self.stations, rps)
        return float(np.sum(flow * self.fixed_ms) + np.sum(waits) + np.sum(drift))


def draw(rng: np.random.Generator, routes: int, providers: int, load: float) -> Instance:
    """Draw one instance; a fifth of the pairs is not allowed."""
    rows = routes * providers
    pairs = Pairs(
        np.repeat(np.arange(routes), providers),
        np.tile(np.arange(providers), routes),
        routes,
        providers,
    )
    stations = Stations(
        rng.uniform(0.005, 0.05, providers),
        rng.choice(SERVERS, providers).astype(float),
        np.ones(providers),
        rng.uniform(0.5, 2.0, providers),
        np.full(providers, 2.0),
    )
    allowed = rng.random(rows) < 0.8
    allowed[::providers] = True
    demand = rng.uniform(0.5, 2.0, routes)
    demand *= load * stations.capacity_rps.sum() / demand.sum()
    now = limits.onto_allowed(pairs, rng.uniform(0.2, 1.0, rows), allowed)
    return Instance(pairs, allowed, now, demand, rng.uniform(0.0, 40.0, rows), stations)


def warmed(rng: np.random.Generator, cold: Instance) -> Instance:
    """Take some steps while the mesh drifts."""
    found = cold
    for _ in range(_WARM_STEPS):
        stations = found.stations
        slower = rng.lognormal(0.0, 0.02, len(stations.service_s))
        found = replace(
            found,
            now=found.solve(),
            demand_rps=found.demand_rps * rng.lognormal(0.0, 0.03, len(found.demand_rps)),
            stations=replace(stations, service_s=stations.service_s * slower),
        )
    return found


def oracle(instance: Instance) -> Floats:
    """(P,) the optimum. Raises RuntimeError where none was found."""
    pairs, stations, tau = instance.pairs, instance.stations, instance.tau_ms[instance.pairs.route]
    flow = instance.flow_rps
    to_route = np.eye(pairs.routes)[:, pairs.route]
    to_provider = np.eye(pairs.providers)[:, pairs.provider] * flow
    shares = cp.Variable(len(flow), nonneg=True)
    # Utilisation up to where the curve ends, and beyond, where its tangent continues it. The
    # slopes meet there and rise, so at the optimum the first part is full before the second.
    curved, beyond = (
        cp.Variable(pairs.providers, nonneg=True),
        cp.Variable(pairs.providers, nonneg=True),
    )
    n = np.sqrt(2.0 * (stations.servers + 1.0)) - 1.0
    level = RHO_LINEAR**n / (1.0 - RHO_LINEAR)
    slope = level * (n / RHO_LINEAR + 1.0 / (1.0 - RHO_LINEAR))
    queues = [
        cp.quad_over_lin(cp.power(curved[j], round((n[j] + 1.0) / 2.0)), 1.0 - curved[j])
        + (level[j] + RHO_LINEAR * slope[j]) * beyond[j]
        + slope[j] * cp.square(beyond[j])
        for j in range(pairs.providers)
    ]
    waits = stations.variability @ cp.hstack(queues)
    served = stations.service_s @ (to_provider @ shares)
    anchor = np.log(np.maximum(instance.now, solver.SHARE_FLOOR))
    drift = cp.sum(cp.multiply(tau * flow, -cp.entr(shares) - cp.multiply(shares, anchor)))
    total = (flow * instance.fixed_ms) @ shares + 1e3 * (served + waits) + drift
    rules = [
        to_route @ shares == 1.0,
        shares[~instance.allowed] == 0.0,
        curved <= RHO_LINEAR,
        cp.multiply(1.0 / stations.capacity_rps, to_provider @ shares) == curved + beyond,
    ]
    # Whether it reaches its precision depends on the unit, by chance.
    for unit in _UNITS:
        goal = cp.Minimize(total / (unit * instance.total_ms(instance.now)))
        problem = cp.Problem(goal, rules)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # its status is looked at
            problem.solve(solver=cp.CLARABEL)
        if problem.status == cp.OPTIMAL:
            found: Floats = np.maximum(shares.value, 0.0)
            return limits.onto_allowed(pairs, found, instance.allowed)
    raise RuntimeError("the oracle did not reach its precision")


def gap_ratio(instance: Instance, shares: Floats) -> float:
    """By how much the objective of those shares is above the oracle's, relative."""
    best = instance.total_ms(oracle(instance))
    return instance.total_ms(shares) / best - 1.0


def measure(seeds: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> dict[str, object]:
    """Solve instances of every size and load, cold and warm; gaps in per cent.

    A gap below zero is the oracle's own error.
    """
    gaps: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    for routes, providers in sizes:
        for load in LOADS:
            for seed in range(seeds):
                rng = np.random.default_rng([seed, routes, round(100 * load)])
                cold = draw(rng, routes, providers, load)
                for start, step in (("cold", cold), ("warm", warmed(rng, cold))):
                    gaps[start].append((load, 100.0 * gap_ratio(step, step.solve())))
    return {
        "instances": len(gaps["cold"]),
        "variables_most": max(r * p for r, p in sizes),
        "loads": list(LOADS),
    } | {
        start: {
            "worst_percent": _signed(max(v for _, v in found)),
            "median_percent": _signed(float(np.median([v for _, v in found]))),
            "least_percent": _signed(min(v for _, v in found)),
            "worst_by_load_percent": {
                f"{load:g}": _signed(max(v for at, v in found if at == load)) for load in LOADS
            },
        }
        for start, found in gaps.items()
    }


def _signed(percent: float) -> float:
    return float(f"{percent:.2g}")


def main(arguments: list[str] | None = None) -> None:
    """Parse, solve, print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gap", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--seeds", type=positive_integer, default=SEEDS, help="instances per size and load"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    result = measure(options.seeds)
    result["command"] = f"python -m bench.gap --seeds {options.seeds}"
    result["seconds"] = round(time.perf_counter() - begun)
    if options.json:
        print(dumped(result))
        return
    for key, value in result.items():
        print(f"{key:16} {value}")


if __name__ == "__main__":
    main()
