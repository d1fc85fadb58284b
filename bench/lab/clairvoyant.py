"""The optimum for whom nothing is hidden: true parameters, the true objective in expectation.

Stations are Erlang C with the Allen-Cunneen correction for service times that are not
exponential (A. O. Allen, Probability, Statistics and Queueing Theory, 1978). The optimum is
found by pairwise exchange: each route in turn moves traffic from its dearest used provider to
its cheapest, by a Newton step on the difference of their marginals, until the gap

    sum over pairs of flow x (marginal - the route's least marginal) / sum of flow x marginal

is small. Nothing of this is shared with the engine's solver.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.lab.exchange import RHO_MAX, Routes, Stations, exchange
from bench.lab.worlds import World
from xds_server.core.tables import Floats, Ints

_GRID: Final = 2_001
GAP_RATIO: Final = 2e-4
_SWEEPS: Final = 400


@dataclass(frozen=True, slots=True)
class Curves:
    """Wait in mean service times over utilisation, 0..RHO_MAX; one row per number of servers."""

    row: Ints  # (J,)
    wait: Floats  # (C, GRID)
    slope: Floats  # (C, GRID) by utilisation
    bend: Floats  # (C, GRID)


def erlang_c_wait(servers: int, rho: Floats) -> Floats:
    """Mean wait over mean service time of M/M/c, by Erlang's recursion; 0 <= rho < 1."""
    load = rho * servers
    block = np.ones_like(load)
    for k in range(1, servers + 1):
        block = load * block / (k + load * block)
    delayed = block / (1.0 - rho * (1.0 - block))
    wait: Floats = delayed / (servers * (1.0 - rho))
    return wait


def make_curves(servers: Ints, cv2: float) -> Curves:
    """Tabulate the waits of stations with Poisson arrivals and that variability."""
    kinds, row = np.unique(servers, return_inverse=True)
    rho = np.linspace(0.0, RHO_MAX, _GRID)
    wait = np.array([(1.0 + cv2) / 2.0 * erlang_c_wait(int(c), rho) for c in kinds])
    slope = np.gradient(wait, rho, axis=1)
    return Curves(row.astype(np.int64), wait, slope, np.gradient(slope, rho, axis=1))


class Oracle:
    """Solves one tick after the other; starts where the last one ended."""

    def __init__(self, world: World) -> None:
        self.world = world
        layout = world.layout
        self._pairs = layout.problem.pairs
        self._starts = np.append(self._pairs.starts, len(self._pairs.route))
        self._curves = make_curves(layout.servers, world.service_cv2)
        shared = max(1, int(world.shared.max()) + 1)
        kinds = np.full(shared, world.shared_servers, dtype=np.int64)
        self._shared_curves = make_curves(kinds, world.service_cv2)
        self.shares = layout.problem.baseline_shares.copy()
        self.gap_ratio = 0.0
        self._key: tuple[bytes, ...] = ()

    def solve(self, tick: int, *, wait_s: Floats | None = None) -> Floats:
        """(P,) best shares for the expected state of that tick.

        Parameters
        ----------
        wait_s : (J,) what queues hold already; None: nothing
        """
        world, layout = self.world, self.world.layout
        queued = np.zeros(len(layout.servers)) if wait_s is None else wait_s
        demand, slowness = world.demand_rps[tick], world.slowness[tick]
        failing, shared_s = world.error_ratio[tick], world.shared_service_s(tick)
        known = (demand, slowness, failing, world.price_usd[tick], shared_s, queued)
        key = tuple(a.tobytes() for a in known)
        if key == self._key:
            return self.shares
        self._key = key
        routes = Routes(self._starts, self._pairs.provider, demand, fixed_ms(world, tick, queued))
        curves, shared = self._curves, self._shared_curves
        stations = Stations(
            1.0 - failing,
            layout.service_s * slowness,
            layout.servers,
            curves.row,
            curves.wait,
            curves.slope,
            curves.bend,
            world.shared,
            shared_s,
            float(world.shared_servers),
            shared.wait[0],
            shared.slope[0],
            shared.bend[0],
        )
        shares = self.shares.copy()
        self.gap_ratio = exchange(shares, routes, stations, GAP_RATIO, _SWEEPS)
        self.shares = shares
        return self.shares


def fixed_ms(world: World, tick: int, wait_s: Floats) -> Floats:
    """(P,) expected cost of a request beside the station's own time, ms-equivalent."""
    layout = world.layout
    pairs = layout.problem.pairs
    failing = world.error_ratio[tick][pairs.provider]
    usd = (1.0 - failing) * (world.price_usd[tick][pairs.provider] + layout.egress_usd)
    fixed: Floats = (
        1e3 * (1.0 - failing) * (layout.rtt_s + wait_s[pairs.provider])
        + failing * layout.failure_ms
        + layout.ms_per_usd[pairs.route] * usd
    )
    return fixed


def expected_ms(world: World, tick: int, shares: Floats) -> float:
    """Expected objective of those shares, ms-equivalent per request; by plain numpy."""
    layout = world.layout
    pairs = layout.problem.pairs
    curves = make_curves(layout.servers, world.service_cv2)
    flow = world.demand_rps[tick][pairs.route] * shares
    served = pairs.sum_by_provider(flow) * (1.0 - world.error_ratio[tick])
    service = layout.service_s * world.slowness[tick]
    rho = served * service / layout.servers
    at = np.minimum(rho, RHO_MAX) / RHO_MAX * (_GRID - 1)
    low = np.minimum(at.astype(np.int64), _GRID - 2)
    rows, part = curves.row, at - low
    wait = (1.0 - part) * curves.wait[rows, low] + part * curves.wait[rows, low + 1]
    wait += curves.slope[rows, -1] * np.maximum(rho - RHO_MAX, 0.0)
    idle = np.zeros(pairs.providers)
    total = np.sum(flow * fixed_ms(world, tick, idle)) + 1e3 * np.sum(served * service * (1 + wait))
    return float(total) / float(world.demand_rps[tick].sum())
