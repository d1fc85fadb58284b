"""Optima of supposed meshes, for the slow tick: as many as its time allows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from xds_server.core import latency
from xds_server.core.scaling import SECONDS_PER_HOUR, usd_per_h
from xds_server.core.tables import Bools, Floats
from xds_server.engine.changes import ms_per_usd
from xds_server.engine.settle import Settled, settle
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.ids import RouteKey
from xds_server.model.topology import EngineSettings

PAIR_STEPS: Final = 1_000_000
"""Steps times pairs that one slow tick may take: about 1.5 s of one core at 20,000 pairs, 2 s at
100,000 (measured on a busy machine): a step is 10 to 16 iterations of the solver."""
_STEPS_MIN, _STEPS_MAX = 3, 40
RELIEF_RATIO: Final = 0.05
"""Calls that are too slow are helped where they get faster by this part of their objective."""
_FORGET_RATIO: Final = 1.005
"""How fast a calm exchange rate is given up, per slow tick: it doubles in 140 of them."""


@dataclass(slots=True)
class Optima:
    """Answers until its time is over; what is left then waits for the next slow tick."""

    settings: EngineSettings
    left: float = float(PAIR_STEPS)
    over: bool = False  # whether a question had to wait
    _now: Settled | None = None

    def now(self, problem: Problem, evaluation: Evaluation) -> Settled | None:
        """Settle what is, which most questions compare with: once per slow tick."""
        if self._now is None:
            self._now = self.of(problem, evaluation, evaluation.shares_now)
        return self._now

    def of(self, problem: Problem, evaluation: Evaluation, shares: Floats) -> Settled | None:
        """Settle from ``shares``; None when there is no time left, the first time never."""
        pairs = max(len(shares), 1)
        steps = int(np.clip(PAIR_STEPS / 10 / pairs, _STEPS_MIN, _STEPS_MAX))
        if self.left < pairs * steps and self.left < PAIR_STEPS:
            self.over = True
            return None
        found = settle(problem, evaluation, shares, self.settings, steps=steps)
        self.left -= pairs * found.iterations
        return found


@dataclass(slots=True)
class Worth:
    """What routes' time is worth in dollars; remembers exchange rates of calmer times.

    A rate is in proportion to how long a request takes at the baseline. Where that is overloaded
    it takes longer, and time would be the cheaper the more of it is lost.
    """

    rates: Mapping[RouteKey, float] = field(default_factory=dict)  # ms per dollar, R of them

    def update(self, problem: Problem, evaluation: Evaluation) -> None:
        """Take in the rates of now; to be called once per slow tick."""
        now = ms_per_usd(problem, evaluation).tolist()
        known = self.rates
        self.rates = {
            key: min(rate, _FORGET_RATIO * known.get(key, rate) or rate)
            for key, rate in zip(problem.routes, now, strict=True)
        }

    def usd_per_h(self, problem: Problem, before: Settled, after: Settled) -> float:
        """Dollars per hour that all routes are better off after than before.

        Money is counted as it is, for all calls; time, failures and objectives of latency for
        the calls that are made ``after``.
        """
        rate_now = ms_per_usd(problem, before.evaluation)
        calm = np.array([self.rates.get(key, 0.0) for key in problem.routes])
        spent, time_ms = [], []
        for settled in (before, after):
            usd = settled.forecast.usd_per_million / 1e6
            spent.append(float(np.sum(settled.evaluation.demand_rps * usd)))
            time_ms.append(settled.forecast.cost_ms - rate_now * usd)
        saved = SECONDS_PER_HOUR * (spent[0] - spent[1])
        return saved + usd_per_h(after.evaluation.demand_rps, time_ms[0] - time_ms[1], calm)


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
