"""Where the shares of an evaluation would come to rest, if it stayed as it is."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from xds_server.core import latency, limits, objective, solver
from xds_server.core.blocks import kin_of
from xds_server.core.tables import Bools, Floats, Ints
from xds_server.engine.generate import FAILING_FLOOR_RATIO
from xds_server.engine.simulate import forecast
from xds_server.engine.types import Evaluation, Problem
from xds_server.engine.work import STEP_PAIRS, Work, done_at_once
from xds_server.model.decision import Forecast
from xds_server.model.topology import EngineSettings

ITERATIONS_MAX: Final = 60
SETTLED_SHARE: Final = 2e-4
"""Shares that move less than this have settled."""
_TAU_RATIO: Final = 0.3
"""Reluctance in mean latencies of a route, at first: it sets the pace alone, not where shares
settle."""
_FASTER, _SLOWER, _FASTEST = 0.6, 1.6, 0.1
"""How reluctance falls, and down to which part, while whole steps gain; how it grows if not."""
_LENGTHS: Final = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)
"""Parts of the solver's step that are tried, until one gains."""
_DIFFERENCE: Final = 1e-4
_FIXED_MS: Final = 1e12
"""Reluctance of a route that is not to move."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Shares, and the evaluation as it is at them."""

    shares: Floats  # (P,)
    evaluation: Evaluation
    forecast: Forecast
    iterations: int
    done: bool  # whether shares had stopped moving
    gap_ratio: float


def at_shares(problem: Problem, evaluation: Evaluation, shares: Floats) -> Evaluation:
    """Return the evaluation with ``shares`` in force: the SLO's penalty follows their load."""
    pairs = problem.pairs
    rps = pairs.sum_by_provider(evaluation.demand_rps[pairs.route] * shares)
    p95 = latency.p95_s(evaluation.stations, rps)[pairs.provider] + evaluation.rtt_s
    slo = objective.slo_ms(p95, evaluation.slo_s[pairs.route])
    return replace(evaluation, shares_now=shares, costs=replace(evaluation.costs, slo=slo))


def settle(
    problem: Problem,
    evaluation: Evaluation,
    shares: Floats,
    settings: EngineSettings,
    *,
    steps: int = ITERATIONS_MAX,
    max_shift_ratio: float = 1.0,
    fixed: Bools | None = None,
    gap_ratio: float = solver.GAP_RATIO,
) -> Settled:
    """Do the work of ``settling`` at once; parameters are the same."""
    work = settling(
        problem,
        evaluation,
        shares,
        settings,
        steps=steps,
        max_shift_ratio=max_shift_ratio,
        fixed=fixed,
        gap_ratio=gap_ratio,
    )
    return done_at_once(work)


def settling(
    problem: Problem,
    evaluation: Evaluation,
    shares: Floats,
    settings: EngineSettings,
    *,
    steps: int = ITERATIONS_MAX,
    max_shift_ratio: float = 1.0,
    fixed: Bools | None = None,
    gap_ratio: float = solver.GAP_RATIO,
) -> Work[Settled]:
    """Take the solver's step, within floors and masks, until shares stay or ``steps`` are over.

    Each step is taken as far as the objective, with the SLO's penalty at the new load, improves;
    service by service, since they share nothing. One whose steps gain no more has settled.

    Parameters
    ----------
    shares : (P,) to start from; what is not allowed is spread first
    max_shift_ratio : of a route's traffic in one step
    fixed : (R,) routes that keep their shares; None: none does
    gap_ratio : of each step's solution, relative
    """
    pairs, allowed = problem.pairs, evaluation.allowed
    held = np.zeros(pairs.routes, dtype=bool) if fixed is None else fixed
    kept = held[pairs.route]
    healthy = np.maximum(1.0 - evaluation.error_ratio[pairs.provider], FAILING_FLOOR_RATIO)
    asked = settings.min_share_ratio * healthy
    floor = limits.with_floor(pairs, np.zeros(len(asked)), allowed, asked)
    # What is above the floors is what can be shared out: the solver sees that alone, or else it
    # would pull against them for ever.
    free = (1.0 - pairs.sum_by_route(floor))[pairs.route]
    spread = limits.onto_allowed(pairs, shares, allowed)
    at = np.where(kept, shares, np.maximum(spread, floor))
    at = at / np.maximum(pairs.sum_by_route(at), 1e-12)[pairs.route]
    here = _place(problem, evaluation, at)
    block = kin_of(pairs).block[pairs.provider[pairs.starts]]
    going = np.ones(int(block.max(initial=-1)) + 1, dtype=bool)
    proven, pace = 0.0, np.ones(len(going))
    for iteration in range(1, steps + 1):
        reluctance = pace[block] * _TAU_RATIO * np.maximum(1e3 * here.forecast.latency_s, 0.1)
        tau = np.where(held, _FIXED_MS, reluctance)
        at, now = here.shares, here.evaluation
        above = np.where(kept, at, np.maximum(at - floor, 0.0) / free)
        fixed_ms = now.costs.total + _slo_rent_ms(problem, now, at)
        found = solver.solve(
            pairs,
            allowed,
            above,
            now.demand_rps,
            fixed_ms,
            tau,
            now.stations,
            gap_ratio=gap_ratio,
        )
        proven = found.gap_ratio
        wanted = floor + free * found.shares
        stays = kept | ~going[block][pairs.route]
        wanted = np.where(stays, at, limits.limit_shift(pairs, at, wanted, max_shift_ratio))
        yield STEP_PAIRS + len(at)
        if np.max(np.abs(wanted - at), initial=0.0) < SETTLED_SHARE:
            return here.settled(iteration, True, proven)
        here, length = _advance(problem, here, wanted, block, going)
        going &= length > 0.0
        if not going.any():  # no step of any service gains any more
            return here.settled(iteration, True, proven)
        slower = np.minimum(1.0, np.where(length > 0.0, _SLOWER, 1.0) * pace)
        pace = np.where(length == 1.0, np.maximum(_FASTEST, _FASTER * pace), slower)
    return here.settled(steps, False, proven)


@dataclass(frozen=True, slots=True)
class _Place:
    """Shares, with the evaluation and the forecast at them."""

    shares: Floats  # (P,)
    evaluation: Evaluation
    forecast: Forecast

    def settled(self, iterations: int, done: bool, gap_ratio: float) -> Settled:
        return Settled(self.shares, self.evaluation, self.forecast, iterations, done, gap_ratio)


def _place(problem: Problem, evaluation: Evaluation, shares: Floats) -> _Place:
    here = at_shares(problem, evaluation, shares)
    return _Place(shares, here, forecast(problem, here, shares))


def _advance(
    problem: Problem, here: _Place, wanted: Floats, block: Ints, going: Bools
) -> tuple[_Place, Floats]:
    """Go towards ``wanted`` (P,), each block as far as its own objective improves.

    Returns
    -------
    where that is, and (B,) how far each block went, 0..1
    """
    pairs, demand = problem.pairs, here.evaluation.demand_rps

    def by_block(found: Forecast) -> Floats:
        summed = np.bincount(block, demand * found.cost_ms, len(going))
        return summed.astype(np.float64, copy=False)  # an empty one is of integers

    def on_the_way(part: Floats) -> _Place:
        shares = here.shares + part[block][pairs.route] * (wanted - here.shares)
        return _place(problem, here.evaluation, shares)

    before, taken, open_to = by_block(here.forecast), np.zeros(len(going)), going.copy()
    for length in _LENGTHS:
        there = on_the_way(np.where(open_to, length, taken))
        gained = open_to & (by_block(there.forecast) < before)
        taken[gained] = length
        open_to &= ~gained
        if not open_to.any():
            return there, taken
    return on_the_way(taken), taken  # where no length gains, nothing is taken


def _slo_rent_ms(problem: Problem, evaluation: Evaluation, shares: Floats) -> Floats:
    """(P,) what one more request adds to everybody's SLO penalty, by a difference quotient.

    The solver takes the penalty as it is; where it grows with load, that is not its gradient.
    """
    pairs, slo_s = problem.pairs, evaluation.slo_s[problem.pairs.route]
    flow = evaluation.demand_rps[pairs.route] * shares
    rps = pairs.sum_by_provider(flow)
    more = _DIFFERENCE * (rps + 1.0)
    p95 = latency.p95_s(evaluation.stations, rps + more)[pairs.provider] + evaluation.rtt_s
    grown = objective.slo_ms(p95, slo_s) - evaluation.costs.slo
    return (pairs.sum_by_provider(flow * grown) / more)[pairs.provider]
