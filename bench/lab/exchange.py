"""The inner loop of the clairvoyant, compiled: pairwise exchange until the gap is small."""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from xds_server.core.tables import Floats, Ints

RHO_MAX: Final = 0.98
"""Erlang C continues along its tangent from here."""


class Routes(NamedTuple):
    """Who calls whom. R routes, P pairs."""

    starts: Ints  # (R + 1,)
    provider: Ints  # (P,)
    demand: Floats  # (R,)
    fixed: Floats  # (P,) cost of a request beside the station's own time, ms-equivalent


class Stations(NamedTuple):
    """What the marginals of J providers follow from, beside their load."""

    success: Floats  # (J,)
    service_s: Floats  # (J,)
    servers: Ints  # (J,)
    row: Ints  # (J,) of the curves
    wait: Floats  # (C, GRID)
    slope: Floats  # (C, GRID)
    bend: Floats  # (C, GRID)
    shared_of: Ints  # (J,) row of the station behind it, -1: none
    shared_s: Floats  # (G,)
    shared_servers: float
    shared_wait: Floats  # (GRID,)
    shared_slope: Floats  # (GRID,)
    shared_bend: Floats  # (GRID,)


class _State(NamedTuple):
    """Loads of providers and of what they share; marginals and their derivatives."""

    rps: Floats  # (J,)
    shared_rps: Floats  # (G,)
    price: Floats  # (J,)
    steep: Floats  # (J,)


@njit(cache=True)
def exchange(shares, routes, stations, tolerance, sweeps):  # type: ignore[no-untyped-def]
    """Exchange in place until the gap is small; returns the gap."""
    count = len(stations.servers)
    state = _State(
        np.zeros(count), np.zeros(len(stations.shared_s)), np.zeros(count), np.zeros(count)
    )
    gap = 0.0
    for _sweep in range(sweeps):
        _load(shares, routes, stations, state)
        for j in range(count):
            _price(j, stations, state)
        gap = _gap(shares, routes, stations, state)
        if gap <= tolerance:
            break
        for r in range(len(routes.demand)):
            if routes.demand[r] <= 0.0:
                continue
            for _ in range(routes.starts[r + 1] - routes.starts[r]):
                low, high, apart = _extremes(r, shares, routes, stations, state)
                if high < 0 or low == high or apart < 1e-4:
                    break
                _move(r, low, high, apart, shares, routes, stations, state)
    return gap


@njit(cache=True)
def _load(shares, routes, stations, state):  # type: ignore[no-untyped-def]
    """Add up what each provider, and what it shares, has to serve."""
    rps, shared_rps = state.rps, state.shared_rps
    rps[:] = 0.0
    shared_rps[:] = 0.0
    for r in range(len(routes.demand)):
        for p in range(routes.starts[r], routes.starts[r + 1]):
            j = routes.provider[p]
            rps[j] += routes.demand[r] * shares[p] * stations.success[j]
    for j in range(len(rps)):
        if stations.shared_of[j] >= 0:
            shared_rps[stations.shared_of[j]] += rps[j]


@njit(cache=True)
def _gap(shares, routes, stations, state):  # type: ignore[no-untyped-def]
    """Part of the cost that is more than if every request went to its route's cheapest."""
    excess, total = 0.0, 0.0
    for r in range(len(routes.demand)):
        least = 1e300
        for p in range(routes.starts[r], routes.starts[r + 1]):
            least = min(least, _marginal_ms(p, routes, stations, state))
        for p in range(routes.starts[r], routes.starts[r + 1]):
            mine = _marginal_ms(p, routes, stations, state)
            excess += routes.demand[r] * shares[p] * (mine - least)
            total += routes.demand[r] * shares[p] * mine
    return excess / max(total, 1e-12)


@njit(cache=True)
def _marginal_ms(p, routes, stations, state):  # type: ignore[no-untyped-def]
    """Cost of one request more by that pair."""
    j = routes.provider[p]
    return routes.fixed[p] + stations.success[j] * state.price[j]


@njit(cache=True)
def _extremes(r, shares, routes, stations, state):  # type: ignore[no-untyped-def]
    """Cheapest pair of a route, its dearest in use (-1: none), and how far they are apart."""
    low, high = -1, -1
    least, most = 1e300, -1e300
    for p in range(routes.starts[r], routes.starts[r + 1]):
        mine = _marginal_ms(p, routes, stations, state)
        if mine < least:
            least, low = mine, p
        if shares[p] > 0.0 and mine > most:
            most, high = mine, p
    return low, high, most - least


@njit(cache=True)
def _move(r, low, high, apart, shares, routes, stations, state):  # type: ignore[no-untyped-def]
    """Move by a Newton step what closes the difference, and price anew what it touched."""
    success, shared_of = stations.success, stations.shared_of
    rps, shared_rps, steep = state.rps, state.shared_rps, state.steep
    a, b = routes.provider[low], routes.provider[high]
    curve = success[a] ** 2 * steep[a] + success[b] ** 2 * steep[b]
    step = min(apart / max(curve, 1e-9) / routes.demand[r], shares[high])
    shares[high] -= step
    shares[low] += step
    if shares[high] < 1e-9:
        shares[low] += shares[high]
        shares[high] = 0.0
    moved = step * routes.demand[r]
    rps[a] += moved * success[a]
    rps[b] = max(rps[b] - moved * success[b], 0.0)
    if shared_of[a] >= 0:
        shared_rps[shared_of[a]] += moved * success[a]
    if shared_of[b] >= 0:
        shared_rps[shared_of[b]] = max(shared_rps[shared_of[b]] - moved * success[b], 0.0)
    if shared_of[a] >= 0 or shared_of[b] >= 0:
        for j in range(len(rps)):
            _price(j, stations, state)
    else:
        _price(a, stations, state)
        _price(b, stations, state)


@njit(cache=True)
def _price(j, stations, state):  # type: ignore[no-untyped-def]
    """Set the marginal of a provider and of what it shares, and the derivative of both."""
    k, g = stations.row[j], stations.shared_of[j]
    price, steep = _marginal(
        state.rps[j],
        stations.service_s[j],
        float(stations.servers[j]),
        stations.wait[k],
        stations.slope[k],
        stations.bend[k],
    )
    if g >= 0:
        more, steeper = _marginal(
            state.shared_rps[g],
            stations.shared_s[g],
            stations.shared_servers,
            stations.shared_wait,
            stations.shared_slope,
            stations.shared_bend,
        )
        price, steep = price + more, steep + steeper
    state.price[j], state.steep[j] = price, steep


@njit(cache=True)
def _marginal(rps, service_s, servers, wait, slope, bend):  # type: ignore[no-untyped-def]
    """Marginal latency T + x T', ms, and its derivative by x, of one station."""
    per_rps = service_s / servers
    rho = rps * per_rps
    top = len(wait) - 1
    at = min(rho, RHO_MAX) / RHO_MAX * top
    low = min(int(at), top - 1)
    part = at - low
    w = (1.0 - part) * wait[low] + part * wait[low + 1]
    d = (1.0 - part) * slope[low] + part * slope[low + 1]
    b = (1.0 - part) * bend[low] + part * bend[low + 1]
    if rho > RHO_MAX:
        w, d, b = wait[top] + slope[top] * (rho - RHO_MAX), slope[top], 0.0
    return (
        1e3 * service_s * (1.0 + w + rho * d),
        1e3 * service_s * (2.0 * d + rho * b) * per_rps,
    )
