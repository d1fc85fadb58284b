"""Stage 2: who delays whom, and by how much."""

import numpy as np

from xds_server.core import latency
from xds_server.engine.types import Bottlenecks, Evaluation, Problem
from xds_server.model.decision import Bottleneck

KEPT = 16
"""How many are named; the rest is in the metrics."""
_NOTABLE_SHARE = 0.01


def find_bottlenecks(problem: Problem, evaluation: Evaluation) -> Bottlenecks:
    """Sort providers by congestion rent x (p - T): what queueing there costs per second."""
    pairs = problem.pairs
    rps = pairs.loads(evaluation.shares_now, evaluation.demand_rps)
    mean, marginal, _ = latency.mean_and_marginal_s(evaluation.stations, rps)
    rent = 1e3 * rps * (marginal - mean)
    busy = latency.utilisation_ratio(evaluation.stations, rps)
    worst = [j for j in np.argsort(-rent, kind="stable")[:KEPT] if rent[j] > 0.0]
    named = np.zeros(pairs.providers, dtype=bool)
    named[worst] = True
    rows = np.flatnonzero(named[pairs.provider])
    rows = rows[evaluation.shares_now[rows] > _NOTABLE_SHARE]
    found = tuple(
        Bottleneck(
            provider=problem.providers[j],
            utilisation_ratio=float(busy[j]),
            rent_ms_per_s=float(rent[j]),
            delays=tuple(problem.routes[r] for r in pairs.route[rows[pairs.provider[rows] == j]]),
        )
        for j in worst
    )
    return Bottlenecks(found, 1e3 * marginal)
