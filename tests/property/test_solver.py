"""The solver against an independent oracle, and what must hold for any instance."""

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xds_server.core import latency, limits, solver
from xds_server.core.latency import Stations
from xds_server.core.tables import Pairs


def instance(seed: int, routes: int = 6, providers: int = 5, load: float = 0.7):
    rng = np.random.default_rng(seed)
    pairs = Pairs(
        np.repeat(np.arange(routes), providers),
        np.tile(np.arange(providers), routes),
        routes,
        providers,
    )
    stations = Stations(
        rng.uniform(0.005, 0.05, providers),
        np.ones(providers),  # one server: the wait is the M/M/1 queue's, which cvxpy can say
        np.ones(providers),
        np.ones(providers),
        np.full(providers, 2.0),
    )
    allowed = rng.random(routes * providers) < 0.8
    allowed[::providers] = True
    demand = rng.uniform(0.5, 2.0, routes)
    demand *= load * stations.capacity_rps.sum() / demand.sum()
    now = limits.onto_allowed(pairs, rng.uniform(0.2, 1.0, routes * providers), allowed)
    fixed = rng.uniform(0.0, 40.0, routes * providers)
    # As the engine does: reluctance in proportion to the route's present mean latency.
    mean = latency.mean_s(stations, pairs.sum_by_provider(demand[pairs.route] * now))
    tau = 0.9e3 * pairs.sum_by_route(now * mean[pairs.provider])
    return pairs, allowed, now, demand, fixed, tau, stations


def step_objective(pairs, shares, now, demand, fixed, tau, stations) -> float:
    flow = demand[pairs.route] * shares
    rps = pairs.sum_by_provider(flow)
    used = shares > 1e-15
    drift = np.zeros_like(shares)
    anchor = np.maximum(now, solver.SHARE_FLOOR)
    drift[used] = shares[used] * np.log(shares[used] / anchor[used])
    return float(
        flow @ fixed
        + 1e3 * rps @ latency.mean_s(stations, rps)
        + (tau * demand)[pairs.route] @ drift
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_solution_is_within_half_a_per_cent_of_the_oracle(seed: int) -> None:
    pairs, allowed, now, demand, fixed, tau, stations = instance(seed, load=0.5)
    found = solver.solve(pairs, allowed, now, demand, fixed, tau, stations)

    w = cp.Variable(len(now), nonneg=True)
    to_route = np.eye(pairs.routes)[:, pairs.route]
    to_provider = np.eye(pairs.providers)[:, pairs.provider] * demand[pairs.route]
    rho = cp.multiply(to_provider @ w, stations.service_s)
    # x T(x) of M/M/1 is rho / (1 - rho); above RHO_LINEAR it follows the tangent of T, a
    # quadratic; the oracle's optimum is checked to lie below that.
    queue = cp.sum(cp.inv_pos(1.0 - rho) - 1.0)
    anchor = np.maximum(now, solver.SHARE_FLOOR)
    kl = cp.sum(
        cp.multiply((tau * demand)[pairs.route], -cp.entr(w) - cp.multiply(w, np.log(anchor)))
    )
    problem = cp.Problem(
        cp.Minimize(((demand[pairs.route] * fixed) @ w + 1e3 * queue + kl) / (1e2 * demand.sum())),
        [to_route @ w == 1.0, w[~allowed] == 0.0],
    )
    problem.solve(solver=cp.CLARABEL)
    assert float(np.max(rho.value)) < latency.RHO_LINEAR

    oracle = limits.onto_allowed(pairs, np.maximum(w.value, 0.0), allowed)
    best = step_objective(pairs, oracle, now, demand, fixed, tau, stations)
    ours = step_objective(pairs, found.shares, now, demand, fixed, tau, stations)
    assert ours <= best * 1.005
    assert found.gap_ratio < 0.005


@given(st.integers(0, 10_000), st.floats(0.05, 2.5))
@settings(max_examples=60, deadline=None)
def test_any_load_gives_a_plan_on_the_simplex(seed: int, load: float) -> None:
    pairs, allowed, now, demand, fixed, tau, stations = instance(seed, load=load)
    found = solver.solve(pairs, allowed, now, demand, fixed, tau, stations)
    assert np.allclose(pairs.sum_by_route(found.shares), 1.0)
    assert np.all(found.shares[~allowed] == 0.0)
    assert np.all(np.isfinite(found.price_ms))


@given(st.integers(0, 10_000), st.integers(0, 4), st.floats(0.5, 50.0))
@settings(max_examples=40, deadline=None)
def test_a_dearer_provider_never_gets_more(seed: int, which: int, extra_ms: float) -> None:
    pairs, allowed, now, demand, fixed, tau, stations = instance(seed)
    before = solver.solve(pairs, allowed, now, demand, fixed, tau, stations, gap_ratio=1e-10)
    dearer = fixed + extra_ms * (pairs.provider == which)
    after = solver.solve(pairs, allowed, now, demand, dearer, tau, stations, gap_ratio=1e-10)
    flow = demand[pairs.route]
    was = pairs.sum_by_provider(flow * before.shares)[which]
    now_gets = pairs.sum_by_provider(flow * after.shares)[which]
    assert now_gets <= was * (1 + 1e-5) + 1e-6


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_order_of_providers_does_not_matter(seed: int) -> None:
    pairs, allowed, now, demand, fixed, tau, stations = instance(seed)
    straight = solver.solve(pairs, allowed, now, demand, fixed, tau, stations).shares
    k = pairs.providers
    flip = (np.arange(len(now)).reshape(-1, k)[:, ::-1]).ravel()
    turned = Stations(
        *(getattr(stations, f)[::-1].copy() for f in Stations.__slots__ if f != "power")
    )
    mirrored = solver.solve(
        pairs, allowed[flip], now[flip], demand, fixed[flip], tau, turned
    ).shares
    assert np.allclose(mirrored[flip], straight, atol=2e-3)


def test_without_demand_the_plan_follows_the_costs_and_stays_finite() -> None:
    pairs, allowed, now, demand, fixed, tau, stations = instance(1)
    found = solver.solve(pairs, allowed, now, demand * 0.0, fixed, tau, stations)
    assert np.allclose(pairs.sum_by_route(found.shares), 1.0)
    assert found.gap_ratio == 0.0
