"""Stories: what did harm is taken back, and what did not is left alone."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.scenario.harm import HARMLESS, get_cheap_and_break, settled
from tests.scenario.world import Plane
from xds_server.engine.adopt import adopt
from xds_server.engine.revert import FREEZE_S, welch_p
from xds_server.engine.trials import DAMPING, DAMPING_S, FLIP_TICKS, FLIPS_MAX, follow
from xds_server.model.decision import HoldReason, Move, Reverted

SEEDS = 20


def run(plane: Plane, ticks: int) -> list[tuple[int, Reverted]]:
    found = []
    for tick in range(ticks):
        plane.step()
        assert plane.last is not None
        found += [(tick, reverted) for reverted in plane.last.reverted]
    return found


def reverted(seed: int = 1) -> tuple[Plane, Reverted]:
    plane = settled(seed)
    get_cheap_and_break(plane)
    ((_, first),) = run(plane, 8)
    return plane, first


def test_what_did_harm_is_taken_back_within_three_ticks_and_who_gained_is_frozen() -> None:
    found = 0
    for seed in range(SEEDS):
        plane = settled(seed)
        before = plane.shares
        get_cheap_and_break(plane)
        cliff = plane.stations["managed"]
        harmed_at: list[int] = []
        for tick in range(8):
            if plane.rps * plane.shares["managed"] > cliff.cliff_rps:  # type: ignore[attr-defined]
                harmed_at.append(tick)
            plane.step()
            assert plane.last is not None
            if plane.last.reverted:
                (what,) = plane.last.reverted
                assert what.frozen == ("managed",)
                assert tick - harmed_at[0] <= 3
                found += 1
        # Whoever reacts first, the models or the revert: it does not last.
        assert plane.shares["managed"] < before["managed"] + 0.05
        assert len(harmed_at) <= 3
    assert found >= 0.75 * SEEDS


@pytest.mark.parametrize("event", HARMLESS)
def test_what_did_no_harm_is_not_taken_back(event) -> None:  # type: ignore[no-untyped-def]
    false = 0
    for seed in range(SEEDS // 2):
        plane = settled(seed)
        event(plane)
        false += bool(run(plane, 25))
    assert false == 0


def test_a_reverted_route_says_so_and_its_shares_are_those_of_before() -> None:
    plane = settled(1)
    before = plane.shares
    get_cheap_and_break(plane)
    found: list[Reverted] = []
    while not found:
        plane.step()
        assert plane.last is not None
        found += plane.last.reverted
    assert plane.last is not None
    assert plane.last.decision.move[0] == list(Move).index(Move.LAST_GOOD)
    assert max(abs(plane.shares[n] - before[n]) for n in before) < 0.01
    assert "frozen for 600 s: managed" in found[0].because
    assert found[0].observed_s > found[0].predicted_s


def test_who_is_frozen_gains_nothing_until_its_time_is_over() -> None:
    plane, _ = reverted()
    low = plane.shares["managed"]
    plane.stations["managed"].cliff_rps = 1e9  # type: ignore[attr-defined]
    shares = []
    for _ in range(60):
        plane.step()
        shares.append(plane.shares["managed"])
    assert max(shares) <= low + 0.005
    assert plane.last is not None
    plane.now_s += FREEZE_S
    plane.step(30)
    assert plane.shares["managed"] > low + 0.1


def test_a_frozen_provider_is_used_again_when_another_fails() -> None:
    plane, _ = reverted()
    plane.stations["managed"].cliff_rps = 1e9  # type: ignore[attr-defined]
    plane.stations["east"].error_ratio = 1.0
    plane.step(8)
    assert plane.shares["managed"] > 0.3


def test_a_hold_because_of_freezing_is_told_from_other_holds() -> None:
    plane, _ = reverted()
    reasons: set[HoldReason] = set()
    for _ in range(20):
        plane.step()
        assert plane.last is not None
        reasons.update(plane.last.decision.hold_reason)
    assert HoldReason.FROZEN in reasons


def test_freezing_outlives_a_rebuilt_problem() -> None:
    plane, _ = reverted()
    frozen = plane.state.trials.frozen(plane.now_s)
    after = adopt(plane.state, plane.state.problem)
    assert frozen.any()
    assert (after.trials.frozen(plane.now_s) == frozen).all()


def test_a_route_that_alternates_is_damped_and_later_is_not() -> None:
    plane = settled(1)
    assert plane.last is not None
    trials, last = plane.state.trials, plane.last
    step = np.array([0.1, -0.1, 0.0])
    evaluation = replace(last.evaluation, shares_now=np.array([0.4, 0.4, 0.2]))
    damped_after = None
    for tick in range(FLIPS_MAX + 2):
        step = -step
        deployment = replace(last.deployment, shares=evaluation.shares_now + step, published=True)
        trials = follow(
            plane.state.problem, evaluation, plane.state.models, deployment, trials, tick_s=1.0
        )
        if damped_after is None and trials.damping(evaluation.now_s)[0] == DAMPING:
            damped_after = tick
    assert damped_after in (FLIPS_MAX, FLIPS_MAX + 1)  # the first step may follow on from another
    assert trials.damping(evaluation.now_s + DAMPING_S + 1.0)[0] == 1.0


def test_a_route_that_goes_on_in_one_direction_is_not_damped() -> None:
    plane = settled(1)
    assert plane.last is not None
    trials, last = plane.state.trials, plane.last
    evaluation = replace(last.evaluation, shares_now=np.array([0.4, 0.4, 0.2]))
    deployment = replace(last.deployment, shares=np.array([0.41, 0.39, 0.2]), published=True)
    for _ in range(2 * FLIP_TICKS):
        trials = follow(
            plane.state.problem, evaluation, plane.state.models, deployment, trials, tick_s=1.0
        )
    assert trials.damping(evaluation.now_s)[0] == 1.0


def test_welchs_test_is_scipys() -> None:
    plane = settled(1)
    assert plane.last is not None
    rng = np.random.default_rng(3)
    before, after = rng.gamma(2.0, 0.010, 60), rng.gamma(3.0, 0.008, 90)
    seen = replace(
        plane.last.evaluation.observation,
        route_latency_s=np.array([after.mean()]),
        route_cv2=np.array([after.var(ddof=1) / after.mean() ** 2]),
        route_responses=np.array([float(len(after))]),
    )
    route = replace(
        plane.state.trials.route,
        mean_s=np.array([before.mean()]),
        cv2=np.array([before.var(ddof=1) / before.mean() ** 2]),
        responses=np.array([float(len(before))]),
    )
    wanted = stats.ttest_ind(after, before, equal_var=False, alternative="greater").pvalue
    evaluation = replace(plane.last.evaluation, observation=seen)
    found = welch_p(evaluation, route, np.array([True]))
    assert found[0] == pytest.approx(wanted, rel=1e-6)
