"""Between the plan and its deployment: moves that may tip a provider into overload.

A plan is chosen by where it settles if the models are right. Here it is simulated from now on,
over what the models may be wrong by (``engine.outlook``), beside holding. A move that is riskier
than to hold is shortened, or not made.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from xds_server.core.tables import Bools, Floats, Ints
from xds_server.engine.models import Models
from xds_server.engine.outlook import (
    Course,
    Offer,
    Risks,
    View,
    World,
    ask,
    make_world,
    providers_of,
    run,
    view,
)
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.decision import HOLD_REASONS, MOVES, Decision, HoldReason, Move
from xds_server.model.explanation import Outlook, Risk

BREACH_RATIO: Final = 0.05
"""Chance of an overload, or of breaching its SLO, that a move may add."""
FEWER_FAILURES: Final = 0.01
"""A move that saves such a part of what it moves from failing is made, whatever comes."""
PARTS: Final = (0.5, 0.25)
"""Of a move that is refused, what is tried instead."""


@dataclass(frozen=True, slots=True)
class Foresight:
    """What a plan was simulated with, and how much of each move was let through."""

    world: World
    plan: Floats  # (P,) as it came
    made: Floats  # (P,) as it went
    routes: Ints  # (M,) that were to move
    part: Floats  # (M,) of its move that each makes: 1 all of it, 0 none

    @property
    def shortened(self) -> int:
        """How many moves were cut short."""
        return int(((self.part < 1.0) & (self.part > 0.0)).sum())

    @property
    def held(self) -> int:
        """How many moves were not made."""
        return int((self.part == 0.0).sum())


def foresee(
    problem: Problem,
    evaluation: Evaluation,
    models: Models,
    hold: Floats,
    decision: Decision,
    *,
    tick_s: float,
) -> tuple[Decision, Foresight | None]:
    """Shorten moves that are riskier than to hold, or let their routes hold.

    Only who gets more from a provider that the moves may overload is asked. Nothing is judged by
    itself: who would breach its SLO wherever its calls go may move, as may who leaves failures
    behind.

    Parameters
    ----------
    hold : (P,) shares of the plan that moves nothing
    tick_s : s between two decisions

    Returns
    -------
    the decision, and what it was simulated with; None where nothing was to move
    """
    routes = np.flatnonzero(decision.move != MOVES.index(Move.HOLD))
    if not len(routes):
        return decision, None
    world = make_world(problem, evaluation, models, hold, tick_s)
    part = np.ones(len(routes))
    shares = decision.shares
    if_held = ask(world, providers_of(world, routes), hold)
    left, at_hold = np.arange(len(routes)), None
    for size in (1.0, *PARTS):
        if size < 1.0:
            part[left] = size
            shares = _shorten(problem, hold, decision.shares, routes, part)
        asked_for = ask(world, providers_of(world, routes[left]), shares)
        left = left[_tips(world, routes[left], shares, if_held.of(asked_for.who), asked_for)]
        if not len(left):
            break
        # Only for these it matters how long providers take; and they were among those before.
        who = providers_of(world, routes[left])
        few = view(world, routes[left], who)
        at_hold = run(world, if_held.of(who)) if at_hold is None else at_hold.of(who)
        at_plan = run(world, asked_for.of(who))
        riskier = _riskier(few, decision, shares, part[left], at_hold, at_plan)
        left = left[riskier & ~_fails_less(few, shares)]
    if len(left):
        part[left] = 0.0
        shares = _shorten(problem, hold, decision.shares, routes, part)
    seen = Foresight(world, decision.shares, shares, routes, part)
    if seen.shortened or seen.held:
        decision = _decide(problem, evaluation, decision, seen)
    return decision, seen


def outlook(seen: Foresight | None, route: int) -> Outlook | None:
    """What the simulation saw for one route; None where it was not to move."""
    if seen is None or route not in seen.routes:
        return None
    world, one = seen.world, np.array([route])
    who = providers_of(world, one)
    here = view(world, one, who)
    at_hold, at_plan, at_made = (
        run(world, ask(world, who, shares)) for shares in (world.hold, seen.plan, seen.made)
    )
    return Outlook(
        part=float(seen.part[np.searchsorted(seen.routes, route)]),
        hold=_risk(here.risks(world.hold, at_hold)),
        plan=_risk(here.risks(seen.plan, at_plan)),
        made=_risk(here.risks(seen.made, at_made)),
        worse_ms=float(here.worse_ms(seen.plan, at_hold, at_plan)[0]),
    )


def _risk(risks: Risks) -> Risk:
    return Risk(
        mean_ms=float(1e3 * risks.mean_s[0]),
        worst_ms=float(1e3 * risks.worst_s[0]),
        breach_ratio=float(risks.breach_ratio[0]),
    )


def _tips(world: World, routes: Ints, shares: Floats, if_held: Offer, at_plan: Offer) -> Ints:
    """Which of ``routes`` (M,), by their place there, get more from who may be overloaded for it.

    Who gets less from one that is overloaded if nobody moves is not among them: two bad places are
    for the plan to choose from, and it chose the better.
    """
    overload, before = at_plan.overload_ratio, if_held.overload_ratio
    tips = (overload > BREACH_RATIO) & (overload > before)
    if not tips.any():
        return np.empty(0, dtype=np.int64)
    here = view(world, routes, at_plan.who)
    more = shares[here.rows] - world.hold[here.rows]
    flees = here.any((more < 0.0) & (before > BREACH_RATIO)[here.column])
    return np.flatnonzero(here.any((more > 0.0) & tips[here.column]) & ~flees)


def _riskier(
    here: View,
    decision: Decision,
    shares: Floats,
    part: Floats,
    at_hold: Course,
    at_plan: Course,
) -> Bools:
    """(M,) whose move is riskier than to hold.

    A route answers for what it would be spared both if nobody moved and if it alone did not: else
    who leaves a provider would be held for those who come. The worst tenth of draws may get dearer
    by as much as the move gains on average, or by as much as the gate allows it to be overrated.
    """
    hold, routes = here.world.hold, here.routes
    breach = here.breach_ratio(shares, at_plan)
    spared = np.maximum(here.breach_ratio(hold, at_hold), here.breach_ratio(hold, at_plan))
    allowed_ms = part * np.maximum(decision.gain_ms, decision.doubt_ms)[routes]
    dearer = here.worse_ms(shares, at_hold, at_plan) > allowed_ms
    riskier: Bools = dearer | (breach > spared + BREACH_RATIO)
    return riskier


def _fails_less(here: View, shares: Floats) -> Bools:
    """(M,) whether the move leaves failures behind."""
    world = here.world
    change = world.hold[here.rows] - shares[here.rows]
    error = world.evaluation.error_ratio[world.problem.pairs.provider[here.rows]]
    moved = 0.5 * here.sum(np.abs(change))
    less: Bools = here.sum(change * error) > FEWER_FAILURES * moved
    return less


def _shorten(problem: Problem, hold: Floats, plan: Floats, routes: Ints, part: Floats) -> Floats:
    """(P,) shares where ``routes`` (M,) go only so far; who goes all the way has its plan's."""
    whole = np.ones(problem.pairs.routes)
    whole[routes] = part
    each = whole[problem.pairs.route]
    rows = np.flatnonzero(each != 1.0)
    shares = plan.copy()
    shares[rows] = hold[rows] + each[rows] * (plan[rows] - hold[rows])
    return shares


def _decide(
    problem: Problem, evaluation: Evaluation, decision: Decision, seen: Foresight
) -> Decision:
    changed, held = np.zeros((2, problem.pairs.routes), dtype=bool)
    changed[seen.routes[seen.part < 1.0]] = True
    held[seen.routes[seen.part == 0.0]] = True
    return replace(
        decision,
        move=np.where(held, MOVES.index(Move.HOLD), decision.move),
        reason=np.where(held, HOLD_REASONS.index(HoldReason.RISKY), decision.reason),
        shares=seen.made,
        wanted=np.where(changed[problem.pairs.route], seen.made, decision.wanted),
    )
