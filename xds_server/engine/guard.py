"""Between the plan and its deployment: what it would be like when something goes wrong."""

from dataclasses import replace
from typing import Final

import numpy as np

from xds_server.core.loss import p95_after_loss
from xds_server.core.tables import Bools, Floats
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.decision import HOLD_REASONS, MOVES, Decision, HoldReason, Move

PARTS: Final = (0.5, 0.25, 0.0)
"""Of a move that is refused, what is tried instead; the last is to hold."""
ROUTES_PER_TICK: Final = 500
"""Routes that are looked at in one tick without a reason to hurry."""


def survive(
    problem: Problem, evaluation: Evaluation, decision: Decision, before: Bools, *, turn: int
) -> Decision:
    """Flag routes whose SLO would not survive the loss of their largest provider (N-1).

    Where the profile says ``survive_loss``, a move that makes a route so is not made: what it has
    stays, unless that is as fragile. Such moves are looked at in every tick; of all other routes
    ``ROUTES_PER_TICK``, in turn.

    Parameters
    ----------
    before : (R,) flags so far
    turn : number of the tick
    """
    pairs = problem.pairs
    asked = _in_turn(pairs.routes, turn)
    moving = problem.survive_loss & (decision.move != MOVES.index(Move.HOLD))
    broken = fragile(problem, evaluation, decision.shares, asked | moving)
    refused = broken & moving
    if refused.any():
        refused &= ~fragile(problem, evaluation, evaluation.shares_now, refused)
    if refused.any():
        decision = _shorten(problem, evaluation, decision, refused)
    known = np.where(asked | moving, broken & ~refused, before)
    return replace(decision, fragile=known)


def _shorten(
    problem: Problem, evaluation: Evaluation, decision: Decision, refused: Bools
) -> Decision:
    """Let refused routes go as far as they would still survive, or else hold."""
    pairs, now = problem.pairs, evaluation.shares_now
    shares, left = decision.shares, refused
    for part in PARTS:
        shorter = now + part * (decision.shares - now)
        shares = np.where(left[pairs.route], shorter, shares)
        if part == 0.0:
            break  # what is left holds
        left = left & fragile(problem, evaluation, shares, left)
        if not left.any():
            break
    code = HOLD_REASONS.index(HoldReason.FRAGILE)
    return replace(
        decision,
        move=np.where(left, MOVES.index(Move.HOLD), decision.move),
        reason=np.where(left, code, decision.reason),
        shares=shares,
        wanted=np.where(refused[pairs.route], shares, decision.wanted),
    )


def fragile(problem: Problem, evaluation: Evaluation, shares: Floats, asked: Bools) -> Bools:
    """(R,) routes of those asked whose SLO breaks with the loss of their largest provider."""
    p95 = p95_after_loss(
        problem.pairs,
        shares,
        evaluation.demand_rps,
        evaluation.stations,
        evaluation.rtt_s,
        asked & np.isfinite(evaluation.slo_s),
    )
    broken: Bools = np.nan_to_num(p95, nan=0.0, posinf=np.inf) > evaluation.slo_s
    return broken


def _in_turn(routes: int, turn: int) -> Bools:
    """(R,) a block of neighbours: they share providers, so a block is cheap to answer for."""
    blocks = max(1, -(-routes // ROUTES_PER_TICK))
    chosen = np.zeros(routes, dtype=bool)
    begin = turn % blocks * ROUTES_PER_TICK
    chosen[begin : begin + ROUTES_PER_TICK] = True
    return chosen
