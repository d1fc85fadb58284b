"""What keeps a plan within bounds: floors, step limits, and whole numbers."""

import numpy as np

from xds_server.core.tables import Bools, Floats, Ints, Pairs

WEIGHT_TOTAL = 10_000
"""What the weights of one route add up to on the wire."""


def with_floor(pairs: Pairs, shares: Floats, allowed: Bools, floor_ratio: Floats) -> Floats:
    """(P,) shares of which every allowed pair has at least its ``floor_ratio`` (P,).

    The rest is scaled, so sums stay 1. Floors that together would take more than half of
    a route's traffic are lowered in proportion.
    """
    floor = floor_ratio * allowed
    total = pairs.sum_by_route(floor)
    if total.max(initial=0.0) > 0.5:
        fits = np.minimum(1.0, 0.5 / np.maximum(total, 1e-12))
        floor *= fits[pairs.route]
        total = total * fits
    fitted: Floats = (1.0 - total)[pairs.route]
    fitted *= shares
    fitted += floor
    return fitted


def onto_allowed(pairs: Pairs, shares: Floats, allowed: Bools) -> Floats:
    """(P,) shares with the masked pairs' traffic spread over the allowed, pro rata.

    Where no allowed pair had any, it is spread evenly. A route with none allowed gets 0.
    """
    kept = np.where(allowed, np.maximum(shares, 0.0), 0.0)
    total = pairs.sum_by_route(kept)
    even = allowed / np.maximum(pairs.sum_by_route(allowed.astype(np.float64)), 1.0)[pairs.route]
    spread: Floats = kept / np.maximum(total, 1e-300)[pairs.route]
    return np.where((total > 1e-12)[pairs.route], spread, even)


def without_gain(pairs: Pairs, shares: Floats, most: Floats, held: Bools) -> Floats:
    """(P,) shares of which pairs that are ``held`` (P,) have at most ``most`` (P,).

    What they would have had beyond it goes to the route's other pairs, pro rata; a route without
    any other that has traffic keeps it where it was.
    """
    rows = np.flatnonzero(held)
    route, mine = pairs.route[rows], shares[rows]
    capped = np.minimum(mine, most[rows])
    beyond = np.bincount(route, mine - capped, pairs.routes)
    others = pairs.sum_by_route(shares * ~held)
    taken = others > 1e-9
    grow = np.where(taken, 1.0 + beyond / np.maximum(others, 1e-9), 1.0)
    spread: Floats = grow[pairs.route]
    spread *= shares
    spread[rows] = np.where(taken[route], capped, mine)
    return spread


def moved_ratio(pairs: Pairs, before: Floats, after: Floats) -> Floats:
    """(R,) how much of each route's traffic changes provider, 0..1."""
    return 0.5 * pairs.sum_by_route(np.abs(after - before))


def limit_shift(pairs: Pairs, before: Floats, after: Floats, max_shift_ratio: float) -> Floats:
    """(P,) a step in the same direction that moves at most ``max_shift_ratio`` per route."""
    change = after - before
    moved = 0.5 * pairs.sum_by_route(np.abs(change))
    change *= np.minimum(1.0, max_shift_ratio / np.maximum(moved, 1e-12))[pairs.route]
    change += before
    return change


def wind_down(pairs: Pairs, shares: Floats, allowed: Bools, max_shift_ratio: float) -> Floats:
    """(P,) shares after one step in which masked pairs lose what they still have.

    At most ``max_shift_ratio`` of a route moves. Routes that none may serve keep their shares.
    """
    leaving = ~allowed & (shares > 0.0)
    if not leaving.any():
        return shares
    moving = pairs.any_by_route(leaving) & pairs.any_by_route(allowed)
    target = onto_allowed(pairs, shares, allowed)
    step = limit_shift(pairs, shares, target, max_shift_ratio)
    return np.where(moving[pairs.route], step, shares)


def to_weights(pairs: Pairs, shares: Floats) -> Ints:
    """(P,) whole weights that sum to ``WEIGHT_TOTAL`` over each served route.

    Largest remainder (Hamilton's method). No provider with a share above 0 is rounded
    to 0: it keeps 1, taken from the route's largest. A route whose shares are all 0
    gets all zeros; the caller must not publish it.
    """
    exact = np.maximum(shares, 0.0) * WEIGHT_TOTAL
    served = pairs.sum_by_route(exact) > 0.0
    weights = np.floor(exact)
    weights = np.where((exact > 0.0) & (weights < 1.0), 1.0, weights)
    missing = np.where(served, WEIGHT_TOTAL - pairs.sum_by_route(weights), 0.0)
    # Rank each pair inside its route by the remainder, largest first.
    # One sort key: the route, and within it how far the remainder is from 1.
    order = np.argsort(pairs.route + 0.5 * (1.0 - (exact - np.floor(exact))), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - pairs.starts[pairs.route[order]]
    weights += (rank < missing[pairs.route]) & (exact >= 1.0)
    # What is still missing, or was taken by raising tiny shares to 1, is the largest's.
    rest = np.where(served, WEIGHT_TOTAL - pairs.sum_by_route(weights), 0.0)
    largest = np.flatnonzero(weights >= pairs.max_by_route(weights)[pairs.route])[::-1]
    first = np.empty(pairs.routes, dtype=np.int64)
    first[pairs.route[largest]] = largest  # of equals, the first is written last
    weights[first] += rest
    return weights.astype(np.int64)
