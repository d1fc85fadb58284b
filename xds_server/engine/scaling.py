"""How many endpoints a provider should have: recommended, with what they gain and cost.

More endpoints are worth the fall of the objective between two optima, in dollars at the exchange
rates of calmer times, less their price by the hour. Fewer are recommended only after a surplus
that lasts, and only where the loss of one more endpoint could still be borne.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from xds_server.core import latency
from xds_server.core.scaling import best_count, counts_to_try
from xds_server.core.tables import Bools
from xds_server.engine.changes import apply_changes, ms_per_usd
from xds_server.engine.optima import RELIEF_RATIO, Optima, Worth
from xds_server.engine.settle import Settled
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.ids import ProviderName
from xds_server.model.slow import SlowDecision, SlowKind, SlowStatus
from xds_server.model.topology import Mesh, Provider
from xds_server.model.what_if import Change, Quantity

OUT_TICKS: Final = 2
"""Slow ticks in a row that have to ask for more endpoints: for as many as all of them did."""
SURPLUS_S: Final = 180.0
"""How long there has to be a surplus."""
HOLD_S: Final = 180.0
"""How long a recommendation stands after it was asked for last."""
BUSY_MAX: Final = 0.9
"""Utilisation that providers may reach when one more endpoint is lost."""


@dataclass(slots=True)
class _Memory:
    """What is known of one provider."""

    count: int
    since_s: float  # it has had that many
    looked_s: float = -np.inf  # when it had its turn
    lately: tuple[int, ...] = ()  # the best numbers at the last ``OUT_TICKS`` looks
    surplus_since_s: float | None = None
    standing: int = 0  # the number that is recommended; 0: none
    confirmed_s: float = 0.0  # when as many were asked for last
    wanted_s: float = 0.0  # when any were that lie in the same direction

    def stand(self, asked: int, best: int, now_s: float) -> None:
        """Let a recommendation stand for ``HOLD_S`` after it was called for: demand comes and goes.

        Parameters
        ----------
        asked : the number that has been asked for long enough; 0: none has
        best : the best number now
        """
        same = self.standing > 0 and (best - self.count) * (self.standing - self.count) > 0
        if same:
            self.wanted_s = now_s
        over = now_s - self.wanted_s >= HOLD_S
        if over or (asked and asked >= self.standing):
            self.standing, self.confirmed_s, self.wanted_s = asked, now_s, now_s
        elif same and now_s - self.confirmed_s >= HOLD_S:
            self.standing, self.confirmed_s = best, now_s


@dataclass(slots=True)
class Scaling:
    """Memory by provider; bounded by those that have bounds for scaling."""

    memory: dict[ProviderName, _Memory] = field(default_factory=dict)
    shown: dict[ProviderName, SlowStatus] = field(default_factory=dict)

    def keep(self, mesh: Mesh) -> None:
        """Forget all that may not be scaled any more."""
        for memory in (self.memory, self.shown):
            for name in memory.keys() - {n for n, p in mesh.providers.items() if p.scale}:
                del memory[name]

    def decide(
        self,
        mesh: Mesh,
        problem: Problem,
        evaluation: Evaluation,
        endpoints: Mapping[ProviderName, int],
        optima: Optima,
        worth: Worth,
        *,
        now_s: float,
    ) -> tuple[SlowDecision, ...]:
        """Recommend other numbers of endpoints, each one once."""
        found = []
        for name in self._in_turn(mesh, problem, evaluation):
            provider = mesh.providers[name]
            count = endpoints.get(name, 0)
            known = self.memory.get(name)
            if known is None or known.count != count:
                known = self.memory[name] = _Memory(count, now_s)
            assert provider.scale is not None
            if count < 1 or now_s - known.since_s < provider.scale.ready_s:
                continue  # what it has now is not at work yet
            case = _Case(problem, evaluation, endpoints, optima, worth, provider, count)
            best = case.best()
            if best is None:
                break
            known.looked_s = now_s
            decision = self._judge(case, known, *best, now_s=now_s)
            if decision is not None:
                found.append(decision)
        return tuple(found)

    def status(self, now_s: float) -> tuple[SlowStatus, ...]:
        """One row per provider that slow ticks have looked at."""
        return tuple(
            replace(row, since_s=now_s - self.memory[name].since_s)
            for name, row in sorted(self.shown.items())
        )

    def _in_turn(self, mesh: Mesh, problem: Problem, evaluation: Evaluation) -> Iterator[str]:
        """Yield providers that are called, in turn, the dearest congestion first."""
        pairs = problem.pairs
        flow = evaluation.demand_rps[pairs.route] * evaluation.shares_now
        rps = pairs.sum_by_provider(flow * evaluation.measured[pairs.route])
        rent = rps * latency.wait_s(evaluation.stations, rps)

        def turn(j: int) -> tuple[float, float]:
            known = self.memory.get(problem.providers[j])
            return known.looked_s if known is not None else -np.inf, -float(rent[j])

        for j in sorted(range(len(rps)), key=turn):
            provider = mesh.providers.get(problem.providers[j])
            if provider is not None and provider.scale is not None and rps[j] > 0.0:
                yield provider.name

    def _judge(
        self, case: "_Case", known: _Memory, best: int, gain_usd_per_h: float, *, now_s: float
    ) -> SlowDecision | None:
        name, count = case.provider.name, case.count
        because = _because(count, best, gain_usd_per_h)
        known.lately = (*known.lately, best)[-OUT_TICKS:]
        if best >= count:
            known.surplus_since_s = None
        elif known.surplus_since_s is None:
            known.surplus_since_s = now_s
        surplus, asked = known.surplus_since_s, 0
        if len(known.lately) == OUT_TICKS and min(known.lately) > count:
            asked = min(known.lately)
        elif surplus is not None and now_s - surplus >= SURPLUS_S:
            asked = best
        before = known.standing
        known.stand(asked, best, now_s)
        pending = "" if best == count or asked else str(best)
        if known.standing != before or not known.standing:
            recommended = str(known.standing) if known.standing else ""
            self.shown[name] = SlowStatus(
                SlowKind.SCALE.value, name, str(count), recommended, pending, because, 0.0
            )
        if known.standing in (before, 0):
            return None
        action = "out" if known.standing > count else "in"
        return SlowDecision(SlowKind.SCALE, name, action, because, enforced=False)


@dataclass(frozen=True, slots=True)
class _Case:
    """One provider, and what would be with other numbers of endpoints."""

    problem: Problem
    evaluation: Evaluation
    endpoints: Mapping[ProviderName, int]
    optima: Optima
    worth: Worth
    provider: Provider
    count: int

    def best(self) -> tuple[int, float] | None:
        """Return the best number and its net gain, dollars per hour; None: no time left."""
        scale = self.provider.scale
        assert scale is not None
        counts = counts_to_try(self.count, scale.min, scale.max)
        now = self.optima.now(self.problem, self.evaluation)
        if now is None:
            return None
        relief, enough = np.zeros(len(counts)), np.zeros(len(counts), dtype=bool)
        for i, count in enumerate(counts):
            if count == self.count:
                continue
            then = self._optimum(int(count), self.evaluation)
            if then is None:
                return None
            bearable = self._bearable(int(count)) if count < self.count else True
            if bearable is None:
                return None
            if not bearable:
                relief[i] = -np.inf
            else:
                relief[i] = self._relief(now, then)
                enough[i] = not np.any(self._too_slow(then))
        price = self.provider.price.per_endpoint_hour_usd
        if price <= 0.0:  # what they cost was not said, so nothing but an objective asks for them
            relief = np.where(np.isposinf(relief), relief, np.minimum(relief, 0.0))
        needed = np.isposinf(relief)
        if needed.any():  # the fewest that are enough, else the most that help
            best = (
                np.argmax(needed & enough) if np.any(needed & enough) else needed.nonzero()[0][-1]
            )
            return int(counts[best]), np.inf
        return best_count(self.count, counts, relief, price)

    def _optimum(self, count: int, evaluation: Evaluation) -> Settled | None:
        problem, then = self._with(count, evaluation)
        return self.optima.of(problem, then, then.shares_now)

    def _with(self, count: int, evaluation: Evaluation) -> tuple[Problem, Evaluation]:
        change = Change(
            self.provider.name, Quantity.ENDPOINTS, float(count), is_factor=False, text=""
        )
        everyone = np.ones(self.problem.pairs.routes, dtype=bool)
        return apply_changes(self.problem, evaluation, [change], self.endpoints, everyone)

    def _relief(self, now: Settled, then: Settled) -> float:
        """Dollars per hour; inf where a profile asks for it and nothing else has a price."""
        faster_s = now.forecast.latency_p95_s - then.forecast.latency_p95_s
        better = faster_s > RELIEF_RATIO * self.evaluation.slo_s
        priced = ms_per_usd(self.problem, self.evaluation) > 0.0
        unpriced = ~priced | (self.provider.price.per_endpoint_hour_usd <= 0.0)
        if np.any(self._too_slow(now) & better & unpriced):
            return np.inf
        return self.worth.usd_per_h(self.problem, now, then)

    def _too_slow(self, settled: Settled) -> Bools:
        """(R,) routes that call, and are slower than their profile allows."""
        called = self.evaluation.demand_rps > 0.0
        return called & (settled.forecast.latency_p95_s > self.evaluation.slo_s)

    def _bearable(self, count: int) -> bool | None:
        """Whether with that many one could be lost, at the demand that profiles expect.

        None: no time left.
        """
        problem = self.problem
        expected = problem.target.expected_rps * problem.members
        full = replace(self.evaluation, demand_rps=np.maximum(self.evaluation.demand_rps, expected))
        left, evaluation = self._with(count - 1, full)
        pairs = problem.pairs
        if not np.all(pairs.any_by_route(evaluation.allowed) | (full.demand_rps <= 0.0)):
            return False
        worst = self.optima.of(left, evaluation, evaluation.shares_now)
        if worst is None:
            return None
        rps = pairs.sum_by_provider(full.demand_rps[pairs.route] * worst.shares)
        busy = latency.utilisation_ratio(evaluation.stations, rps)
        if np.any(busy > BUSY_MAX):
            return False
        within = worst.forecast.latency_p95_s <= self.evaluation.slo_s
        return bool(np.all(within | (full.demand_rps <= 0.0)))


def _because(count: int, best: int, gain_usd_per_h: float) -> str:
    if best == count:
        return "no other number of endpoints gains anything"
    if np.isinf(gain_usd_per_h):
        return f"with {count}, calls are slower than a profile allows"
    return f"{best} endpoints instead of {count} gain {gain_usd_per_h:.3g} $/h beside their price"
