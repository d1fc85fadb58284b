"""Where one route's traffic belongs while all other traffic stays, and what a provider lacks.

The route's cost is convex in its shares, so at its optimum all providers that are used beyond
their floors have one marginal cost mu, and none at its floor is below that. Found by bisection
on mu, not by the engine's solver: what explains a decision does not share its errors.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from xds_server.core import latency, limits, solver
from xds_server.core.latency import Stations
from xds_server.core.tables import Bools, Floats, Ints, Pairs

TICKS_MAX: Final = 40
"""Ticks ahead that are looked."""
_ROUNDS: Final = 44
_SETTLED_SHARE: Final = 2e-4
_FIXED_MS: Final = 1e12
"""Reluctance of traffic that is not to move."""
_LEAST_RPS: Final = 1e-9


@dataclass(frozen=True, slots=True)
class OneRoute:
    """A route and its providers; axis 0 (K)."""

    demand_rps: float
    fixed_ms: Floats  # cost apart from the provider's latency
    others_rps: Floats  # load that is not this route's
    stations: Stations
    allowed: Bools
    floor: Floats  # 0 where not allowed

    def marginal_ms(self, shares: Floats) -> Floats:
        """(K,) what one more request costs everybody, at each provider."""
        rps = self.others_rps + self.demand_rps * shares
        return self.fixed_ms + 1e3 * latency.marginal_s(self.stations, rps)[0]


@dataclass(frozen=True, slots=True)
class Optimum:
    """Shares at which no request would be better elsewhere."""

    shares: Floats  # (K,)
    mu_ms: float  # what one more request costs at every provider that is used
    short_ms: Floats  # (K,) what a provider at its floor costs beyond that; 0 where used


def one_route(
    pairs: Pairs,
    route: int,
    shares: Floats,
    demand_rps: Floats,
    fixed_ms: Floats,
    stations: Stations,
    allowed: Bools,
    floor: Floats,
) -> tuple[OneRoute, Ints]:
    """Take a route out of all; also returns the rows (K,) of its pairs."""
    rows = np.flatnonzero(pairs.route == route)
    here = pairs.provider[rows]
    flow = demand_rps[pairs.route] * shares
    others = np.maximum(pairs.sum_by_provider(flow)[here] - flow[rows], 0.0)
    mine = allowed[rows]
    alone = Pairs(np.zeros(len(rows), dtype=np.int64), np.arange(len(rows)), 1, len(rows))
    fitted = limits.with_floor(alone, np.zeros(len(rows)), mine, floor[rows])
    fitted = np.where(mine, fitted, 0.0)
    return (
        OneRoute(
            max(float(demand_rps[route]), _LEAST_RPS),
            fixed_ms[rows],
            others,
            stations.rows(here),
            mine,
            fitted,
        ),
        rows,
    )


def optimum(route: OneRoute) -> Optimum:
    """Find the route's own optimum: shares that sum to 1, none below its floor.

    Where none is allowed, nothing is shared out and mu is infinite.
    """
    if not route.allowed.any():
        return Optimum(np.zeros_like(route.floor), np.inf, np.zeros_like(route.floor))
    top = np.where(route.allowed, 1.0, 0.0)
    least, most = route.marginal_ms(route.floor), route.marginal_ms(top)
    low, high = float(least[route.allowed].min()), float(most[route.allowed].max())
    for _ in range(_ROUNDS):
        mu = 0.5 * (low + high)
        if _shares_at(route, mu, top).sum() < 1.0:
            low = mu
        else:
            high = mu
    below, above = _shares_at(route, low, top), _shares_at(route, high, top)
    # Where a price does not rise with load, shares jump between the two.
    room = above - below
    part = (1.0 - below.sum()) / room.sum() if room.sum() > 0.0 else 0.0
    shares = below + min(max(part, 0.0), 1.0) * room
    shares = shares / shares.sum()
    used = route.allowed & (shares > route.floor + 1e-6)
    # Bisection leaves a trace of doubt: what is used names the price.
    marginal = route.marginal_ms(shares)
    mu_ms = float(shares[used] @ marginal[used] / shares[used].sum()) if used.any() else low
    short = np.where(route.allowed & ~used, np.maximum(marginal - mu_ms, 0.0), 0.0)
    return Optimum(shares, mu_ms, short)


def ahead(route: OneRoute, shares: Floats, tau_ms: float, max_shift_ratio: float) -> Floats:
    """(N + 1, K) shares that the engine's own damped steps lead to, tick by tick, until they stay.

    ``shares`` (K,) come first. It is what would happen if nothing else did.
    """
    path = [shares]
    if not route.allowed.any():
        return np.stack(path)
    count = len(shares)
    # Other traffic is one more route per provider, which never moves.
    pairs = Pairs(
        np.concatenate([np.zeros(count, dtype=np.int64), 1 + np.arange(count)]),
        np.concatenate([np.arange(count), np.arange(count)]),
        1 + count,
        count,
    )
    demand = np.concatenate([[route.demand_rps], route.others_rps])
    fixed = np.concatenate([route.fixed_ms, np.zeros(count)])
    allowed = np.concatenate([route.allowed, np.ones(count, dtype=bool)])
    tau = np.concatenate([[tau_ms], np.full(count, _FIXED_MS)])
    alone = Pairs(np.zeros(count, dtype=np.int64), np.arange(count), 1, count)
    for _ in range(TICKS_MAX):
        now = np.concatenate([path[-1], np.ones(count)])
        found = solver.solve(pairs, allowed, now, demand, fixed, tau, route.stations)
        wanted = limits.with_floor(alone, found.shares[:count], route.allowed, route.floor)
        step = limits.limit_shift(alone, path[-1], wanted, max_shift_ratio)
        path.append(step)
        if np.max(np.abs(step - path[-2])) < _SETTLED_SHARE:
            break
    return np.stack(path)


def _shares_at(route: OneRoute, mu_ms: float, top: Floats) -> Floats:
    """(K,) shares at which the marginal cost is ``mu_ms``, between the floor and 1."""
    low, high = route.floor, top
    for _ in range(_ROUNDS):
        middle = 0.5 * (low + high)
        dear = route.marginal_ms(middle) > mu_ms
        low, high = np.where(dear, low, middle), np.where(dear, middle, high)
    return low
