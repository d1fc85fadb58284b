"""Which question a slow tick answers next.

There are three kinds: who on standby of a service enters or leaves, which features of an
application are on, how many endpoints a provider should have. The kind is next on which least work
was spent; one that has nothing to ask saves nothing up. Within a kind it is the question that was
looked at longest ago; one that another look may decide counts as if it had waited
``PENDING_TICKS`` slow ticks more; among equals the dearest congestion is first. What waits grows
older than all others, so each has its turn. Nothing is asked twice within ``slow_tick_s``, nor
within that time after a service that it is about was changed: what that leaves to do has to be
seen first.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from xds_server.core import latency
from xds_server.core.tables import Floats, Ints
from xds_server.engine.part import routes_by_service
from xds_server.engine.switches import ours
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.ids import ApplicationName, ProviderName, ServiceName
from xds_server.model.slow import SlowKind
from xds_server.model.topology import Mesh, Provider

PENDING_TICKS: Final = 20.0
"""Slow ticks that a question is put forward whose next look may decide."""


@dataclass(frozen=True, slots=True)
class Question:
    """What one look answers."""

    kind: SlowKind
    target: str  # a service, an application, a provider
    services: tuple[ServiceName, ...]  # whose routes it is about
    routes: Ints  # (n,) rows of those that it may change
    providers: Ints  # (n,) rows: their congestion is what makes it urgent


@dataclass(frozen=True, slots=True)
class Declared:
    """All that may be asked about a mesh, as one problem lays it out."""

    mesh: Mesh
    problem: Problem
    providers: Mapping[ProviderName, Provider]
    routes: Mapping[ServiceName, Ints]  # (n,) rows
    templates: Mapping[ApplicationName, tuple[str, ...]]  # under which an application calls
    questions: tuple[Question, ...]

    def fits(self, mesh: Mesh, problem: Problem) -> bool:
        """Whether both are still the same."""
        return self.mesh is mesh and self.problem is problem


def declare(mesh: Mesh, problem: Problem) -> Declared:
    """Collect what may be asked; anew when the configuration, endpoints or groups change."""
    providers, routes = mesh.providers, routes_by_service(problem)
    variants: dict[ApplicationName, dict[str, list[int]]] = {}
    for r, key in enumerate(problem.routes):
        templates = variants.setdefault(key.group.application, {})
        templates.setdefault(problem.groups[key.group].template, []).append(r)
    rows: dict[ServiceName, list[int]] = {}
    for j, name in enumerate(problem.providers):
        if name in providers:
            rows.setdefault(providers[name].service, []).append(j)
    questions = (
        *_of_services(mesh, routes, rows),
        *_of_applications(mesh, variants, rows),
        *_of_providers(problem, providers, routes),
    )
    names = {application: tuple(found) for application, found in variants.items()}
    return Declared(mesh, problem, providers, routes, names, questions)


def _of_services(
    mesh: Mesh, routes: Mapping[ServiceName, Ints], rows: Mapping[ServiceName, list[int]]
) -> Iterator[Question]:
    for name, called in routes.items():
        if name in mesh.services and any(p.standby for p in mesh.services[name].providers):
            yield Question(SlowKind.SUBSTITUTE, name, (name,), called, np.array(rows[name]))


def _of_applications(
    mesh: Mesh,
    variants: Mapping[ApplicationName, Mapping[str, list[int]]],
    rows: Mapping[ServiceName, list[int]],
) -> Iterator[Question]:
    for application, templates in variants.items():
        flags = [f for t in templates if t in mesh.templates for f in ours(mesh, t)]
        services = tuple(sorted({s for flag in flags for s in flag.saves if s in rows}))
        if services:
            mine = np.array([r for found in templates.values() for r in found])
            busy = np.array([j for s in services for j in rows[s]])
            yield Question(SlowKind.FLAG, application, services, mine, busy)


def _of_providers(
    problem: Problem,
    providers: Mapping[ProviderName, Provider],
    routes: Mapping[ServiceName, Ints],
) -> Iterator[Question]:
    for j, name in enumerate(problem.providers):
        provider = providers.get(name)
        if provider is not None and provider.scale is not None and provider.service in routes:
            called = routes[provider.service]
            yield Question(SlowKind.SCALE, name, (provider.service,), called, np.array([j]))


@dataclass(slots=True)
class Agenda:
    """Remembers when what was asked; bounded by what the mesh declares."""

    looked_s: dict[tuple[SlowKind, str], float] = field(default_factory=dict)
    changed_s: dict[ServiceName, float] = field(default_factory=dict)
    since_s: float | None = None  # when time began; no question is older
    spent: dict[SlowKind, int] = field(default_factory=lambda: dict.fromkeys(SlowKind, 0))

    def keep(self, mesh: Mesh, questions: Iterable[Question]) -> None:
        """Forget what is not asked any more."""
        asked = {(q.kind, q.target) for q in questions}
        for key in self.looked_s.keys() - asked:
            del self.looked_s[key]
        for name in self.changed_s.keys() - mesh.services.keys():
            del self.changed_s[name]

    def change(self, services: Iterable[ServiceName], now_s: float) -> None:
        """Take note that something was decided about these."""
        self.changed_s.update(dict.fromkeys(services, now_s))

    def due(
        self,
        declared: Declared,
        evaluation: Evaluation,
        ready: Callable[[Question], bool],
        pending: Callable[[Question], bool],
        now_s: float,
    ) -> Iterator[Question]:
        """Yield what is to be asked now, most urgent first; what is yielded counts as looked at.

        Parameters
        ----------
        ready : whether it can be answered
        pending : whether its next look may decide
        """
        every_s = declared.mesh.engine.slow_tick_s
        late = [q for q in declared.questions if self._waited_s(q, now_s) >= every_s]
        if not late:
            return
        rps = _called_rps(declared.problem, evaluation)
        rent = rps * latency.wait_s(evaluation.stations, rps)

        def place(question: Question) -> tuple[float, float]:
            looked_s = self.looked_s.get((question.kind, question.target), -np.inf)
            ahead_s = PENDING_TICKS * every_s if pending(question) else 0.0
            return looked_s - ahead_s, -float(rent[question.providers].sum())

        waiting = {
            kind: iter(sorted((q for q in late if q.kind is kind), key=place)) for kind in SlowKind
        }

        calling = evaluation.measured & (evaluation.demand_rps > 0.0)

        def known(question: Question) -> bool:
            match question.kind:
                case SlowKind.SUBSTITUTE:  # somebody may have nobody left
                    return True
                case SlowKind.FLAG:  # silence is no reason to switch anything
                    return bool(calling[question.routes].any())
                case SlowKind.SCALE:
                    return bool((rps[question.providers] > 0.0).any())

        def asks(question: Question) -> bool:
            late = self._waited_s(question, now_s) >= every_s
            return late and known(question) and ready(question)

        while True:
            for kind in sorted(SlowKind, key=self.spent.__getitem__):
                found = next((q for q in waiting[kind] if asks(q)), None)
                if found is not None:
                    break
                self.spent[kind] = max(self.spent.values())
            else:  # all are answered: the next time begins as the first did
                self.spent = dict.fromkeys(SlowKind, 0)
                return
            self.looked_s[found.kind, found.target] = now_s
            yield found

    def _waited_s(self, question: Question, now_s: float) -> float:
        begun_s = now_s if self.since_s is None else self.since_s
        looked_s = self.looked_s.get((question.kind, question.target), begun_s)
        changed_s = max(self.changed_s.get(name, begun_s) for name in question.services)
        return now_s - max(looked_s, changed_s)


def _called_rps(problem: Problem, evaluation: Evaluation) -> Floats:
    """(J,) requests/s that routes send whose word is fresh."""
    pairs = problem.pairs
    flow = evaluation.demand_rps[pairs.route] * evaluation.shares_now
    return pairs.sum_by_provider(flow * evaluation.measured[pairs.route])
