"""What each route was like before it moved, and how its steps turned.

A route that gets other weights is on trial until ``TRIAL_TICKS`` after its last move; ``revert``
judges it by what is kept here. A route whose direction alternates more than ``FLIPS_MAX`` times in
``FLIP_TICKS`` ticks moves with twice the reluctance for ``DAMPING_S``.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from xds_server.core.tables import Bools, Floats, Ints
from xds_server.engine.deploy import Deployment
from xds_server.engine.models import Models
from xds_server.engine.types import Evaluation, Problem

TRIAL_TICKS: Final = 6
"""Ticks after its last move that a route stays on trial."""
TRIAL_TICKS_MAX: Final = 12
"""A route that never rests starts another trial after so many: what was before gets old."""
FLIPS_MAX: Final = 3
FLIP_TICKS: Final = 10
DAMPING: Final = 2.0
DAMPING_S: Final = 300.0
USUAL_GAIN: Final = 0.05
_QUIET_Z: Final = 1.0
"""A forecast that was made while the route was slower than this has the harm in it already."""
_ONES: Final = np.array([code.bit_count() for code in range(1 << FLIP_TICKS)])


@dataclass(frozen=True, slots=True)
class RouteTrials:
    """Axis 0 is R; what was before is of the window in which the trial began."""

    opened_s: Floats  # NaN: not on trial
    moved_s: Floats  # last move of the trial
    demand_rps: Floats  # before
    mean_s: Floats  # response time before; NaN: none
    cv2: Floats  # squared coefficient of variation of one response then
    responses: Floats  # behind both
    predicted_s: Floats  # by the slowest of the trial's plans
    sigma_s: Floats  # of that forecast
    worse: Ints  # ticks in a row that were worse than predicted
    rests_until_s: Floats  # no trial begins before: it would compare with the harm
    returns_until_s: Floats  # until then the way back goes on
    frozen_rps: Floats  # demand when providers were last frozen
    usual_s: Floats  # response time of late, smoothed; NaN: none
    flips: Ints  # bit n: n ticks ago it moved against its step before
    damped_until_s: Floats


@dataclass(frozen=True, slots=True)
class PairTrials:
    """Axis 0 is P; the provider as the route had it before its trial."""

    shares: Floats
    log_service: Floats  # the provider's own service time
    provider_rps: Floats  # its planned load
    usd: Floats  # per request
    most_share: Floats  # that it had during the trial
    most_rps: Floats  # the provider's highest planned load during it
    frozen_until_s: Floats
    step: Floats  # the last that was not 0
    log_capacity: Floats  # the provider's, then; NaN: unknown
    error_ratio: Floats  # then
    frozen_service_s: Floats  # its own service time before the trial that froze it
    frozen_rps: Floats  # its highest planned load in that trial
    slow_idle: Floats  # while it is frozen: ticks in a row that it was slow without that load


@dataclass(frozen=True, slots=True)
class Trials:
    """What is remembered from tick to tick; bounded by the problem's size."""

    route: RouteTrials
    pair: PairTrials

    def damping(self, now_s: float) -> Floats:
        """(R,) factor on the reluctance to move."""
        return np.where(now_s < self.route.damped_until_s, DAMPING, 1.0)

    def frozen(self, now_s: float) -> Bools:
        """(P,) providers that may not gain from the route."""
        frozen: Bools = now_s < self.pair.frozen_until_s
        return frozen


def no_trials(routes: int, pairs: int) -> Trials:
    """Nothing has moved."""
    never, zeros = np.full(routes, -np.inf), np.zeros(routes)
    none, blank = np.zeros(routes, dtype=np.int64), np.full(routes, np.nan)
    nothing, never_pair = np.zeros(pairs), np.full(pairs, -np.inf)
    return Trials(
        RouteTrials(
            opened_s=blank,
            moved_s=never,
            demand_rps=zeros,
            mean_s=blank,
            cv2=zeros,
            responses=zeros,
            predicted_s=zeros,
            sigma_s=zeros,
            worse=none,
            rests_until_s=never,
            returns_until_s=never,
            frozen_rps=zeros,
            usual_s=blank,
            flips=none,
            damped_until_s=never,
        ),
        PairTrials(*(nothing,) * 6, never_pair, nothing, np.full(pairs, np.nan), *(nothing,) * 4),
    )


def harm_z(evaluation: Evaluation, route: RouteTrials) -> Floats:
    """(R,) by how many standard deviations responses are slower than predicted; NaN if none.

    The deviation is the forecast's and that of a mean of so many responses.
    """
    seen = evaluation.observation
    spread = seen.route_latency_s**2 * seen.route_cv2 / np.maximum(seen.route_responses, 1.0)
    sigma = np.sqrt(route.sigma_s**2 + spread) + 1e-9
    z: Floats = (seen.route_latency_s - route.predicted_s) / sigma
    return z


def follow(
    problem: Problem,
    evaluation: Evaluation,
    models: Models,
    deployment: Deployment,
    trials: Trials,
    *,
    tick_s: float,
) -> Trials:
    """Begin, prolong and end trials by what was deployed.

    Parameters
    ----------
    evaluation : of this tick: what it observed was before what was deployed
    """
    now_s, route, pair = evaluation.now_s, trials.route, trials.pair
    flips = (route.flips << 1) & ((1 << FLIP_TICKS) - 1)
    rested = now_s - route.moved_s > TRIAL_TICKS * tick_s
    old = now_s - route.opened_s > TRIAL_TICKS_MAX * tick_s
    route = replace(
        route,
        flips=flips,
        opened_s=np.where(rested | old, np.nan, route.opened_s),
        usual_s=_usual(evaluation, route.usual_s),
    )
    if not deployment.published:
        return Trials(route, pair)
    pairs = problem.pairs
    step = deployment.shares - evaluation.shares_now
    moved = pairs.any_by_route(step != 0.0)
    flipped = moved & (pairs.sum_by_route(step * pair.step) < 0.0)
    flips = flips | flipped
    alternates = _ONES[flips] > FLIPS_MAX
    opens = moved & np.isnan(route.opened_s) & (now_s >= route.rests_until_s)
    plan = deployment.forecast
    slower = moved & (opens | (harm_z(evaluation, route) < _QUIET_Z))
    slower &= opens | (plan.latency_s > route.predicted_s)
    seen = evaluation.observation
    route = replace(
        route,
        opened_s=np.where(opens, now_s, route.opened_s),
        moved_s=np.where(moved, now_s, route.moved_s),
        demand_rps=np.where(opens, evaluation.demand_rps, route.demand_rps),
        mean_s=np.where(opens, seen.route_latency_s, route.mean_s),
        cv2=np.where(opens, seen.route_cv2, route.cv2),
        responses=np.where(opens, seen.route_responses, route.responses),
        predicted_s=np.where(slower, plan.latency_s, route.predicted_s),
        sigma_s=np.where(slower, plan.sigma_s, route.sigma_s),
        worse=np.where(opens, 0, route.worse),
        flips=np.where(alternates, 0, flips),
        damped_until_s=np.where(alternates, now_s + DAMPING_S, route.damped_until_s),
    )
    pair = _pairs_before(problem, evaluation, models, pair, opens)
    return Trials(route, _pairs_after(problem, evaluation, deployment, pair, moved, opens))


def _usual(evaluation: Evaluation, before: Floats) -> Floats:
    """(R,) smoothed response times, this tick's taken in where there was one."""
    seen = evaluation.observation.route_latency_s
    heard = np.isfinite(seen) & evaluation.measured
    start = np.where(np.isnan(before), seen, before)
    return np.where(heard, start + USUAL_GAIN * (seen - start), before)


def _pairs_before(
    problem: Problem,
    evaluation: Evaluation,
    models: Models,
    before: PairTrials,
    opens: Bools,
) -> PairTrials:
    """Note what the pairs of routes whose trials begin are like."""
    pairs = problem.pairs
    rows = np.flatnonzero(opens[pairs.route])
    if len(rows) == 0:
        return before
    provider = pairs.provider[rows]
    rps = planned_rps(problem, evaluation, evaluation.shares_now)
    return replace(
        before,
        shares=_noted(before.shares, rows, evaluation.shares_now[rows]),
        log_service=_noted(before.log_service, rows, models.service.mean[provider]),
        log_capacity=_noted(before.log_capacity, rows, models.capacity.mean[provider]),
        error_ratio=_noted(before.error_ratio, rows, evaluation.error_ratio[provider]),
        provider_rps=_noted(before.provider_rps, rows, rps[provider]),
        usd=_noted(before.usd, rows, evaluation.usd_per_request[rows]),
    )


def _noted(before: Floats, rows: Ints, now: Floats | float) -> Floats:
    """Return what was before, with some rows as they are now."""
    noted = before.copy()
    noted[rows] = now
    return noted


def _pairs_after(
    problem: Problem,
    evaluation: Evaluation,
    deployment: Deployment,
    before: PairTrials,
    moved: Bools,
    opens: Bools,
) -> PairTrials:
    """Note what the trial has brought so far; what was before it does not count."""
    pairs, shares = problem.pairs, deployment.shares
    rows = np.flatnonzero(moved[pairs.route])
    now, going_on = shares[rows], ~opens
    most = before.most_share[rows] * going_on[pairs.route[rows]]
    most_rps = before.most_rps * going_on[pairs.route]
    rps = planned_rps(problem, evaluation, shares)[pairs.provider]
    return replace(
        before,
        most_share=_noted(before.most_share, rows, np.maximum(most, now)),
        most_rps=np.maximum(most_rps, rps, out=rps),
        step=_noted(before.step, rows, now - evaluation.shares_now[rows]),
    )


def planned_rps(problem: Problem, evaluation: Evaluation, shares: Floats) -> Floats:
    """(J,) load that the shares give at today's demand."""
    return problem.pairs.loads(shares, evaluation.demand_rps)
