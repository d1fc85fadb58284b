"""Stage 4: what each candidate would do, in closed form."""

import numpy as np

from xds_server.core import latency, objective
from xds_server.core.tables import Floats
from xds_server.engine.types import Candidates, Evaluation, Problem, Simulated
from xds_server.model.decision import Forecast


def simulate(problem: Problem, evaluation: Evaluation, candidates: Candidates) -> Simulated:
    """Forecast every candidate from commanded shares and measured demand."""
    totals = [
        objective.total_ms(
            problem.pairs,
            candidate.shares,
            evaluation.demand_rps,
            evaluation.costs.total,
            evaluation.stations,
        )
        for candidate in candidates.proposed
    ]
    return Simulated(
        candidates, np.array(totals), forecast(problem, evaluation, candidates.proposed[0].shares)
    )


def forecast(problem: Problem, evaluation: Evaluation, shares: Floats) -> Forecast:
    """Expected latency, cost and objective of one plan, per route and in total."""
    pairs = problem.pairs
    demand = evaluation.demand_rps
    rps = pairs.sum_by_provider(demand[pairs.route] * shares)
    mean = latency.mean_s(evaluation.stations, rps)[pairs.provider]
    p95 = latency.p95_s(evaluation.stations, rps)[pairs.provider] + evaluation.rtt_s
    # Distance is part of the costs, and of the latency.
    cost_ms = pairs.sum_by_route(shares * (evaluation.costs.total + 1e3 * mean))
    mean = mean + evaluation.rtt_s
    spread = pairs.sum_by_route((shares * mean * evaluation.sigma_ratio[pairs.provider]) ** 2)
    latency_s = pairs.sum_by_route(shares * mean)
    return Forecast(
        cost_ms=cost_ms,
        latency_s=latency_s,
        # A mixture's quantile lies below its largest part's; the share-weighted mean of
        # the parts' quantiles is what the objective's linearisation uses.
        latency_p95_s=pairs.sum_by_route(shares * p95),
        usd_per_million=1e6 * pairs.sum_by_route(shares * evaluation.usd_per_request),
        sigma_s=evaluation.calibration * np.sqrt(spread + (0.03 * latency_s) ** 2),
        total=float(demand @ cost_ms),
    )
