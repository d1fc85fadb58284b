"""Optima of supposed meshes, for the slow tick: as many as its time allows."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from xds_server.core import latency
from xds_server.core.tables import Bools, Floats
from xds_server.engine.settle import Settled, settle
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.topology import EngineSettings

PAIR_STEPS: Final = 1_000_000
"""Steps times pairs that one slow tick may take: about half a second of one core."""
_STEPS_MIN, _STEPS_MAX = 3, 40


@dataclass(slots=True)
class Optima:
    """Answers until its time is over; what is left then waits for the next slow tick."""

    settings: EngineSettings
    left: float = float(PAIR_STEPS)

    def of(self, problem: Problem, evaluation: Evaluation, shares: Floats) -> Settled | None:
        """Settle from ``shares``; None when there is no time left, the first time never."""
        pairs = max(len(shares), 1)
        steps = int(np.clip(PAIR_STEPS / 10 / pairs, _STEPS_MIN, _STEPS_MAX))
        if self.left < pairs * steps and self.left < PAIR_STEPS:
            return None
        found = settle(problem, evaluation, shares, self.settings, steps=steps)
        self.left -= pairs * found.iterations
        return found


def marginal_ms(problem: Problem, settled: Settled) -> Floats:
    """(P,) what one more request costs with each pair, for everybody: C + p, ms-equivalent."""
    pairs, evaluation = problem.pairs, settled.evaluation
    rps = pairs.sum_by_provider(evaluation.demand_rps[pairs.route] * settled.shares)
    price = 1e3 * latency.marginal_s(evaluation.stations, rps)[0]
    total: Floats = evaluation.costs.total + price[pairs.provider]
    return total


def route_marginal_ms(problem: Problem, settled: Settled, allowed: Bools) -> Floats:
    """(R,) mu, what one more request costs a route at its optimum; inf where none may serve it."""
    pairs = problem.pairs
    mean = pairs.sum_by_route(settled.shares * marginal_ms(problem, settled))
    return np.where(pairs.any_by_route(allowed), mean, np.inf)
