"""Stage 4: what each candidate would do, in closed form."""

import numpy as np

from xds_server.core import latency, objective
from xds_server.core.tables import Floats
from xds_server.engine.types import Candidates, Evaluation, Problem, Simulated
from xds_server.model.decision import Forecast


def simulate(problem: Problem, evaluation: Evaluation, candidates: Candidates) -> Simulated:
    """Forecast every candidate from commanded shares and measured demand.

    Candidates lie on a line from the first to the second, so loads and all costs but the queues'
    do as well: those of the two give all the others'.
    """
    hold, step = (
        objective.cost_and_loads(
            problem.pairs, candidate.shares, evaluation.demand_rps, evaluation.costs.total
        )
        for candidate in candidates.proposed[:2]
    )
    totals = [
        hold[0]
        + part * (step[0] - hold[0])
        + objective.queueing_ms(evaluation.stations, hold[1] + part * (step[1] - hold[1]))
        for part in candidates.parts
    ]
    return Simulated(
        candidates, np.array(totals), forecast(problem, evaluation, candidates.proposed[0].shares)
    )


def forecast(problem: Problem, evaluation: Evaluation, shares: Floats) -> Forecast:
    """Expected latency, cost and objective of one plan, per route and in total."""
    pairs, demand = problem.pairs, evaluation.demand_rps
    mean, p95 = latency.mean_and_p95_s(evaluation.stations, pairs.loads(shares, demand))
    mean_s, p95_s = pairs.sums_by_route(shares, mean, p95)
    away_s, fixed_ms, usd = pairs.weigh_by_route(
        shares, evaluation.rtt_s, evaluation.costs.total, evaluation.usd_per_request
    )
    latency_s = mean_s + away_s
    # Distance is part of the costs, and of the latency.
    cost_ms = fixed_ms + 1e3 * mean_s
    each = mean[pairs.provider]
    each += evaluation.rtt_s
    each *= shares
    each *= each
    (spread,) = pairs.sums_by_route(each, evaluation.sigma_ratio**2)
    return Forecast(
        cost_ms=cost_ms,
        latency_s=latency_s,
        # A mixture's quantile lies below its largest part's; the share-weighted mean of
        # the parts' quantiles is what the objective's linearisation uses.
        latency_p95_s=p95_s + away_s,
        usd_per_million=1e6 * usd,
        sigma_s=evaluation.calibration * np.sqrt(spread + (0.03 * latency_s) ** 2),
        total=float(np.sum(demand * cost_ms)),
    )
