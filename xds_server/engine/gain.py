"""What each route gains by a plan, and in which terms: for the gate, and for who asks why.

A plan's total cost does not split over routes, since they share providers. Its *change* does:
with p_j = (x1 T(x1) - x0 T(x0)) / (x1 - x0), the mean price of provider j's load between the
shares of now and those of the plan, the routes' gains d (w_now - w) (C + p) add up to exactly
what the plan gains in all. Since x T = x (s + W), that price is s, plus the mean wait, plus the
mean load times the rise of the wait: idle time, queueing, and what a request costs the others.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from xds_server.core import latency
from xds_server.core.latency import Stations
from xds_server.core.objective import PairCosts
from xds_server.core.tables import Bools, Floats, Ints
from xds_server.engine.simulate import forecast
from xds_server.engine.types import Evaluation, Problem, Simulated
from xds_server.model.decision import HOLD_REASONS, MOVES, Candidate, Decision, HoldReason, Move

SWITCH_RATIO = 0.01
"""What moving all of a route's traffic costs, as a share of its objective."""
GAIN_Z = 1.28
"""A gain counts by its lower bound, so many standard deviations below what is expected."""
TURN_RATIO, TURN_SWITCH = 2.0, 3.0
"""Factors on the doubt and on the cost of a move against the one before."""
_UNMOVED_RATIO = 1e-6
_SAME_SHARE = 1e-9


@dataclass(frozen=True, slots=True)
class Prices:
    """What a request costs all who use a provider, mean over a change of its load; (J,) each."""

    idle_ms: Floats
    queueing_ms: Floats  # its own wait
    rent_ms: Floats  # what it adds to the waits of others, x T'

    @property
    def total_ms(self) -> Floats:
        """(J,)."""
        return self.idle_ms + self.queueing_ms + self.rent_ms


@dataclass(frozen=True, slots=True)
class Gains:
    """What a plan would gain, ms-equivalent per request; axes as in ``Problem``."""

    plan: Candidate
    prices: Prices
    change: Floats  # (P,) shares now less those of the plan
    gross_ms: Floats  # (R,) expected gain, before what the move itself costs
    switch_ms: Floats  # (R,) what the move itself costs
    doubt_ms: Floats  # (R,) by how much the gain may be overrated

    @property
    def net_ms(self) -> Floats:
        """(R,) the gain; it has to exceed ``doubt_ms`` to be worth a move."""
        return self.gross_ms - self.switch_ms


def best_plan(simulated: Simulated) -> Candidate:
    """Return the candidate with the lowest forecast."""
    return simulated.candidates.proposed[int(simulated.total_ms.argmin())]


def route_gains(
    problem: Problem, evaluation: Evaluation, simulated: Simulated, plan: Candidate | None = None
) -> Gains:
    """Price a plan, by default the best one, route by route."""
    plan = plan or best_plan(simulated)
    change = evaluation.shares_now - plan.shares
    prices = _plan_prices(problem, evaluation, plan)
    return _priced(problem, evaluation, simulated, plan, prices, change)


def _plan_prices(problem: Problem, evaluation: Evaluation, plan: Candidate) -> Prices:
    pairs, demand = problem.pairs, evaluation.demand_rps
    return prices_between(
        evaluation.stations,
        pairs.loads(evaluation.shares_now, demand),
        pairs.loads(plan.shares, demand),
    )


def _priced(
    problem: Problem,
    evaluation: Evaluation,
    simulated: Simulated,
    plan: Candidate,
    prices: Prices,
    change: Floats,
) -> Gains:
    """Gain, cost and doubt of ``change`` (P,) at those prices."""
    pairs, price = problem.pairs, prices.total_ms
    # What turns back says that the step before was wrong: that takes more to believe.
    back, fixed_ms = pairs.weigh_by_route(change, evaluation.last_step, evaluation.costs.total)
    turns_back = back > 0.0
    # What a provider really costs is known to within its model's error; so is the gain.
    (variance,) = pairs.sums_by_route(change * change, (evaluation.sigma_ratio * price) ** 2)
    doubt = np.sqrt(variance) * np.where(turns_back, TURN_RATIO, 1.0)
    (priced,) = pairs.sums_by_route(change, price)
    scale = np.maximum(np.abs(simulated.hold.cost_ms), 1e-9)
    switch = np.where(turns_back, TURN_SWITCH * SWITCH_RATIO, SWITCH_RATIO) * scale
    return Gains(
        plan=plan,
        prices=prices,
        change=change,
        gross_ms=fixed_ms + priced,
        switch_ms=switch * 0.5 * pairs.sum_by_route(np.abs(change)),
        doubt_ms=GAIN_Z * evaluation.calibration * doubt,
    )


def decided_gains(
    problem: Problem, evaluation: Evaluation, simulated: Simulated, decision: Decision
) -> Gains:
    """Price what was decided: as the gate did, and at its prices whatever became something else.

    That is moves that were shortened, floors that are fed, masked providers that are left, and the
    ways back of reverted routes. The latter are taken for what was observed, against the models:
    their gain may be negative, as may that of what is required.
    """
    gains = route_gains(problem, evaluation, simulated)
    other = _otherwise(problem, evaluation, gains.plan.shares, decision)
    if not other.any():
        return gains
    pairs = problem.pairs
    pushed = evaluation.shares_now - decision.shares
    change = np.where(other[pairs.route], pushed, gains.change)
    return _priced(problem, evaluation, simulated, gains.plan, gains.prices, change)


def account(
    problem: Problem, evaluation: Evaluation, simulated: Simulated, decision: Decision
) -> Decision:
    """Say of every route what it does in the end, what is expected of it, and what that gains.

    After the gate, moves are shortened or taken back; and what is required is done by routes that
    hold. Where nothing is pushed, the gain stays that of the plan that was not worth it.
    """
    decision = replace(decision, chosen=forecast(problem, evaluation, decision.shares))
    pushed = problem.pairs.any_by_route(decision.shares != evaluation.shares_now)
    required = pushed & (decision.move == MOVES.index(Move.HOLD))
    required &= decision.reason != HOLD_REASONS.index(HoldReason.OBSERVING)
    if required.any():
        move = np.where(required, MOVES.index(Move.REQUIRED), decision.move)
        decision = replace(decision, move=move)
    plan = best_plan(simulated)
    other = _otherwise(problem, evaluation, plan.shares, decision)
    if not other.any():
        return decision
    change = evaluation.shares_now - decision.shares
    prices = _plan_prices(problem, evaluation, plan)
    gains = _priced(problem, evaluation, simulated, plan, prices, change)
    return replace(
        decision,
        gain_ms=np.where(other, gains.net_ms, decision.gain_ms),
        doubt_ms=np.where(other, gains.doubt_ms, decision.doubt_ms),
    )


def _otherwise(problem: Problem, evaluation: Evaluation, plan: Floats, decision: Decision) -> Bools:
    """(R,) routes that do something, but not what the plan (P,) said."""
    pairs, shares = problem.pairs, decision.shares
    differs = pairs.any_by_route(np.abs(shares - plan) > _SAME_SHARE)
    other: Bools = differs & (decision.move != MOVES.index(Move.HOLD))
    return other


def prices_between(stations: Stations, before_rps: Floats, after_rps: Floats) -> Prices:
    """Mean prices between two loads; where a load stays, its marginal price."""
    before, after = latency.wait_s(stations, before_rps), latency.wait_s(stations, after_rps)
    rise_rps = after_rps - before_rps
    moved = np.abs(rise_rps) > _UNMOVED_RATIO * (before_rps + after_rps + 1.0)
    mean, marginal, _ = latency.mean_and_marginal_s(stations, before_rps)
    slope = (after - before) / np.where(moved, rise_rps, 1.0)
    rent = np.where(moved, 0.5 * (before_rps + after_rps) * slope, marginal - mean)
    return Prices(1e3 * stations.idle_s, 0.5e3 * (before + after), 1e3 * rent)


def gain_terms(
    problem: Problem, evaluation: Evaluation, gains: Gains, routes: Ints
) -> dict[str, Floats]:
    """Name by name, what each of ``routes`` gains, (K,) ms-equivalent; they add up to ``net_ms``.

    The names are those of ``model.explanation.GAIN_TERMS``. The switching cost is negative.
    """
    pairs = problem.pairs
    number = np.full(pairs.routes, -1, dtype=np.int64)
    number[routes] = np.arange(len(routes))
    mine = np.flatnonzero(number[pairs.route] >= 0)
    row, provider = number[pairs.route[mine]], pairs.provider[mine]

    def gained(cost_ms: Floats) -> Floats:
        total = np.bincount(row, gains.change[mine] * cost_ms, len(routes))
        return total.astype(np.float64, copy=False)

    return {
        "latency": gained(gains.prices.idle_ms[provider]),
        "queueing": gained(gains.prices.queueing_ms[provider]),
        "rent": gained(gains.prices.rent_ms[provider]),
        **{f.name: gained(getattr(evaluation.costs, f.name)[mine]) for f in fields(PairCosts)},
        "switching": -gains.switch_ms[routes],
    }
