"""What may not matter to the solver: units, order; how near it comes; and what it is given."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.gap import SIZES, draw, oracle, warmed
from tests.property.test_part import evaluation_of, mesh_of, problem_of
from tests.property.test_solver import instance
from tests.scenario.world import Plane, Station
from xds_server.core import limits, solver
from xds_server.core.tables import Pairs
from xds_server.engine.generate import generate
from xds_server.engine.select import select
from xds_server.engine.simulate import simulate
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.decision import HOLD_REASONS, Decision, HoldReason
from xds_server.model.telemetry import ProviderLoad
from xds_server.model.topology import EngineSettings, Mode

EXACT = 1e-11
"""Relative duality gap at which shares themselves may be compared."""
SAME = 1e-4


@given(st.integers(0, 10_000), st.floats(0.2, 1.5), st.floats(1e-2, 1e2))
@settings(max_examples=40, deadline=None)
def test_the_unit_of_time_does_not_matter(seed: int, load: float, k: float) -> None:
    pairs, allowed, now, demand, fixed, tau, stations = instance(seed, load=load)
    straight = solver.solve(pairs, allowed, now, demand, fixed, tau, stations, gap_ratio=EXACT)
    # kappa keeps the capacity what it was.
    longer = replace(stations, service_s=k * stations.service_s, kappa=k * stations.kappa)
    scaled = solver.solve(pairs, allowed, now, demand, k * fixed, k * tau, longer, gap_ratio=EXACT)
    np.testing.assert_allclose(scaled.shares, straight.shares, atol=SAME)
    np.testing.assert_allclose(scaled.price_ms, k * straight.price_ms, rtol=1e-3)


@given(st.integers(0, 10_000), st.floats(0.2, 1.5), st.floats(1e-2, 1e2))
@settings(max_examples=40, deadline=None)
def test_demands_and_capacities_in_proportion_do_not_matter(
    seed: int, load: float, k: float
) -> None:
    pairs, allowed, now, demand, fixed, tau, stations = instance(seed, load=load)
    straight = solver.solve(pairs, allowed, now, demand, fixed, tau, stations, gap_ratio=EXACT)
    larger = replace(stations, kappa=k * stations.kappa)
    scaled = solver.solve(pairs, allowed, now, k * demand, fixed, tau, larger, gap_ratio=EXACT)
    np.testing.assert_allclose(scaled.shares, straight.shares, atol=SAME)


@given(st.integers(0, 10_000), st.floats(0.2, 1.5))
@settings(max_examples=40, deadline=None)
def test_the_order_of_routes_does_not_matter(seed: int, load: float) -> None:
    pairs, allowed, now, demand, fixed, tau, stations = instance(seed, load=load)
    straight = solver.solve(pairs, allowed, now, demand, fixed, tau, stations, gap_ratio=EXACT)
    routes = np.random.default_rng(seed + 1).permutation(pairs.routes)
    rows = np.arange(len(now)).reshape(pairs.routes, -1)[routes].ravel()
    turned = Pairs(pairs.route.copy(), pairs.provider[rows], pairs.routes, pairs.providers)
    found = solver.solve(
        turned,
        allowed[rows],
        now[rows],
        demand[routes],
        fixed[rows],
        tau[routes],
        stations,
        gap_ratio=EXACT,
    )
    np.testing.assert_allclose(found.shares, straight.shares[rows], atol=SAME)


@given(st.integers(0, 100_000), st.sampled_from(SIZES[:1] * 2 + ((12, 6),)), st.floats(0.2, 1.3))
@settings(max_examples=20, deadline=None)
def test_steps_are_within_half_a_per_cent_of_the_oracle_cold_and_warm(
    seed: int, size: tuple[int, int], load: float
) -> None:
    rng = np.random.default_rng(seed)
    cold = draw(rng, *size, load)
    for step in (cold, warmed(rng, cold)):
        best = step.total_ms(oracle(step))
        assert step.total_ms(step.solve()) <= best + 0.005 * abs(best)


# -- whatever models say -------------------------------------------------------------------


def decided(problem: Problem, evaluation: Evaluation) -> Decision:
    """One tick's plan for an evaluation, as the loop makes it."""
    frozen = np.zeros(len(evaluation.allowed), dtype=bool)
    candidates = generate(problem, evaluation, evaluation.shares_now, frozen, EngineSettings())
    return select(problem, evaluation, simulate(problem, evaluation, candidates), Mode.ENFORCE)


def assert_deployable(problem: Problem, evaluation: Evaluation, decision: Decision) -> None:
    """Whole weights that sum up, on allowed pairs alone; or hold, and say why."""
    pairs, weights = problem.pairs, limits.to_weights(problem.pairs, decision.shares)
    assert np.all(np.isfinite(decision.shares))
    assert np.all(weights >= 0)
    served = pairs.any_by_route(evaluation.allowed)
    np.testing.assert_array_equal(pairs.sum_by_route(weights)[served], limits.WEIGHT_TOTAL)
    moved = decision.reason == HOLD_REASONS.index(HoldReason.NONE)
    wound_down = ~evaluation.allowed & (decision.shares > evaluation.shares_now + 1e-9)
    assert not np.any(wound_down)  # who is masked gets no more than it has
    assert np.all(decision.reason[~served] == HOLD_REASONS.index(HoldReason.NO_PROVIDER))
    assert not np.any(moved & ~served)


Change = Callable[[Evaluation, np.random.Generator], Evaluation]


def _silent(e: Evaluation, rng: np.random.Generator) -> Evaluation:
    return replace(e, demand_rps=0.0 * e.demand_rps)


def _masked(e: Evaluation, rng: np.random.Generator) -> Evaluation:
    return replace(e, allowed=np.zeros_like(e.allowed))


def _some_masked(e: Evaluation, rng: np.random.Generator) -> Evaluation:
    return replace(e, allowed=e.allowed & (rng.random(len(e.allowed)) < 0.5))


def _saturated(e: Evaluation, rng: np.random.Generator) -> Evaluation:
    return replace(e, demand_rps=1e3 * e.demand_rps)


def _tiny_capacity(e: Evaluation, rng: np.random.Generator) -> Evaluation:
    kappa = np.where(rng.random(len(e.stations.kappa)) < 0.5, 1e-9, e.stations.kappa)
    return replace(e, stations=replace(e.stations, kappa=kappa))


CHANGES: dict[str, Change] = {
    "no demand": _silent,
    "all masked": _masked,
    "some masked": _some_masked,
    "all saturated": _saturated,
    "hardly any capacity": _tiny_capacity,
}


@pytest.mark.parametrize("name", CHANGES)
@given(seed=st.integers(0, 10_000), load=st.floats(0.1, 1.5))
@settings(max_examples=15, deadline=None)
def test_every_plan_can_be_deployed_or_says_why_it_holds(name: str, seed: int, load: float) -> None:
    rng = np.random.default_rng(seed)
    problem = problem_of(*mesh_of(rng))
    evaluation = CHANGES[name](evaluation_of(rng, problem, load), rng)
    decision = decided(problem, evaluation)
    assert_deployable(problem, evaluation, decision)
    expected = {"no demand": HoldReason.NO_DEMAND, "all masked": HoldReason.NO_PROVIDER}
    if name in expected:
        reasons = {HOLD_REASONS[code] for code in decision.reason}
        passed_over = {HoldReason.NO_PROVIDER, HoldReason.ONE_PROVIDER, HoldReason.NO_TELEMETRY}
        assert reasons <= {expected[name], *passed_over}


def test_with_one_provider_there_is_nothing_to_choose() -> None:
    plane = Plane({"only": Station(0.02, 4)}, 100.0)
    plane.step(10)
    assert plane.last is not None
    assert [HOLD_REASONS[c] for c in plane.last.decision.reason] == [HoldReason.ONE_PROVIDER]
    assert plane.shares == {"only": 1.0}


class Claiming(Plane):
    """The world, whose providers say of their utilisation what they are told to."""

    claim: float = np.nan

    def _load(self) -> ProviderLoad:
        load = super()._load()
        return replace(load, utilisation_ratio=np.full(len(load.providers), self.claim))


def assert_published(plane: Plane, ticks: int) -> None:
    """Whole weights that sum up, at every tick."""
    for _ in range(ticks):
        plane.step()
        assert plane.last is not None
        assert np.all(np.isfinite(plane.last.decision.shares))
        for services in plane.actuator.overlays[-1].weights.values():
            assert sum(services["search"].values()) == limits.WEIGHT_TOTAL
            assert min(services["search"].values()) >= 0


@pytest.mark.parametrize("capacity_rps", [1e-300, 1e-3, 1e12, np.nan])
@pytest.mark.parametrize("whose", [["east"], ["east", "west"]])
def test_a_capacity_that_cannot_be_leaves_weights_that_can(
    capacity_rps: float, whose: list[str]
) -> None:
    plane = Plane({"east": Station(0.02, 8), "west": Station(0.03, 8)}, 300.0)
    plane.step(10)
    models = plane.state.models
    mean = models.capacity.mean.copy()
    mean[[plane.state.problem.providers.index(name) for name in whose]] = np.log(capacity_rps)
    plane.state.models = replace(models, capacity=replace(models.capacity, mean=mean))
    assert_published(plane, 5)


@pytest.mark.parametrize("claim", [0.0, -1.0, 1e-300, 1e300, np.inf, np.nan])
def test_whatever_providers_say_of_their_utilisation_weights_can_be_deployed(
    claim: float,
) -> None:
    plane = Claiming({"east": Station(0.02, 8), "west": Station(0.03, 8)}, 300.0)
    plane.claim = claim  # a capacity of infinity, of nothing, or none at all
    assert_published(plane, 12)
