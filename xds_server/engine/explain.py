"""Why a route has the weights that it has: gains by term, other plans, and why not another."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from xds_server.core import latency, limits
from xds_server.core.objective import PairCosts
from xds_server.core.tables import Floats, Ints
from xds_server.engine.foresee import outlook
from xds_server.engine.gain import decided_gains, gain_terms, route_gains
from xds_server.engine.loop import Tick
from xds_server.engine.types import Problem
from xds_server.engine.why import OneRoute, Optimum, ahead, one_route, optimum
from xds_server.model.decision import HOLD_REASONS, MOVES, HoldReason, Move
from xds_server.model.explanation import Explanation, Option, ProviderTerm, Verdict
from xds_server.model.ids import ProviderName, RouteKey
from xds_server.model.template import Template
from xds_server.model.topology import EngineSettings, Mesh

NEAR_SHARE: Final = 0.01
"""A share this near to where it is going is there."""


def explain(problem: Problem, last: Tick, route: RouteKey, mesh: Mesh) -> Explanation:
    """Break the decision about one route into its terms.

    Takes some tens of milliseconds: it is for a thread of its own.

    Raises KeyError when the route is not part of the problem.
    """
    try:
        r = problem.routes.index(route)
    except ValueError:
        raise KeyError(route) from None
    evaluation, decision = last.evaluation, last.decision
    gains = decided_gains(problem, evaluation, last.simulated, decision)
    terms = gain_terms(problem, evaluation, gains, np.array([r]))
    found = _terms(problem, last, r, mesh.engine)
    open_to = [t for t in found if t.allowed]
    return Explanation(
        route=route,
        decided_at_s=decision.now_s,
        move=MOVES[decision.move[r]],
        hold_reason=HOLD_REASONS[decision.reason[r]],
        demand_rps=float(evaluation.demand_rps[r]),
        predicted_latency_ms=float(1e3 * decision.chosen.latency_s[r]),
        observed_latency_ms=float(1e3 * evaluation.observation.route_latency_s[r]),
        gain_ms=float(gains.net_ms[r]),
        doubt_ms=float(gains.doubt_ms[r]),
        gain_terms={name: float(value[0]) for name, value in terms.items()},
        options=_options(problem, last, r, float(gains.net_ms[r])),
        next_provider=min(open_to, key=lambda t: t.marginal_ms).provider if open_to else None,
        terms=found,
        no_candidates=_no_candidates(mesh, problem, route),
        outlook=None if MOVES[decision.move[r]] is Move.LAST_GOOD else outlook(last.foresight, r),
    )


def _no_candidates(mesh: Mesh, problem: Problem, route: RouteKey) -> dict[ProviderName, str]:
    """Name the service's providers that are no candidates of the route, and what they lack."""
    template: Template = mesh.templates[problem.groups[route.group].template]
    call = next(c for c in template.calls if c.service == route.service)
    lacks = {p.name: call.requires - p.capabilities for p in mesh.services[route.service].providers}
    return {name: f"lacks {', '.join(sorted(what))}" for name, what in lacks.items() if what}


def _options(problem: Problem, last: Tick, r: int, gain_ms: float) -> tuple[Option, ...]:
    """Return what the gate had before it, the chosen plan first; a way back was none of these."""
    evaluation, decision, totals = last.evaluation, last.decision, last.simulated.total_ms
    proposed = last.simulated.candidates.proposed
    best = int(totals.argmin())
    move, before = MOVES[decision.move[r]], evaluation.shares_now
    chosen = {Move.HOLD: 0, Move.REQUIRED: 0, Move.LAST_GOOD: -1}.get(move, best)
    options = []
    if move is Move.LAST_GOOD:
        back = float(limits.moved_ratio(problem.pairs, before, decision.shares)[r])
        options.append(Option(move, back, gain_ms, math.nan, chosen=True, lost_because=""))
    for i, candidate in enumerate(proposed):
        gains = route_gains(problem, evaluation, last.simulated, candidate)
        lost = f"the mesh would cost {totals[i] - totals[best]:.3g} ms/s more"
        if move is Move.LAST_GOOD:
            lost = "harm was observed, which no forecast knows of"
        elif i == best and i != chosen:
            lost = str(HOLD_REASONS[decision.reason[r]])
        moved = limits.moved_ratio(problem.pairs, before, candidate.shares)
        options.append(
            Option(
                # What is required is what the candidate that holds has to do.
                move=move if i == chosen else candidate.move,
                moved_ratio=float(moved[r]),
                gain_ms=float(gains.net_ms[r]),
                mesh_gain_ms_per_s=float(totals[0] - totals[i]),
                chosen=i == chosen,
                lost_because="" if i == chosen else lost,
            )
        )
    return tuple(sorted(options, key=lambda o: (not o.chosen, -o.mesh_gain_ms_per_s)))


def _terms(
    problem: Problem, last: Tick, r: int, settings: EngineSettings
) -> tuple[ProviderTerm, ...]:
    evaluation, decision, pairs = last.evaluation, last.decision, problem.pairs
    route, rows = one_route(
        pairs,
        r,
        decision.shares,
        evaluation.demand_rps,
        evaluation.costs.total,
        evaluation.stations,
        evaluation.allowed,
        last.simulated.candidates.floor,
    )
    best = optimum(route)
    path = ahead(
        route, decision.shares[rows], float(evaluation.tau_ms[r]), settings.max_shift_ratio
    )
    one = _One(problem, last, r, rows, route, best, path)
    return tuple(_term(one, k) for k in range(len(rows)))


@dataclass(frozen=True, slots=True)
class _One:
    """One route, where it belongs, and where it is going."""

    problem: Problem
    last: Tick
    r: int
    rows: Ints  # (K,)
    route: OneRoute
    best: Optimum
    path: Floats  # (N + 1, K)


def _term(one: _One, k: int) -> ProviderTerm:
    problem, evaluation, route = one.problem, one.last.evaluation, one.route
    costs: PairCosts = evaluation.costs
    p = int(one.rows[k])
    j = int(problem.pairs.provider[p])
    rps = route.others_rps + route.demand_rps * one.last.decision.shares[one.rows]
    mean, marginal, _ = latency.mean_and_marginal_s(route.stations, rps)
    total = float(1e3 * mean[k] + costs.total[p])
    rent = float(1e3 * (marginal[k] - mean[k]))
    route_rps = float(evaluation.observation.route_rps[one.r])
    allowed, short = bool(evaluation.allowed[p]), float(one.best.short_ms[k])
    prices = evaluation.price_usd[problem.pairs.provider[one.rows]]
    rate = _ms_per_usd(costs.price[one.rows], prices)
    verdict, ticks = _verdict(one.path[:, k], allowed, short > 0.0)
    acts = HOLD_REASONS[one.last.decision.reason[one.r]] not in _STANDS_STILL
    observed = float(evaluation.observation.pair_rps[p])
    because = problem.excluded_because[p] or ("" if allowed else "masked by what was measured")
    return ProviderTerm(
        provider=problem.providers[j],
        share=float(one.last.decision.shares[p]),
        baseline_share=float(problem.baseline_shares[p]),
        observed_share=observed / route_rps if route_rps else 0.0,
        allowed=allowed,
        excluded_because=because,
        latency_ms=float(1e3 * route.stations.idle_s[k]),
        queueing_ms=float(1e3 * (mean[k] - route.stations.idle_s[k])),
        queueing_rent_ms=rent,
        distance_ms=float(costs.distance[p]),
        backlog_ms=float(costs.backlog[p]),
        error_ms=float(costs.error[p]),
        price_ms=float(costs.price[p]),
        egress_ms=float(costs.egress[p]),
        geography_ms=float(costs.geography[p]),
        slo_ms=float(costs.slo[p]),
        total_ms=total,
        marginal_ms=total + rent,
        usd_per_million=1e6 * float(evaluation.price_usd[j]),
        verdict=verdict,
        optimum_share=float(one.best.shares[k]),
        floor_share=float(route.floor[k]),
        short_ms=short,
        short_usd_per_million=1e6 * short / rate if rate > 0.0 else math.nan,
        ticks=ticks if acts else None,
    )


_STANDS_STILL: Final = (
    HoldReason.NO_TELEMETRY,
    HoldReason.NO_DEMAND,
    HoldReason.NO_PROVIDER,
    HoldReason.OBSERVING,
)


def _verdict(path: Floats, allowed: bool, short: bool) -> tuple[Verdict, int | None]:
    """Judge one provider by where the engine's steps take it; and in how many ticks."""
    if not allowed:
        return Verdict.EXCLUDED, None
    goal = path[-1]
    if abs(goal - path[0]) <= NEAR_SHARE:
        return (Verdict.NOT_WORTH if short else Verdict.SETTLED), None
    ticks = int(np.flatnonzero(np.abs(path - goal) <= NEAR_SHARE)[0])
    return (Verdict.RISING if goal > path[0] else Verdict.FALLING), ticks


def _ms_per_usd(price_ms: Floats, price_usd: Floats) -> float:
    """Return what a dollar per request is worth to the route; 0 where money does not count."""
    usd = float(price_usd.sum())
    return float(price_ms.sum()) / usd if usd > 0.0 else 0.0
