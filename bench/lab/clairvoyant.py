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
from numba import njit

from bench.lab.worlds import World
from xds_server.core.tables import Floats, Ints

_GRID: Final = 2_001
_RHO_MAX: Final = 0.98
"""Erlang C continues along its tangent from here."""
GAP_RATIO: Final = 2e-4
_SWEEPS: Final = 400


@dataclass(frozen=True, slots=True)
class Curves:
    """Wait in mean service times over utilisation, 0.._RHO_MAX; one row per number of servers."""

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
    rho = np.linspace(0.0, _RHO_MAX, _GRID)
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
        now = (world.demand_rps[tick], world.slowness[tick], world.error_ratio[tick])
        key = tuple(a.tobytes() for a in (*now, world.price_usd[tick]))
        if world.shared_s is not None:
            key = (*key, world.shared_s[tick].tobytes())
        queued = np.zeros(len(layout.servers)) if wait_s is None else wait_s
        key = (*key, queued.tobytes())
        if key == self._key:
            return self.shares
        self._key = key
        shared_s = world.shared_s[tick] if world.shared_s is not None else np.zeros(1)
        shares, self.gap_ratio = _exchange(
            self.shares.copy(),
            self._starts,
            self._pairs.provider,
            now[0],
            fixed_ms(world, tick, queued),
            1.0 - now[2],
            layout.service_s * now[1],
            layout.servers,
            self._curves.row,
            self._curves.wait,
            self._curves.slope,
            self._curves.bend,
            world.shared,
            shared_s,
            float(world.shared_servers),
            self._shared_curves.wait[0],
            self._shared_curves.slope[0],
            self._shared_curves.bend[0],
            GAP_RATIO,
            _SWEEPS,
        )
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
    at = np.minimum(rho, _RHO_MAX) / _RHO_MAX * (_GRID - 1)
    low = np.minimum(at.astype(np.int64), _GRID - 2)
    rows, part = curves.row, at - low
    wait = (1.0 - part) * curves.wait[rows, low] + part * curves.wait[rows, low + 1]
    wait += curves.slope[rows, -1] * np.maximum(rho - _RHO_MAX, 0.0)
    idle = np.zeros(pairs.providers)
    total = np.sum(flow * fixed_ms(world, tick, idle)) + 1e3 * np.sum(served * service * (1 + wait))
    return float(total) / float(world.demand_rps[tick].sum())


@njit(cache=True)
def _marginal(rps, service_s, servers, wait, slope, bend):  # type: ignore[no-untyped-def]
    """Marginal latency T + x T', ms, and its derivative by x, of one station."""
    per_rps = service_s / servers
    rho = rps * per_rps
    top = len(wait) - 1
    at = min(rho, _RHO_MAX) / _RHO_MAX * top
    low = min(int(at), top - 1)
    part = at - low
    w = (1.0 - part) * wait[low] + part * wait[low + 1]
    d = (1.0 - part) * slope[low] + part * slope[low + 1]
    b = (1.0 - part) * bend[low] + part * bend[low + 1]
    if rho > _RHO_MAX:
        w, d, b = wait[top] + slope[top] * (rho - _RHO_MAX), slope[top], 0.0
    return (
        1e3 * service_s * (1.0 + w + rho * d),
        1e3 * service_s * (2.0 * d + rho * b) * per_rps,
    )


@njit(cache=True)
def _exchange(  # type: ignore[no-untyped-def]
    shares,
    starts,
    provider,
    demand,
    fixed,
    success,
    service_s,
    servers,
    row,
    wait,
    slope,
    bend,
    shared_of,
    shared_s,
    shared_servers,
    shared_wait,
    shared_slope,
    shared_bend,
    tolerance,
    sweeps,
):
    """Pairwise exchange until the gap is small; returns shares and the gap."""
    count = len(servers)
    rps, shared_rps = np.zeros(count), np.zeros(len(shared_s))
    price, steep = np.zeros(count), np.zeros(count)
    gap = 0.0
    for _sweep in range(sweeps):
        rps[:] = 0.0
        shared_rps[:] = 0.0
        for r in range(len(demand)):
            for p in range(starts[r], starts[r + 1]):
                j = provider[p]
                rps[j] += demand[r] * shares[p] * success[j]
        for j in range(count):
            if shared_of[j] >= 0:
                shared_rps[shared_of[j]] += rps[j]
        for j in range(count):
            price[j], steep[j] = _price(
                j, rps, shared_rps, service_s, servers, row, wait, slope, bend,
                shared_of, shared_s, shared_servers, shared_wait, shared_slope, shared_bend,
            )  # fmt: skip
        excess, total = 0.0, 0.0
        for r in range(len(demand)):
            least = 1e300
            for p in range(starts[r], starts[r + 1]):
                j = provider[p]
                least = min(least, fixed[p] + success[j] * price[j])
            for p in range(starts[r], starts[r + 1]):
                j = provider[p]
                mine = fixed[p] + success[j] * price[j]
                excess += demand[r] * shares[p] * (mine - least)
                total += demand[r] * shares[p] * mine
        gap = excess / max(total, 1e-12)
        if gap <= tolerance:
            break
        for r in range(len(demand)):
            if demand[r] <= 0.0:
                continue
            for _ in range(starts[r + 1] - starts[r]):
                low, high = -1, -1
                least, most = 1e300, -1e300
                for p in range(starts[r], starts[r + 1]):
                    j = provider[p]
                    mine = fixed[p] + success[j] * price[j]
                    if mine < least:
                        least, low = mine, p
                    if shares[p] > 0.0 and mine > most:
                        most, high = mine, p
                if high < 0 or low == high or most - least < 1e-4:
                    break
                a, b = provider[low], provider[high]
                curve = success[a] ** 2 * steep[a] + success[b] ** 2 * steep[b]
                step = (most - least) / max(curve, 1e-9) / demand[r]
                step = min(step, shares[high])
                shares[high] -= step
                shares[low] += step
                if shares[high] < 1e-9:
                    shares[low] += shares[high]
                    shares[high] = 0.0
                moved = step * demand[r]
                rps[a] += moved * success[a]
                rps[b] = max(rps[b] - moved * success[b], 0.0)
                if shared_of[a] >= 0:
                    shared_rps[shared_of[a]] += moved * success[a]
                if shared_of[b] >= 0:
                    shared_rps[shared_of[b]] = max(
                        shared_rps[shared_of[b]] - moved * success[b], 0.0
                    )
                wide = shared_of[a] >= 0 or shared_of[b] >= 0
                for k in range(count if wide else 2):
                    j = k if wide else (a if k == 0 else b)
                    price[j], steep[j] = _price(
                        j, rps, shared_rps, service_s, servers, row, wait, slope, bend,
                        shared_of, shared_s, shared_servers,
                        shared_wait, shared_slope, shared_bend,
                    )  # fmt: skip
    return shares, gap


@njit(cache=True)
def _price(  # type: ignore[no-untyped-def]
    j, rps, shared_rps, service_s, servers, row, wait, slope, bend,
    shared_of, shared_s, shared_servers, shared_wait, shared_slope, shared_bend,
):  # fmt: skip
    """Marginal of a provider and of what it shares, and the derivative of both."""
    k = row[j]
    price, steep = _marginal(rps[j], service_s[j], float(servers[j]), wait[k], slope[k], bend[k])
    g = shared_of[j]
    if g >= 0:
        more, steeper = _marginal(
            shared_rps[g], shared_s[g], shared_servers, shared_wait, shared_slope, shared_bend
        )
        price, steep = price + more, steep + steeper
    return price, steep
