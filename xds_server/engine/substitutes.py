"""Who on standby enters a service, and when it leaves again.

A provider on standby enters where its reduced cost C + p - mu is below 0 by a margin: a request
would cost less there, at its first request's price, than one more costs the route at the optimum
without it (linear programming's rule for a column that is not in the basis). It leaves when that is
no longer so at the optimum *without* it, for ``LEAVE_S``.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from xds_server.core.tables import Bools, Floats
from xds_server.engine.optima import Optima, marginal_ms, route_marginal_ms
from xds_server.engine.problem import STANDBY
from xds_server.engine.settle import Settled
from xds_server.engine.types import Evaluation, Problem
from xds_server.engine.work import Work
from xds_server.model.ids import ProviderName, RouteKey, ServiceName
from xds_server.model.slow import SlowDecision, SlowKind, SlowStatus

ENTER_RATIO: Final = 0.10
"""A request has to be cheaper there by this part of mu."""
STAY_RATIO: Final = 0.05
"""Less than this is not worth it any more."""
ENTER_TICKS: Final = 2
"""Slow ticks in a row that have to say so."""
LEAVE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Worth:
    """What a request gains by going there: of the route that gains most, as a part of its mu."""

    ratio: float  # > 0: cheaper there; inf: nobody else may serve it
    because: str


@dataclass(slots=True)
class Substitutes:
    """Memory of who is in, who is about to come and who about to go; bounded by the providers."""

    active: frozenset[ProviderName] = frozenset()
    asked: dict[ProviderName, int] = field(default_factory=dict)  # slow ticks in a row
    idle_since_s: dict[ProviderName, float] = field(default_factory=dict)
    changed_s: dict[ProviderName, float] = field(default_factory=dict)
    shown: dict[ProviderName, SlowStatus] = field(default_factory=dict)

    @property
    def _memories(self) -> tuple[dict[ProviderName, Any], ...]:
        return (self.asked, self.idle_since_s, self.changed_s, self.shown)

    def keep(self, standby: frozenset[ProviderName]) -> None:
        """Forget all but these."""
        self.active &= standby
        for memory in self._memories:
            for name in memory.keys() - standby:
                del memory[name]

    def release(self) -> None:
        """Let nobody be in, and nobody be about to come or go."""
        self.active = frozenset()
        for memory in self._memories:
            memory.clear()

    def rescue(self, problem: Problem, *, enforced: bool, now_s: float) -> tuple[SlowDecision, ...]:
        """Let one enter for each service with a route that nobody may serve, without an optimum."""
        served = problem.pairs.any_by_route(problem.allowed)
        rows = np.flatnonzero(_waiting(problem) & ~served[problem.pairs.route])
        found: dict[ServiceName, SlowDecision] = {}
        for p in sorted(rows.tolist(), key=lambda p: problem.providers[problem.pairs.provider[p]]):
            key = problem.routes[int(problem.pairs.route[p])]
            name = problem.providers[int(problem.pairs.provider[p])]
            if key.service not in found and name not in self.active:
                decision = self._consider(name, _needed(key), enforced=enforced)
                if decision is not None:
                    found[key.service] = decision
                    if enforced:
                        self._apply(decision, now_s)
        return tuple(found.values())

    def look(
        self, optima: Optima, *, enforced: bool, now_s: float
    ) -> Work[tuple[SlowDecision, ...]]:
        """Let at most one provider of a service enter, or one leave.

        ``optima`` : of the service. ``enforced`` False: say what would be done; nobody ever enters.
        """
        problem, evaluation = optima.problem, optima.evaluation
        judged = _judged(problem, evaluation)
        entering = yield from self._entering(optima, judged, enforced=enforced)
        leaving = yield from self._leaving(optima, judged, now_s)
        found = sorted((*entering, *leaving), key=lambda e: (-e[0], e[1].target))[:1]
        if enforced:
            for _, decision in found:
                self._apply(decision, now_s)
        return tuple(decision for _, decision in found)

    def pending(self, name: ProviderName) -> bool:
        """Whether another look may let it enter."""
        return self.asked.get(name, 0) > 0 and name not in self.active

    def status(self, now_s: float) -> tuple[SlowStatus, ...]:
        """One row per provider on standby that slow ticks have looked at."""
        return tuple(
            replace(
                row,
                state="in" if name in self.active else STANDBY,
                since_s=now_s - self.changed_s[name] if name in self.changed_s else 0.0,
            )
            for name, row in sorted(self.shown.items())
        )

    def _apply(self, decision: SlowDecision, now_s: float) -> None:
        name = decision.target
        self.active = self.active | {name} if decision.action == "enter" else self.active - {name}
        self.asked.pop(name, None)
        self.idle_since_s.pop(name, None)
        self.changed_s[name] = now_s
        self._show(name, because=decision.because)

    def _entering(
        self, optima: Optima, judged: Bools, *, enforced: bool
    ) -> Work[list[tuple[float, SlowDecision]]]:
        problem, evaluation = optima.problem, optima.evaluation
        waiting, provider = _waiting(problem), problem.pairs.provider
        names = {problem.providers[j]: j for j in np.unique(provider[waiting])}
        names = {n: j for n, j in names.items() if n not in self.active}
        entering: list[tuple[float, SlowDecision]] = []
        if not names:
            return entering
        found = yield from optima.now()
        for name, j in names.items():
            mine = waiting & (provider == j)
            if _unheard(problem, evaluation, mine, judged):
                continue
            worth = _worth(problem, found, evaluation.allowed, mine, judged)
            decision = self._consider(name, worth, enforced=enforced)
            if decision is not None:
                entering.append((worth.ratio, decision))
        return entering

    def _consider(
        self, name: ProviderName, worth: _Worth, *, enforced: bool
    ) -> SlowDecision | None:
        """Let it enter, if it has been worth it for long enough."""
        ready = worth.ratio > ENTER_RATIO
        self.asked[name] = self.asked.get(name, 0) + 1 if ready else 0
        # Who has nobody left need not wait.
        if not ready or not (self.asked[name] >= ENTER_TICKS or np.isinf(worth.ratio)):
            self._show(name, because=worth.because, pending="enter" if ready else "")
            return None
        self._show(name, because=worth.because, recommended="" if enforced else "enter")
        # Recommended once, not at every slow tick again.
        if not enforced and self.asked[name] != ENTER_TICKS:
            return None
        return _decision(name, "enter", worth.because, enforced=enforced)

    def _leaving(
        self, optima: Optima, judged: Bools, now_s: float
    ) -> Work[list[tuple[float, SlowDecision]]]:
        problem, evaluation = optima.problem, optima.evaluation
        leaving = []
        for j, name in enumerate(problem.providers):
            if name not in self.active:
                continue
            mine = problem.pairs.provider == j
            if _unheard(problem, evaluation, mine & evaluation.allowed, judged):
                continue
            without = evaluation.allowed & ~mine
            found = yield from optima.of(problem, replace(evaluation, allowed=without))
            worth = _worth(problem, found, without, mine & evaluation.allowed, judged)
            if worth.ratio > STAY_RATIO:
                self.idle_since_s.pop(name, None)
                self._show(name, because=worth.because)
                continue
            since_s = self.idle_since_s.setdefault(name, now_s)
            self._show(name, because=worth.because, pending="leave")
            if now_s - since_s >= LEAVE_S:
                leaving.append((worth.ratio, _decision(name, "leave", worth.because)))
        return leaving

    def _show(
        self, name: ProviderName, *, because: str, recommended: str = "", pending: str = ""
    ) -> None:
        kind = SlowKind.SUBSTITUTE.value
        self.shown[name] = SlowStatus(kind, name, "", recommended, pending, because, 0.0)


def _waiting(problem: Problem) -> Bools:
    """(P,) pairs that nothing but standby excludes."""
    return np.array([why == STANDBY for why in problem.excluded_because], dtype=bool)


def _judged(problem: Problem, evaluation: Evaluation) -> Bools:
    """(R,) routes whose word counts: they call, and what they say is fresh; or have nobody."""
    calling = evaluation.measured & (evaluation.demand_rps > 0.0)
    return calling | ~problem.pairs.any_by_route(evaluation.allowed)


def _unheard(problem: Problem, evaluation: Evaluation, mine: Bools, judged: Bools) -> bool:
    """Whether routes that may use a provider's pairs ``mine`` (P,) call, but nothing is heard.

    Without telemetry all stays as it is, as with weights: silence is no reason to come or to go.
    """
    of = np.unique(problem.pairs.route[mine])
    return not judged[of].any() and bool((evaluation.demand_rps[of] > 0.0).any())


def _worth(problem: Problem, found: Settled, allowed: Bools, mine: Bools, judged: Bools) -> _Worth:
    """Compare the price of a first request at ``mine`` (P,) with mu, at an optimum without it."""
    pairs = problem.pairs
    mu = route_marginal_ms(problem, found, allowed)
    there = marginal_ms(problem, found)
    rows = np.flatnonzero(mine & judged[pairs.route])
    if not len(rows):
        return _Worth(-np.inf, "no route that may use it calls at present")
    route = pairs.route[rows]
    ratio: Floats = np.where(
        np.isinf(mu[route]), np.inf, 1.0 - there[rows] / np.maximum(mu[route], 1e-9)
    )
    best = int(np.argmax(ratio))
    key = problem.routes[int(route[best])]
    if np.isinf(ratio[best]):
        return _needed(key)
    who = f"{key.group.application}/{key.service}"
    return _Worth(
        float(ratio[best]),
        f"one more request of {who} costs {there[rows][best]:.3g} ms there, "
        f"{mu[route][best]:.3g} ms without it",
    )


def _needed(key: RouteKey) -> _Worth:
    return _Worth(np.inf, f"nobody else may serve {key.group.application}/{key.service}")


def _decision(
    name: ProviderName, action: str, because: str, *, enforced: bool = True
) -> SlowDecision:
    return SlowDecision(SlowKind.SUBSTITUTE, name, action, because, enforced)
