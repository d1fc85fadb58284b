"""Stage 5: the best candidate that is worth its change; per route, or a reason to hold."""

import numpy as np

from xds_server.core import objective
from xds_server.core.tables import Bools, Floats, Ints
from xds_server.engine.gain import Gains, route_gains
from xds_server.engine.types import Evaluation, Problem, Simulated
from xds_server.model.decision import HOLD_REASONS, MOVES, Decision, HoldReason, Move
from xds_server.model.topology import Mode

TOGETHER_RATIO = 0.01
"""What holding may cost all routes together, as a part of the objective."""
DEADBAND_SHARE = 0.01
DEADBAND_GAIN_RATIO = 0.005
"""A route is pushed where a share moves by more than the first, or the gain is above the second."""
_POSTPONES = np.array(
    [reason in (HoldReason.GAIN_BELOW_COST, HoldReason.DEADBAND) for reason in HOLD_REASONS]
)


def select(
    problem: Problem,
    evaluation: Evaluation,
    simulated: Simulated,
    mode: Mode,
) -> Decision:
    """Gate: take the plan with the lowest forecast, then hold the routes that gain too little.

    A route's gain is its part of what the plan gains in all (``engine.gain``). Mode observe
    measures and never decides.
    """
    pairs = problem.pairs
    proposed = simulated.candidates.proposed
    gains = route_gains(problem, evaluation, simulated)
    plan, hold = gains.plan, simulated.hold
    reason = _reasons(problem, evaluation, gains, hold.cost_ms)
    if mode is Mode.OBSERVE:
        reason = np.full(pairs.routes, HOLD_REASONS.index(HoldReason.OBSERVING))
    reason = _together(problem, evaluation, simulated, plan.shares, reason)
    held = reason > 0
    settled = held & ~_POSTPONES[reason]
    move = np.where(held, MOVES.index(Move.HOLD), MOVES.index(plan.move))
    shares = np.where(held[pairs.route], proposed[0].shares, plan.shares)
    return Decision(
        now_s=evaluation.now_s,
        move=move,
        reason=reason,
        shares=shares,
        wanted=plan.shares
        if not settled.any()
        else np.where(settled[pairs.route], shares, plan.shares),
        chosen=hold,  # until it is known what becomes of it: engine.gain.account
        hold=hold,
        gain_ms=gains.net_ms,
        doubt_ms=gains.doubt_ms,
        gap_ratio=simulated.candidates.gap_ratio,
        iterations=simulated.candidates.iterations,
        fragile=np.zeros(pairs.routes, dtype=bool),
    )


def _together(
    problem: Problem, evaluation: Evaluation, simulated: Simulated, plan: Floats, reason: Ints
) -> Ints:
    """Let routes move after all if each gains too little, but all together do not.

    Routes that share providers share their trouble: a thousand routes that gain half a per cent
    each, and hold for it, can leave a provider overloaded.
    """
    pairs, moved = problem.pairs, float(simulated.total_ms.min())
    if not np.any(_POSTPONES[reason]):
        return reason
    kept = np.where((reason > 0)[pairs.route], simulated.candidates.proposed[0].shares, plan)
    held = objective.total_ms(
        pairs, kept, evaluation.demand_rps, evaluation.costs.total, evaluation.stations
    )
    if held - moved <= TOGETHER_RATIO * abs(moved):
        return reason
    return np.where(_POSTPONES[reason], 0, reason)


def _reasons(problem: Problem, evaluation: Evaluation, gains: Gains, cost_ms: Floats) -> Ints:
    """(R,) why each route holds; ``NONE`` where it moves. The first that applies is given."""
    pairs = problem.pairs
    widest = pairs.max_by_route(np.abs(gains.change))
    sure_ms = gains.gross_ms - gains.doubt_ms
    choices = pairs.sum_by_route(evaluation.allowed.astype(np.float64))
    scale = np.maximum(np.abs(cost_ms), 1e-9)
    tests: tuple[tuple[HoldReason, Bools], ...] = (
        (HoldReason.NO_PROVIDER, choices == 0.0),
        (HoldReason.ONE_PROVIDER, choices == 1.0),
        (HoldReason.NO_TELEMETRY, ~evaluation.measured),
        (HoldReason.NO_DEMAND, evaluation.demand_rps <= 0.0),
        (HoldReason.GAIN_BELOW_COST, sure_ms <= gains.switch_ms),
        (
            HoldReason.DEADBAND,
            (widest <= DEADBAND_SHARE) & (sure_ms <= DEADBAND_GAIN_RATIO * scale),
        ),
    )
    codes = [HOLD_REASONS.index(reason) for reason, _ in tests]
    chosen: Ints = np.select([applies for _, applies in tests], codes, 0)
    return chosen
