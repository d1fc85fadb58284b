"""How many endpoints a provider should have: recommended, with what they gain and cost.

More endpoints are worth the fall of the objective between two optima, in dollars at the exchange
rates of calmer times, less their price by the hour. Fewer are recommended only after a surplus
that lasts, and only where the loss of one more endpoint could still be borne.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from xds_server.core import latency
from xds_server.core.scaling import best_count, counts_to_try
from xds_server.core.tables import Bools
from xds_server.engine.changes import apply_changes, ms_per_usd
from xds_server.engine.optima import RELIEF_RATIO, Optima
from xds_server.engine.settle import Settled
from xds_server.engine.types import Evaluation, Problem
from xds_server.engine.work import Work
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
KEEP_RATIO: Final = 1.5
"""Another number in the same direction has to gain so many times what the recommended one does."""
BUSY_MAX: Final = 0.9
"""Utilisation that providers may reach when one more endpoint is lost."""


@dataclass(slots=True)
class _Memory:
    """What is known of one provider."""

    count: int
    since_s: float  # it has had that many
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

    def ready(self, provider: Provider, count: int, now_s: float) -> bool:
        """Whether the number of endpoints that it has has been at work for long enough."""
        known = self.memory.get(provider.name)
        if known is None or known.count != count:
            known = self.memory[provider.name] = _Memory(count, now_s)
        assert provider.scale is not None
        return count >= 1 and now_s - known.since_s >= provider.scale.ready_s

    def pending(self, name: ProviderName) -> bool:
        """Whether another look may recommend more."""
        known = self.memory.get(name)
        return known is not None and bool(known.lately) and known.lately[-1] > known.count

    def look(
        self,
        optima: Optima,
        provider: Provider,
        endpoints: Mapping[ProviderName, int],
        *,
        now_s: float,
    ) -> Work[tuple[SlowDecision, ...]]:
        """Recommend another number of endpoints, once.

        ``optima`` : of its service. ``endpoints`` : how many each provider has.
        """
        count = endpoints[provider.name]
        known = self.memory[provider.name]
        case = _Case(optima, endpoints, provider, count, known.standing)
        best, gain_usd_per_h = yield from case.best()
        known = self.memory[provider.name]
        if known.count != count:  # it has others by now
            return ()
        decision = self._judge(case, known, best, gain_usd_per_h, now_s=now_s)
        return () if decision is None else (decision,)

    def status(self, now_s: float) -> tuple[SlowStatus, ...]:
        """One row per provider that slow ticks have looked at."""
        return tuple(
            replace(row, since_s=now_s - self.memory[name].since_s)
            for name, row in sorted(self.shown.items())
        )

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

    optima: Optima
    endpoints: Mapping[ProviderName, int]
    provider: Provider
    count: int
    standing: int  # the number that is recommended; 0: none

    def best(self) -> Work[tuple[int, float]]:
        """Return the best number and its net gain, dollars per hour.

        Numbers are tried from the present one outwards. Each further endpoint gains less than the
        one before, so where one does not pay, none beyond it is tried; unless calls are too slow:
        then any may be the first that helps enough.
        """
        scale, price = self.provider.scale, self.provider.price.per_endpoint_hour_usd
        assert scale is not None
        counts = counts_to_try(self.count, scale.min, scale.max)
        now = yield from self.optima.now()
        late = bool(np.any(self._too_slow(now)))
        relief, enough = np.full(len(counts), -np.inf), np.zeros(len(counts), dtype=bool)
        relief[counts == self.count] = 0.0
        here = int(np.searchsorted(counts, self.count))
        # What endpoints cost was not said: nothing but an objective asks for more, or for fewer.
        more = range(here + 1, len(counts)) if late or price > 0.0 else ()
        fewer = range(here - 1, -1, -1) if price > 0.0 else ()
        for i in more:
            relief[i], enough[i] = yield from self._tried(now, int(counts[i]))
            if not late and not self._net(counts[i], relief[i]) > 0.0:
                break
        for i in fewer:
            found, enough[i] = yield from self._tried(now, int(counts[i]))
            if not self._net(counts[i], found) > 0.0:
                break
            if not (yield from self._bearable(int(counts[i]))):
                break
            relief[i] = found
        needed = np.isposinf(relief)
        if needed.any():  # the fewest that are enough, else the most that help
            rows = np.flatnonzero(needed & enough)
            return int(counts[rows[0] if len(rows) else needed.nonzero()[0][-1]]), np.inf
        if price <= 0.0:
            return self.count, 0.0
        best, gain = best_count(self.count, counts, relief, price)
        stands = np.flatnonzero(counts == self.standing)
        if len(stands) and (best - self.count) * (self.standing - self.count) > 0:
            kept = self._net(self.standing, relief[stands[0]])
            if gain < KEEP_RATIO * kept:
                return self.standing, kept
        return best, gain

    def _net(self, count: int, relief_usd_per_h: float) -> float:
        """Dollars per hour that so many gain beside their price; 0 if they do not."""
        both = np.array(sorted((self.count, count)))
        relief = np.where(both == self.count, 0.0, relief_usd_per_h)
        return best_count(self.count, both, relief, self.provider.price.per_endpoint_hour_usd)[1]

    def _tried(self, now: Settled, count: int) -> Work[tuple[float, bool]]:
        """Dollars per hour that so many gain, and whether no call is too slow with them."""
        then = yield from self.optima.of(*self._with(count, self.optima.evaluation))
        return self._relief(now, then), not np.any(self._too_slow(then))

    def _with(self, count: int, evaluation: Evaluation) -> tuple[Problem, Evaluation]:
        change = Change(
            self.provider.name, Quantity.ENDPOINTS, float(count), is_factor=False, text=""
        )
        problem = self.optima.problem
        everyone = np.ones(problem.pairs.routes, dtype=bool)
        return apply_changes(problem, evaluation, [change], self.endpoints, everyone)

    def _relief(self, now: Settled, then: Settled) -> float:
        """Dollars per hour; inf where a profile asks for it and nothing else has a price."""
        evaluation = self.optima.evaluation
        faster_s = now.forecast.latency_p95_s - then.forecast.latency_p95_s
        better = faster_s > RELIEF_RATIO * evaluation.slo_s
        priced = ms_per_usd(self.optima.problem, evaluation) > 0.0
        unpriced = ~priced | (self.provider.price.per_endpoint_hour_usd <= 0.0)
        if np.any(self._too_slow(now) & better & unpriced):
            return np.inf
        return self.optima.usd_per_h(now, then)

    def _too_slow(self, settled: Settled) -> Bools:
        """(R,) routes that call, and are slower than their profile allows."""
        evaluation = self.optima.evaluation
        called = evaluation.demand_rps > 0.0
        return called & (settled.forecast.latency_p95_s > evaluation.slo_s)

    def _bearable(self, count: int) -> Work[bool]:
        """Whether with that many one could be lost, at the demand that profiles expect."""
        problem, here = self.optima.problem, self.optima.evaluation
        expected = problem.target.expected_rps * problem.members
        full = replace(here, demand_rps=np.maximum(here.demand_rps, expected))
        left, evaluation = self._with(count - 1, full)
        pairs = problem.pairs
        if not np.all(pairs.any_by_route(evaluation.allowed) | (full.demand_rps <= 0.0)):
            return False
        worst = yield from self.optima.of(left, evaluation)
        rps = pairs.sum_by_provider(full.demand_rps[pairs.route] * worst.shares)
        busy = latency.utilisation_ratio(evaluation.stations, rps)
        if np.any(busy > BUSY_MAX):
            return False
        within = worst.forecast.latency_p95_s <= here.slo_s
        return bool(np.all(within | (full.demand_rps <= 0.0)))


def _because(count: int, best: int, gain_usd_per_h: float) -> str:
    if best == count:
        return "no other number of endpoints gains anything"
    if np.isinf(gain_usd_per_h):
        return f"with {count}, calls are slower than a profile allows"
    return f"{best} endpoints instead of {count} gain {gain_usd_per_h:.3g} $/h beside their price"
