"""Explanations over random problems: terms add up, and "why not" is exact."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.test_solver import instance
from tests.scenario.world import Plane, Station
from xds_server.core import limits, objective, solver
from xds_server.core.tables import Pairs
from xds_server.engine.explain import explain
from xds_server.engine.gain import decided_gains, prices_between, route_gains
from xds_server.engine.why import OneRoute, ahead, one_route, optimum
from xds_server.model.decision import MOVES, HoldReason, Move
from xds_server.model.explanation import GAIN_TERMS
from xds_server.model.template import Profile

seeds = st.integers(0, 10_000)


def plane(seed: int, ticks: int) -> Plane:
    """A mesh of five random providers, in the middle of something."""
    rng = np.random.default_rng(seed)
    stations = {
        f"p{i}": Station(rng.uniform(0.01, 0.05), int(rng.integers(2, 9)), rng.uniform(0.1, 2.0))
        for i in range(5)
    }
    found = Plane(stations, float(rng.uniform(50.0, 250.0)), seed=seed)
    found.step(ticks)
    return found


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 8))
def test_the_terms_of_every_decision_add_up_to_the_gain_that_the_gate_used(
    seed: int, ticks: int
) -> None:
    world = plane(seed, ticks)
    last, problem = world.last, world.state.problem
    assert last is not None
    told = explain(problem, last, problem.routes[0], world.mesh)
    assert tuple(told.gain_terms) == GAIN_TERMS
    assert told.gain_ms == float(last.decision.gain_ms[0])
    scale = sum(abs(v) for v in told.gain_terms.values())
    assert abs(sum(told.gain_terms.values()) - told.gain_ms) <= 1e-9 * scale
    if told.move is not Move.HOLD:
        assert told.gain_ms > 0.0
    for term in told.terms:
        parts = (
            term.latency_ms + term.queueing_ms + term.distance_ms + term.backlog_ms
            + term.error_ms + term.price_ms + term.egress_ms + term.geography_ms + term.slo_ms
        )  # fmt: skip
        assert parts == pytest.approx(term.total_ms)
        assert term.total_ms + term.queueing_rent_ms == pytest.approx(term.marginal_ms)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_every_push_is_explained_by_terms_of_what_was_pushed(seed: int) -> None:
    """Also where a move was shortened or taken back, a floor is fed, or a provider is left."""
    world = plane(seed, 3)
    rng = np.random.default_rng(seed)
    moves = set()
    for _ in range(25):
        name = f"p{rng.integers(5)}"
        if rng.random() < 0.2:
            world.stations[name].service_s *= float(rng.choice([0.2, 5.0]))
        if rng.random() < 0.1:
            world.without = frozenset({name}) - world.without  # its endpoints come and go
            world.enter(world.phase)
        world.step()
        last, problem = world.last, world.state.problem
        assert last is not None
        pushed = last.evaluation.shares_now - last.deployment.shares
        if not pushed.any():
            continue
        moves.add(MOVES[last.decision.move[0]])
        told = explain(problem, last, problem.routes[0], world.mesh)
        gains = decided_gains(problem, last.evaluation, last.simulated, last.decision)
        np.testing.assert_allclose(gains.change, pushed, atol=1e-9)
        assert told.gain_ms == pytest.approx(float(last.decision.gain_ms[0]))
        assert told.options[0].move is told.move
        assert told.options[0].chosen
        scale = sum(abs(v) for v in told.gain_terms.values())
        assert abs(sum(told.gain_terms.values()) - told.gain_ms) <= 1e-9 * scale
    assert Move.HOLD not in moves


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 8))
def test_a_route_that_is_alone_gains_what_its_forecast_says(seed: int, ticks: int) -> None:
    """The gain, before what the move costs, is the objective of now less that of the plan."""
    world = plane(seed, ticks)
    last = world.last
    assert last is not None
    evaluation, pairs = last.evaluation, world.state.problem.pairs
    gains = route_gains(world.state.problem, evaluation, last.simulated)

    def total(shares) -> float:
        return objective.total_ms(
            pairs, shares, evaluation.demand_rps, evaluation.costs.total, evaluation.stations
        )

    difference = total(evaluation.shares_now) - total(gains.plan.shares)
    gained = float(evaluation.demand_rps @ gains.gross_ms)
    assert gained == pytest.approx(difference, rel=1e-6, abs=1e-6 * total(gains.plan.shares))


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0.1, 1.3))
def test_the_gains_of_routes_that_share_providers_add_up_to_the_plans(
    seed: int, load: float
) -> None:
    pairs, allowed, now, demand, fixed, tau, stations = instance(seed, load=load)
    plan = solver.solve(pairs, allowed, now, demand, fixed, tau, stations).shares
    flow = demand[pairs.route]
    prices = prices_between(
        stations, pairs.sum_by_provider(flow * now), pairs.sum_by_provider(flow * plan)
    )
    gains = pairs.sum_by_route((now - plan) * (fixed + prices.total_ms[pairs.provider]))
    totals = [objective.total_ms(pairs, w, demand, fixed, stations) for w in (now, plan)]
    assert float(demand @ gains) == pytest.approx(totals[0] - totals[1], rel=1e-6, abs=1e-3)
    assert (prices.rent_ms >= 0.0).all()


def random_route(seed: int) -> OneRoute:
    """One of six routes, with floors; the others keep their traffic."""
    pairs, allowed, now, demand, fixed, _, stations = instance(seed, load=0.6)
    floor = np.full(len(now), 0.02)
    fixed = fixed * np.random.default_rng(seed).uniform(0.5, 3.0)
    return one_route(pairs, 0, now, demand, fixed, stations, allowed, floor)[0]


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_at_the_optimum_all_that_is_used_costs_the_same_and_nothing_else_less(seed: int) -> None:
    route = random_route(seed)
    best = optimum(route)
    marginal = route.marginal_ms(best.shares)
    assert best.shares.sum() == pytest.approx(1.0)
    assert (best.shares >= route.floor - 1e-9).all()
    assert (best.shares[~route.allowed] == 0.0).all()
    used = best.shares > route.floor + 1e-5
    np.testing.assert_allclose(marginal[used], best.mu_ms, rtol=1e-4)
    assert (marginal[route.allowed] >= best.mu_ms * (1.0 - 1e-4)).all()


@settings(max_examples=12, deadline=None)
@given(seeds)
def test_what_a_provider_lacks_is_exact(seed: int) -> None:
    """With a little more than that it gains share, with nine tenths of it it does not."""
    route = random_route(seed)
    best = optimum(route)
    for k in np.flatnonzero(best.short_ms > 0.05)[:2]:
        for part, gains in ((0.9, False), (1.1, True)):
            found = optimum(with_bonus(route, int(k), part * best.short_ms[k]))
            assert (found.shares[k] > route.floor[k] + 1e-6) == gains


@pytest.mark.parametrize("seed", [0, 1, 2, 6, 7])
def test_the_engines_solver_agrees_about_what_a_provider_lacks(seed: int) -> None:
    """It knows nothing of the bisection that the explanation comes from."""
    route = random_route(seed)
    best = optimum(route)
    k = int(best.short_ms.argmax())
    assert best.short_ms[k] > 1.0
    for part in (0.9, 1.1):
        better = with_bonus(route, k, part * best.short_ms[k])
        settled = settled_by_the_solver(better)
        np.testing.assert_allclose(settled, optimum(better).shares, atol=3e-3)
        assert (settled[k] > route.floor[k] + 1e-3) == (part > 1.0)


def with_bonus(route: OneRoute, k: int, bonus_ms: float) -> OneRoute:
    """The same with provider ``k`` that much better."""
    fixed_ms = route.fixed_ms.copy()
    fixed_ms[k] -= bonus_ms
    return replace(route, fixed_ms=fixed_ms)


def settled_by_the_solver(route: OneRoute) -> np.ndarray:
    """The shares above the floors, by as many of the solver's steps as it takes to rest."""
    count = len(route.floor)
    pairs = Pairs(
        np.concatenate([np.zeros(count, dtype=np.int64), 1 + np.arange(count)]),
        np.concatenate([np.arange(count), np.arange(count)]),
        1 + count,
        count,
    )
    free = 1.0 - route.floor.sum()
    demand = np.concatenate([[free * route.demand_rps],
                             route.others_rps + route.demand_rps * route.floor])  # fmt: skip
    fixed = np.concatenate([route.fixed_ms, np.zeros(count)])
    allowed = np.concatenate([route.allowed, np.ones(count, dtype=bool)])
    # So small a reluctance that a share that is not worth it vanishes within a few steps.
    tau = np.concatenate([[0.01], np.full(count, 1e12)])
    at = limits.onto_allowed(
        Pairs(np.zeros(count, dtype=np.int64), np.arange(count), 1, count),
        np.ones(count), route.allowed,
    )  # fmt: skip
    for _ in range(30):
        now = np.concatenate([at, np.ones(count)])
        at = solver.solve(
            pairs, allowed, now, demand, fixed, tau, route.stations, gap_ratio=1e-9
        ).shares[:count]
    shares: np.ndarray = route.floor + free * at
    return shares


def test_a_route_that_nothing_may_serve_has_no_optimum() -> None:
    route = random_route(1)
    masked = replace(route, allowed=np.zeros_like(route.allowed), floor=np.zeros_like(route.floor))
    best = optimum(masked)
    assert not best.shares.any()
    assert np.isinf(best.mu_ms)
    assert len(ahead(masked, route.floor, 10.0, 0.3)) == 1


def test_what_is_on_its_way_arrives_when_it_was_said() -> None:
    stations = {"east": Station(0.02, 8, 0.6), "west": Station(0.02, 8, 0.3)}
    profile = Profile("steady", performance_weight=0.7, cost_weight=0.3)
    world = Plane(stations, 300.0, profiles=(profile,))
    world.step(20)
    stations["west"].price_usd_per_million = 6.0
    world.step(1)
    last, problem = world.last, world.state.problem
    assert last is not None
    told = {t.provider: t for t in explain(problem, last, problem.routes[0], world.mesh).terms}
    assert told["west"].verdict == "falling"
    assert told["west"].ticks is not None
    world.step(told["west"].ticks + 4)
    now = world.last
    assert now is not None
    later = {t.provider: t for t in explain(problem, now, problem.routes[0], world.mesh).terms}
    assert later["west"].verdict == "not worth more"
    assert later["west"].short_ms > 0.0
    assert later["west"].short_usd_per_million < 6.0


def test_without_telemetry_nothing_is_on_its_way() -> None:
    world = plane(3, 3)
    world.silent = True
    world.step(6)
    last, problem = world.last, world.state.problem
    assert last is not None
    told = explain(problem, last, problem.routes[0], world.mesh)
    assert told.hold_reason is HoldReason.NO_TELEMETRY
    assert all(t.ticks is None for t in told.terms)
    (first, second) = told.options[:2]
    assert (first.move, first.chosen, first.lost_because) == (Move.HOLD, True, "")
    assert not second.chosen
    assert second.lost_because


def test_a_way_back_is_told_in_terms_of_its_own() -> None:
    world = plane(5, 4)
    last, problem = world.last, world.state.problem
    assert last is not None
    back = np.full(1, MOVES.index(Move.LAST_GOOD))
    goal = limits.limit_shift(
        problem.pairs, last.evaluation.shares_now, problem.baseline_shares, 0.2
    )
    decision = replace(last.decision, move=back, shares=goal)
    told = explain(problem, replace(last, decision=decision), problem.routes[0], world.mesh)
    assert told.move is Move.LAST_GOOD
    assert sum(told.gain_terms.values()) == pytest.approx(told.gain_ms)
    first, *others = told.options
    assert (first.move, first.chosen, first.gain_ms) == (Move.LAST_GOOD, True, told.gain_ms)
    assert all("harm was observed" in option.lost_because for option in others)
