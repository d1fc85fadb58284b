"""Optima of one service as it is, and as it is supposed to be; and what the difference is worth."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from xds_server.core import latency
from xds_server.core.scaling import SECONDS_PER_HOUR, usd_per_h
from xds_server.core.tables import Bools, Floats
from xds_server.engine.changes import ms_per_usd
from xds_server.engine.settle import Settled, settling
from xds_server.engine.types import Evaluation, Problem
from xds_server.engine.work import Work
from xds_server.model.ids import RouteKey
from xds_server.model.topology import EngineSettings

STEPS_MAX: Final = 40
"""Steps of one answer: most have settled after ten."""
GAP_RATIO: Final = 1e-4
"""Of each step: differences of optima are what counts, and they are small beside them."""
RELIEF_RATIO: Final = 0.05
"""Calls that are too slow are helped where they get faster by this part of their objective."""
_FORGET_RATIO: Final = 1.005
"""How fast a calm exchange rate is given up, per slow tick: it doubles in 140 of them."""


@dataclass(slots=True)
class Optima:
    """Settles a part of the mesh under suppositions; each begins at the optimum of what is."""

    problem: Problem
    evaluation: Evaluation
    settings: EngineSettings
    calm: Floats  # (R,) ms per dollar, of calmer times
    start: Floats  # (P,) shares near the optimum of now
    _now: Settled | None = None

    def now(self) -> Work[Settled]:
        """Settle what is, which every question compares with: once."""
        if self._now is None:
            self._now = yield from self._settling(self.problem, self.evaluation, self.start)
        return self._now

    @property
    def rest(self) -> Floats:
        """(P,) the optimum of now, as far as it was asked for."""
        return self.start if self._now is None else self._now.shares

    def of(self, problem: Problem, evaluation: Evaluation) -> Work[Settled]:
        """Settle what is supposed: from the optimum of now, so both have the same errors."""
        now = yield from self.now()
        return (yield from self._settling(problem, evaluation, now.shares))

    def _settling(self, problem: Problem, evaluation: Evaluation, shares: Floats) -> Work[Settled]:
        return settling(
            problem, evaluation, shares, self.settings, steps=STEPS_MAX, gap_ratio=GAP_RATIO
        )

    def usd_per_h(self, before: Settled, after: Settled) -> float:
        """Dollars per hour that all routes are better off after than before.

        Money is counted as it is, for all calls; time, failures and objectives of latency for
        the calls that are made ``after``.
        """
        rate_now = ms_per_usd(self.problem, before.evaluation)
        spent, time_ms = [], []
        for settled in (before, after):
            usd = settled.forecast.usd_per_million / 1e6
            spent.append(float(np.sum(settled.evaluation.demand_rps * usd)))
            time_ms.append(settled.forecast.cost_ms - rate_now * usd)
        saved = SECONDS_PER_HOUR * (spent[0] - spent[1])
        return saved + usd_per_h(after.evaluation.demand_rps, time_ms[0] - time_ms[1], self.calm)


@dataclass(slots=True)
class Worth:
    """What routes' time is worth in dollars; remembers exchange rates of calmer times.

    A rate is in proportion to how long a request takes at the baseline. Where that is overloaded
    it takes longer, and time would be the cheaper the more of it is lost.
    """

    _routes: tuple[RouteKey, ...] = ()
    _rates: Floats = field(default_factory=lambda: np.empty(0))  # ms per dollar; 0: unknown

    def update(self, problem: Problem, evaluation: Evaluation) -> None:
        """Take in the rates of now; to be called once per slow tick."""
        now, before = ms_per_usd(problem, evaluation), self.of(problem)
        self._rates = np.where(before > 0.0, np.minimum(now, _FORGET_RATIO * before), now)

    def of(self, problem: Problem) -> Floats:
        """(R,) ms per dollar; 0 where no slow tick has seen the route yet."""
        if problem.routes is not self._routes:
            known: Mapping[RouteKey, float] = dict(
                zip(self._routes, self._rates.tolist(), strict=True)
            )
            self._rates = np.array([known.get(key, 0.0) for key in problem.routes])
            self._routes = problem.routes
        return self._rates


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
