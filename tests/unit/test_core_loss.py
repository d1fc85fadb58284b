"""What is left when the largest provider is lost: against a loop over routes."""

import numpy as np
import pytest

from xds_server.core import latency
from xds_server.core.latency import PowerCurves, Stations
from xds_server.core.loss import NOTABLE_SHARE, p95_after_loss
from xds_server.core.tables import Floats, Pairs


def stations(rng: np.random.Generator, count: int) -> Stations:
    ones = np.ones(count)
    power = PowerCurves(
        np.arange(count) % 3 == 0,
        rng.uniform(0.01, 0.05, count),
        rng.uniform(0.0, 0.02, (count, 1)),
        rng.uniform(20.0, 50.0, count),
        (2.0,),
    )
    return Stations(rng.uniform(0.01, 0.05, count), 4.0 * ones, ones, ones, 2.0 * ones, power)


def by_hand(
    pairs: Pairs, shares: Floats, demand: Floats, curves: Stations, rtt: Floats, r: int
) -> float:
    mine = np.flatnonzero(pairs.route == r)
    gone = pairs.provider[mine[int(shares[mine].argmax())]]
    rps = np.zeros(pairs.providers)
    for other in range(pairs.routes):
        rows = np.flatnonzero(pairs.route == other)
        split = shares[rows].copy()
        hit = pairs.provider[rows] == gone
        lost = split[hit].sum()
        if other != r and lost <= NOTABLE_SHARE:
            rps[pairs.provider[rows]] += demand[other] * split
            continue
        split[hit] = 0.0
        if split.sum() > 0.0:
            rps[pairs.provider[rows]] += demand[other] * split / split.sum()
    left = mine[pairs.provider[mine] != gone]
    p95 = latency.p95_s(curves, rps)
    total = shares[left].sum()
    if total <= 0.0:
        return np.inf
    return float(shares[left] @ (p95[pairs.provider[left]] + rtt[left]) / total)


@pytest.mark.parametrize("seed", range(10))
def test_the_closed_form_is_what_a_loop_over_all_routes_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    routes, providers = 7, 5
    chosen = [np.sort(rng.choice(providers, rng.integers(1, 5), replace=False)) for _ in range(7)]
    pairs = Pairs(
        np.repeat(np.arange(routes), [len(c) for c in chosen]),
        np.concatenate(chosen).astype(np.int64),
        routes,
        providers,
    )
    raw = rng.gamma(0.7, 1.0, len(pairs.route)) + 1e-3
    shares = raw / pairs.sum_by_route(raw)[pairs.route]
    demand, rtt = rng.uniform(1.0, 40.0, routes), rng.uniform(0.0, 0.01, len(raw))
    curves = stations(rng, providers)
    found = p95_after_loss(pairs, shares, demand, curves, rtt, np.ones(routes, dtype=bool))
    wanted = [by_hand(pairs, shares, demand, curves, rtt, r) for r in range(routes)]
    assert found == pytest.approx(wanted)


def test_nothing_is_said_of_routes_that_nobody_asked_about_or_that_call_nothing() -> None:
    pairs = Pairs(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), 2, 2)
    shares, rtt = np.full(4, 0.5), np.zeros(4)
    curves = stations(np.random.default_rng(1), 2)
    demand = np.array([0.0, 5.0])
    asked = np.array([True, False])
    assert np.isnan(p95_after_loss(pairs, shares, demand, curves, rtt, asked)).all()
