"""Takes back what did harm, at once, and keeps it from being done again for a while.

A route on trial goes back to the shares that it had when what is observed is worse than its plans'
own forecast by ``HARM_Z`` standard deviations on ``HARM_TICKS`` ticks in a row, worse than before
the move (B. L. Welch, "The generalization of Student's problem when several different population
variances are involved", Biometrika 34, 1947), and nothing else explains it: demand, prices, or a
provider that changed without having been given more. Who had gained may not gain from that route
for ``FREEZE_S``.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from scipy.special import stdtr

from xds_server.core import limits
from xds_server.core.tables import Bools, Floats
from xds_server.engine.models import Models
from xds_server.engine.trials import (
    TRIAL_TICKS,
    PairTrials,
    RouteTrials,
    Trials,
    harm_z,
    planned_rps,
)
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.decision import HOLD_REASONS, MOVES, Decision, HoldReason, Move, Reverted

HARM_Z: Final = 3.0
HARM_TICKS: Final = 2
WELCH_P: Final = 0.01
SAMPLES_MIN: Final = 10.0
"""Responses without which there is no mean to compare."""
FAILING_RATIO: Final = 0.05
EXOGENOUS_RATIO: Final = 0.15
"""Relative change of demand, price or a provider's own service time that explains harm itself."""
LOADED_RATIO: Final = 0.1
"""A provider that was given more than this may be slower for it."""
USED_SHARE: Final = 0.02
GAINED_SHARE: Final = 0.03
"""A provider gained, or a route is not back yet, from this part of its traffic on."""
GAINED_PART: Final = 0.25
"""And from this part of what the one that gained most did."""
FREEZE_S: Final = 600.0
DRAIN_TICKS: Final = 4
IDLE_RATIO: Final = 0.5
"""Part of the load it had at most in the trial below which a provider is without it, once so many
ticks have drained what waited."""
SLOW_RATIO: Final = 0.5
SLOW_Z: Final = 3.0
SLOW_TICKS: Final = 3.0
"""What is seen of a provider at its floor is a handful of responses: it must be clear, and last."""
COMMON_RATIO: Final = 0.1
"""Rise of the response times of those who have no part in a move that is everybody's."""
THAW_DEMAND_RATIO: Final = 1.5
THAW_ERROR_RATIO: Final = 0.2
"""Freezing ends early where demand grows so much, or a provider in use fails so often: then all are
needed."""
RETURN_TICKS: Final = 5
REVERT_SHIFT: Final = 2.0
"""Largest step of the way back, in largest steps; and how many ticks it may take."""
_LOSES = np.array(
    [reason in (HoldReason.GAIN_BELOW_COST, HoldReason.DEADBAND) for reason in HOLD_REASONS]
)


def review(
    problem: Problem,
    evaluation: Evaluation,
    models: Models,
    decision: Decision,
    trials: Trials,
    *,
    max_shift_ratio: float,
    tick_s: float,
) -> tuple[Decision, Trials, tuple[Reverted, ...]]:
    """Judge the routes on trial; those that were harmed go back, whatever was decided.

    Returns
    -------
    the decision with the way back in it, the trials as they are now, and what was reverted
    """
    now_s, pairs = evaluation.now_s, problem.pairs
    pair = _thaw(problem, evaluation, models, trials, tick_s=tick_s)
    route = trials.route
    z = np.where(_heard(evaluation, route), harm_z(evaluation, route), -np.inf)
    worse = np.where(z > HARM_Z, route.worse + 1, 0)
    route = replace(route, worse=worse)
    found: tuple[Reverted, ...] = ()
    suspects = worse >= HARM_TICKS
    if suspects.any():
        gained = _gained(problem, pair)
        p_value = welch_p(evaluation, route, suspects)
        harmed = suspects & (p_value < WELCH_P) & pairs.any_by_route(gained)
        if harmed.any():
            harmed &= ~_explained(problem, evaluation, models, route, pair, gained, harmed)
        harmed &= not _all_slower(problem, evaluation, route, suspects, gained)
        found = tuple(_reverted(problem, evaluation, route, harmed, gained, z, p_value))
        route = replace(
            route,
            opened_s=np.where(harmed, np.nan, route.opened_s),
            worse=np.where(harmed, 0, worse),
            returns_until_s=np.where(harmed, now_s + RETURN_TICKS * tick_s, route.returns_until_s),
            rests_until_s=np.where(harmed, now_s + TRIAL_TICKS * tick_s, route.rests_until_s),
            frozen_rps=np.where(harmed, evaluation.demand_rps, route.frozen_rps),
        )
        pair = _freeze(pair, harmed[pairs.route] & gained, now_s)
    decision = _say_frozen(problem, decision, now_s < pair.frozen_until_s)
    returning = now_s < route.returns_until_s
    if returning.any():
        decision, there = _go_back(
            problem, evaluation, decision, pair, returning, REVERT_SHIFT * max_shift_ratio
        )
        route = replace(route, returns_until_s=np.where(there, -np.inf, route.returns_until_s))
    return decision, Trials(route, pair), found


def welch_p(evaluation: Evaluation, route: RouteTrials, of: Bools) -> Floats:
    """(R,) chance of being so much slower than before the trial, if nothing had changed.

    One-sided; the responses of the newest window against those of the one before the move. 1 where
    either has too few, and for all but the routes ``of`` (R,).
    """
    seen = evaluation.observation
    n1, n2 = route.responses, seen.route_responses
    enough = of & (np.minimum(n1, n2) >= SAMPLES_MIN) & np.isfinite(route.mean_s)
    n1, n2 = np.where(enough, n1, 2.0), np.where(enough, n2, 2.0)
    v1 = np.where(enough, route.mean_s**2 * route.cv2, 1.0) / n1
    v2 = np.where(enough, seen.route_latency_s**2 * seen.route_cv2, 1.0) / n2
    v1, v2 = np.maximum(v1, 1e-15), np.maximum(v2, 1e-15)
    t = np.where(enough, seen.route_latency_s - route.mean_s, 0.0) / np.sqrt(v1 + v2)
    freedom = (v1 + v2) ** 2 / (v1**2 / (n1 - 1.0) + v2**2 / (n2 - 1.0))
    chance = np.ones_like(t)
    chance[enough] = stdtr(freedom[enough], -t[enough])
    return chance


def _heard(evaluation: Evaluation, route: RouteTrials) -> Bools:
    seen = evaluation.observation
    heard: Bools = (
        np.isfinite(route.opened_s)
        & (seen.route_responses >= SAMPLES_MIN)
        & evaluation.measured
        & np.isfinite(seen.route_latency_s)
    )
    return heard


def _explained(
    problem: Problem,
    evaluation: Evaluation,
    models: Models,
    route: RouteTrials,
    pair: PairTrials,
    gained: Bools,
    of: Bools,
) -> Bools:
    """(R,) whether something else changed meanwhile that the routes ``of`` may be slower for."""
    pairs = problem.pairs
    rows = np.flatnonzero(of[pairs.route])
    provider, before_rps = pairs.provider[rows], pair.provider_rps[rows]
    demand = _changed(route.demand_rps, evaluation.demand_rps)
    price = _changed(pair.usd[rows], evaluation.usd_per_request[rows])
    slower = models.service.mean[provider] - pair.log_service[rows]
    doubt = np.sqrt(models.service.variance)[provider]
    alarmed = slower > np.maximum(np.log1p(EXOGENOUS_RATIO), 2.0 * doubt)
    used = np.maximum(evaluation.shares_now[rows], pair.shares[rows]) > USED_SHARE
    # Who was given more may be slower for it; who was not is slower by itself.
    loaded = gained[rows] & (pair.most_rps[rows] > (1.0 + LOADED_RATIO) * before_rps)
    # What providers would have to carry now had nobody moved: others ask for more, or all do.
    unmoved = pairs.loads(pair.shares, evaluation.demand_rps)
    crowded = unmoved[provider] > (1.0 + EXOGENOUS_RATIO) * before_rps
    # A queue or failures that a load which was not raised does not account for, and a capacity
    # that fell, are the provider's own.
    queued = (evaluation.costs.backlog[rows] > 0.0) & ~loaded
    failing = evaluation.error_ratio[provider] > pair.error_ratio[rows] + FAILING_RATIO
    fell = pair.log_capacity[rows] - models.capacity.mean[provider]
    weaker = np.isfinite(fell) & (fell > np.log1p(EXOGENOUS_RATIO))
    own = price | crowded | queued | failing | weaker | (alarmed & ~loaded)
    explained = np.bincount(pairs.route[rows], used & own, pairs.routes) > 0.0
    return demand | explained


def _gained(problem: Problem, pair: PairTrials) -> Bools:
    """(P,) who got notably more during the trial, if only for a while: models react as well."""
    more = pair.most_share - pair.shares
    most = problem.pairs.max_by_route(more)[problem.pairs.route]
    gained: Bools = more > np.maximum(GAINED_SHARE, GAINED_PART * most)
    return gained


def _all_slower(
    problem: Problem, evaluation: Evaluation, route: RouteTrials, suspects: Bools, gained: Bools
) -> bool:
    """Whether those who have nothing to do with the suspects' moves are slower as well.

    A network or a machine that all share slows down what moved and what did not.
    """
    pairs = problem.pairs
    accused = pairs.sum_by_provider((gained & suspects[pairs.route]).astype(np.float64)) > 0.0
    used = evaluation.shares_now > USED_SHARE
    rise = evaluation.observation.route_latency_s / route.usual_s
    involved = suspects | pairs.any_by_route(used & accused[pairs.provider])
    others = ~involved & np.isfinite(rise)
    return bool(others.any()) and float(np.median(rise[others])) > 1.0 + COMMON_RATIO


def _changed(before: Floats, now: Floats) -> Bools:
    changed: Bools = np.abs(now - before) > EXOGENOUS_RATIO * np.maximum(np.abs(before), 1e-15)
    return changed


def _freeze(pair: PairTrials, who: Bools, now_s: float) -> PairTrials:
    return replace(
        pair,
        frozen_until_s=np.where(who, now_s + FREEZE_S, pair.frozen_until_s),
        frozen_service_s=np.where(who, np.exp(pair.log_service), pair.frozen_service_s),
        frozen_rps=np.where(who, pair.most_rps, pair.frozen_rps),
        slow_idle=np.where(who, 0.0, pair.slow_idle),
    )


def _thaw(
    problem: Problem, evaluation: Evaluation, models: Models, trials: Trials, *, tick_s: float
) -> PairTrials:
    """End what was frozen where everything is needed, or where the load was not what did harm.

    Who stays slow without the load that it had gained was slow by itself; once it is as it was
    before the trial, nothing speaks against it. Who is well as soon as it is unloaded stays frozen.
    """
    pair, pairs, now_s = trials.pair, problem.pairs, evaluation.now_s
    frozen = trials.frozen(now_s)
    if not frozen.any():
        return pair
    # All pairs of the routes that have a frozen one; hardly any has.
    rows = np.flatnonzero(pairs.any_by_route(frozen)[pairs.route])
    of_route, provider, frozen = pairs.route[rows], pairs.provider[rows], frozen[rows]
    failing = evaluation.error_ratio[provider] > THAW_ERROR_RATIO
    used = evaluation.shares_now[rows] > USED_SHARE
    needed = np.bincount(of_route, failing & ~frozen & used, pairs.routes) > 0.0
    needed |= evaluation.demand_rps > THAW_DEMAND_RATIO * trials.route.frozen_rps
    drained = now_s - (pair.frozen_until_s[rows] - FREEZE_S) > DRAIN_TICKS * tick_s
    rps = planned_rps(problem, evaluation, evaluation.shares_now)[provider]
    idle = drained & (rps < IDLE_RATIO * pair.frozen_rps[rows])
    # By what is seen, since a filter that hears little still believes what was under load.
    seen = evaluation.observation
    heard = (seen.provider_responses > 0.0)[provider]
    usual_s = np.where(frozen & heard, pair.frozen_service_s[rows], np.nan)
    rise = seen.provider_latency_s[provider] / usual_s
    chance = np.sqrt(models.cv2 / np.maximum(seen.provider_responses, 1.0))[provider]
    clearly = rise > 1.0 + np.maximum(SLOW_RATIO, SLOW_Z * chance)
    before = pair.slow_idle[rows]
    convinced = before >= SLOW_TICKS
    ticks = np.where(idle & clearly, before + 1.0, np.where(heard, 0.0, before))
    ticks = np.where(convinced, before, ticks)
    well = np.exp(models.service.mean)[provider] < (1.0 + EXOGENOUS_RATIO) * usual_s
    innocent = convinced & well & (rise < 1.0 + SLOW_RATIO)
    ends = needed[of_route] | innocent
    until_s, slow_idle = pair.frozen_until_s.copy(), np.zeros_like(pair.slow_idle)
    until_s[rows[ends]] = -np.inf
    slow_idle[rows] = np.where(frozen & ~ends, ticks, 0.0)
    return replace(pair, frozen_until_s=until_s, slow_idle=slow_idle)


def _say_frozen(problem: Problem, decision: Decision, frozen: Bools) -> Decision:
    """Give being frozen as the reason where a route gains nothing from all others."""
    if not frozen.any():
        return decision
    because = problem.pairs.any_by_route(frozen) & _LOSES[decision.reason]
    code = HOLD_REASONS.index(HoldReason.FROZEN)
    return replace(decision, reason=np.where(because, code, decision.reason))


def _go_back(
    problem: Problem,
    evaluation: Evaluation,
    decision: Decision,
    pair: PairTrials,
    returning: Bools,
    max_shift_ratio: float,
) -> tuple[Decision, Bools]:
    """Put the way back into the decision; (R,) who arrives with it."""
    pairs, now = problem.pairs, evaluation.shares_now
    goal = limits.onto_allowed(pairs, pair.shares, evaluation.allowed)
    back = limits.limit_shift(pairs, now, goal, max_shift_ratio)
    mine = returning[pairs.route]
    shares = np.where(mine, back, decision.shares)
    there = returning & (limits.moved_ratio(pairs, shares, goal) < GAINED_SHARE)
    return (
        replace(
            decision,
            move=np.where(returning, MOVES.index(Move.LAST_GOOD), decision.move),
            reason=np.where(returning, 0, decision.reason),
            shares=shares,
            wanted=np.where(mine, back, decision.wanted),
        ),
        there,
    )


def _reverted(
    problem: Problem,
    evaluation: Evaluation,
    route: RouteTrials,
    harmed: Bools,
    gained: Bools,
    z: Floats,
    p_value: Floats,
) -> Iterator[Reverted]:
    pairs = problem.pairs
    for r in np.flatnonzero(harmed):
        mine = np.flatnonzero((pairs.route == r) & gained)
        yield Reverted(
            route=problem.routes[r],
            row=int(r),
            at_s=evaluation.now_s,
            moved_at_s=float(route.moved_s[r]),
            before_s=float(route.mean_s[r]),
            predicted_s=float(route.predicted_s[r]),
            observed_s=float(evaluation.observation.route_latency_s[r]),
            z=float(z[r]),
            p_value=float(p_value[r]),
            frozen=tuple(problem.providers[j] for j in pairs.provider[mine]),
            frozen_s=FREEZE_S,
        )
