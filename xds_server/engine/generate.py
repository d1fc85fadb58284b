"""Stage 3: what could be done instead: hold, reweight in several strengths, last good."""

import numpy as np

from xds_server.core import limits, solver
from xds_server.core.tables import Bools, Floats
from xds_server.engine.types import Candidates, Evaluation, Problem
from xds_server.model.decision import Candidate, Move
from xds_server.model.topology import EngineSettings

STEPS = (1.0, 0.5, 0.25, 0.1)
"""Fractions of the optimal step that the gate may choose from."""
PROBED_RPS = 2.0
"""Requests/s from one locality that keep a provider measured."""
FAILING_FLOOR_RATIO = 0.5
"""Part of the floor that a provider keeps whose every attempt fails."""


def generate(
    problem: Problem,
    evaluation: Evaluation,
    wanted: Floats,
    frozen: Bools,
    settings: EngineSettings,
) -> Candidates:
    """Propose complete plans; each keeps within floors, masks and the largest step.

    To hold is to keep the shares, but for a provider that has less than half its floor (it
    is new, say): nothing would ever be learned of it.

    ``wanted`` (P,) is where earlier ticks would have gone, had their steps been worth a push: steps
    go on from there, so that many small ones in the same direction become one that is.

    ``frozen`` (P,) gain nothing: what they had gained before did harm.
    """
    pairs, allowed = problem.pairs, evaluation.allowed
    now = evaluation.shares_now
    found = solver.solve(
        pairs,
        allowed,
        wanted,
        evaluation.demand_rps,
        evaluation.costs.total,
        evaluation.tau_ms,
        evaluation.stations,
    )
    # A provider that fails what it is given is probed, not fed.
    healthy = np.maximum(1.0 - evaluation.error_ratio[pairs.provider], FAILING_FLOOR_RATIO)
    floor = settings.min_share_ratio * healthy * _unmeasured(problem, evaluation, found.shares)
    optimum = limits.with_floor(pairs, found.shares, allowed, floor)
    if frozen.any():
        optimum = limits.without_gain(pairs, optimum, np.maximum(now, floor), frozen)
    step = limits.limit_shift(pairs, now, optimum, settings.max_shift_ratio)
    hold, hungry = now, allowed & (now < 0.5 * floor)
    if hungry.any():
        fed = limits.with_floor(pairs, now, allowed, floor)
        hold = np.where(pairs.any_by_route(hungry)[pairs.route], fed, now)
    hold = limits.wind_down(pairs, hold, allowed, settings.max_shift_ratio)
    change = step - hold
    reweights = (
        Candidate(Move.REWEIGHT, step if part == 1.0 else hold + part * change) for part in STEPS
    )
    proposed = (Candidate(Move.HOLD, hold), *reweights)
    return Candidates(
        proposed, (0.0, *STEPS), found.price_ms, floor, found.gap_ratio, found.iterations
    )


def _unmeasured(problem: Problem, evaluation: Evaluation, shares: Floats) -> Floats:
    """(P,) 1 where a pair's floor is all that measures its provider from there, 0 where others do.

    A provider that the plan sends ``PROBED_RPS`` from the same locality is known from that; a
    floor beside it costs and tells nothing.
    """
    pairs = problem.pairs
    flow = evaluation.demand_rps[pairs.route] * shares
    rps = np.bincount(problem.place, flow, len(problem.places))
    need: Floats = np.clip(1.0 - rps / PROBED_RPS, 0.0, 1.0)[problem.place]
    return need
