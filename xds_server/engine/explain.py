"""Why a route has the weights that it has, in terms that add up."""

import numpy as np

from xds_server.core import latency, objective
from xds_server.engine.loop import Tick
from xds_server.engine.types import Problem
from xds_server.model.decision import HOLD_REASONS, MOVES, Explanation, ProviderTerm
from xds_server.model.ids import RouteKey


def explain(problem: Problem, last: Tick, route: RouteKey) -> Explanation:
    """Break the decision about one route into its terms, per provider.

    ``total_ms`` is what a request costs there now: latency (service and queueing) +
    error + price + egress + geography + slo. ``marginal_ms`` adds the queueing rent, what
    one more request costs everybody else; it is what the solver equalises.

    Raises KeyError when the route is not part of the problem.
    """
    try:
        r = problem.routes.index(route)
    except ValueError:
        raise KeyError(route) from None
    evaluation, decision = last.evaluation, last.decision
    seen = evaluation.observation
    hold, chosen = decision.hold.cost_ms[r], decision.chosen.cost_ms[r]
    return Explanation(
        route=route,
        decided_at_s=decision.now_s,
        move=MOVES[decision.move[r]],
        hold_reason=HOLD_REASONS[decision.reason[r]],
        demand_rps=float(evaluation.demand_rps[r]),
        predicted_latency_ms=float(1e3 * decision.chosen.latency_s[r]),
        observed_latency_ms=float(1e3 * seen.route_latency_s[r]),
        gain_ms=float(hold - chosen),
        terms=tuple(_term(problem, last, int(p)) for p in np.flatnonzero(problem.pairs.route == r)),
    )


def _term(problem: Problem, last: Tick, p: int) -> ProviderTerm:
    evaluation, pairs = last.evaluation, problem.pairs
    j, r = int(pairs.provider[p]), int(pairs.route[p])
    rps = pairs.sum_by_provider(evaluation.demand_rps[pairs.route] * last.decision.shares)
    mean_ms = float(1e3 * latency.mean_s(evaluation.stations, rps)[j])
    marginal_ms = float(1e3 * latency.marginal_s(evaluation.stations, rps)[0][j])
    costs: objective.PairCosts = evaluation.costs
    total = mean_ms + float(costs.total[p])
    route_rps = float(evaluation.observation.route_rps[r])
    return ProviderTerm(
        provider=problem.providers[j],
        share=float(last.decision.shares[p]),
        baseline_share=float(problem.baseline_shares[p]),
        observed_share=float(evaluation.observation.pair_rps[p]) / route_rps if route_rps else 0.0,
        allowed=bool(problem.allowed[p]),
        excluded_because=problem.excluded_because[p],
        latency_ms=mean_ms,
        queueing_rent_ms=marginal_ms - mean_ms,
        error_ms=float(costs.error[p]),
        price_ms=float(costs.price[p]),
        egress_ms=float(costs.egress[p]),
        geography_ms=float(costs.geography[p]),
        slo_ms=float(costs.slo[p]),
        total_ms=total,
        marginal_ms=total + marginal_ms - mean_ms,
    )
