"""The slow tick: what reweighting cannot do, judged by the same prices.

Every ``engine.slow_tick_s`` all that the mesh declares is looked at, after ordinary ticks and a
slice at each of them: ``SLICE_PAIRS`` bound what one may take, ``engine.agenda`` says what comes
first. It changes no weights: it changes what there is to choose from, and ordinary ticks follow in
their bounded steps.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from xds_server.core.tables import Floats
from xds_server.engine.agenda import Agenda, Declared, Question, declare
from xds_server.engine.loop import Tick
from xds_server.engine.optima import Optima, Worth
from xds_server.engine.part import part_of
from xds_server.engine.scaling import Scaling
from xds_server.engine.substitutes import Substitutes
from xds_server.engine.switches import Switches
from xds_server.engine.types import Evaluation, Problem
from xds_server.engine.work import STEP_PAIRS, Work
from xds_server.model.ids import ProviderName, ServiceName
from xds_server.model.slow import SlowDecision, SlowKind, SlowStatus
from xds_server.model.topology import Mesh, Mode

SLICE_PAIRS: Final = 25_000
"""Work beside one ordinary tick, in pairs that are settled one step further: about 20 ms. A step is
not divided; what it took too much, the next slices have less."""


@dataclass(slots=True)
class SlowLoop:
    """What slow ticks remember; bounded by what the mesh declares."""

    substitutes: Substitutes = field(default_factory=Substitutes)
    switches: Switches = field(default_factory=Switches)
    scaling: Scaling = field(default_factory=Scaling)
    worth: Worth = field(default_factory=Worth)
    agenda: Agenda = field(default_factory=Agenda)
    _due_s: float | None = None  # when exchange rates are taken in again
    _declared: Declared | None = None
    _asked: tuple[Question, Work[tuple[SlowDecision, ...]]] | None = None  # not answered yet
    _rests: dict[ServiceName, Floats] = field(default_factory=dict)  # optima at the last look
    _left: int = 0  # of the slices up to now; below 0: a debt
    _starved: frozenset[object] = frozenset()

    def set_mesh(self, mesh: Mesh) -> None:
        """Forget what is not declared any more, and what only a mesh that enforces may do."""
        standby = frozenset(n for n, p in mesh.providers.items() if p.standby)
        self._asked = None
        self.substitutes.keep(standby)
        self.switches.keep(mesh)
        self.scaling.keep(mesh)
        if mesh.mode is not Mode.ENFORCE:
            self.substitutes.release()
            self.switches.release()

    def run(
        self,
        mesh: Mesh,
        problem: Problem,
        tick: Tick,
        endpoints: Mapping[ProviderName, int],
        now_s: float,
    ) -> tuple[SlowDecision, ...]:
        """Decide what there is time for; in mode observe nothing, ever.

        ``endpoints`` : how many each provider has.
        """
        if self.agenda.since_s is None:
            self.agenda.since_s, self._due_s = now_s, now_s + mesh.engine.slow_tick_s
        urgent = self._newly_starved(problem)
        if mesh.mode is Mode.OBSERVE:
            return ()
        enforced = mesh.mode is Mode.ENFORCE
        rescued: tuple[SlowDecision, ...] = ()
        if urgent:
            rescued = self.substitutes.rescue(problem, enforced=enforced, now_s=now_s)
            known = mesh.providers
            self.agenda.change({known[decision.target].service for decision in rescued}, now_s)
        if self._due_s is not None and now_s >= self._due_s:
            self._due_s = now_s + mesh.engine.slow_tick_s
            self.worth.update(problem, tick.evaluation)
        looks = _Looks(self, self._layout(mesh, problem), tick.evaluation, endpoints, now_s)
        return (*rescued, *self._slice(looks))

    def status(self, now_s: float) -> tuple[SlowStatus, ...]:
        """Everything that slow ticks decide about, as it stands."""
        parts = (self.substitutes, self.switches, self.scaling)
        return tuple(row for part in parts for row in part.status(now_s))

    def start_of(self, declared: Declared, service: ServiceName, shares: Floats) -> Floats:
        """(p,) where a service came to rest at the last look; ``shares`` where nothing is known."""
        return self._rests.get(service, shares) if declared is self._declared else shares

    def remember(self, declared: Declared, optima: Mapping[ServiceName, Optima]) -> None:
        """Begin there at the next look, if rows are still the same."""
        if declared is self._declared:
            self._rests |= {service: found.rest for service, found in optima.items()}

    def _slice(self, looks: "_Looks") -> tuple[SlowDecision, ...]:
        """Go on with what was asked, then with what is due, until this slice is used up."""
        found: tuple[SlowDecision, ...] = ()
        self._left = min(SLICE_PAIRS, self._left + SLICE_PAIRS)
        due: Iterator[Question] = looks.due()
        while self._left > 0:
            if self._asked is None:
                question = next(due, None)
                if question is None:
                    break
                self._asked = question, looks.at(question)
            question, work = self._asked
            try:
                cost = next(work)
                self._left -= cost
                self.agenda.spent[question.kind] += cost
            except StopIteration as end:
                self._asked = None
                answer: tuple[SlowDecision, ...] = end.value
                found += answer
                if any(decision.enforced for decision in answer):
                    self.agenda.change(question.services, looks.now_s)
        return found

    def _layout(self, mesh: Mesh, problem: Problem) -> Declared:
        if self._declared is None or not self._declared.fits(mesh, problem):
            self._declared, self._rests = declare(mesh, problem), {}
            self.agenda.keep(mesh, self._declared.questions)
        return self._declared

    def _newly_starved(self, problem: Problem) -> bool:
        """Whether a route has just lost the last provider that may serve it: that cannot wait."""
        without = ~problem.pairs.any_by_route(problem.allowed)
        starved = frozenset(problem.routes[r] for r in without.nonzero()[0])
        new = bool(starved - self._starved)
        self._starved = starved
        return new


@dataclass(frozen=True, slots=True)
class _Looks:
    """Looks at the mesh as it is at one tick, each with a part of it alone."""

    slow: SlowLoop
    declared: Declared
    evaluation: Evaluation
    endpoints: Mapping[ProviderName, int]
    now_s: float

    def due(self) -> Iterator[Question]:
        """Yield what is to be asked now."""
        slow = self.slow
        return slow.agenda.due(
            self.declared, self.evaluation, self._ready, self._pending, self.now_s
        )

    def at(self, question: Question) -> Work[tuple[SlowDecision, ...]]:
        """Answer it."""
        slow, mesh, now_s = self.slow, self.declared.mesh, self.now_s
        enforced, target = mesh.mode is Mode.ENFORCE, question.target
        known: dict[ServiceName, Optima] = {}
        for service in question.services:
            if service in self.declared.routes:
                known[service] = yield from self._optima(service)
        found: tuple[SlowDecision, ...]
        match question.kind:
            case SlowKind.SUBSTITUTE:
                found = yield from slow.substitutes.look(
                    known[target], enforced=enforced, now_s=now_s
                )
            case SlowKind.FLAG:
                templates = self.declared.templates[target]
                found = yield from slow.switches.look(
                    mesh, target, templates, known, enforced=enforced, now_s=now_s
                )
            case SlowKind.SCALE:
                provider = self.declared.providers[target]
                found = yield from slow.scaling.look(
                    known[provider.service], provider, self.endpoints, now_s=now_s
                )
        slow.remember(self.declared, known)
        return found

    def _optima(self, service: ServiceName) -> Work[Optima]:
        """Cut the service out: that costs about as much as a step."""
        problem, rows = self.declared.problem, self.declared.routes[service]
        part = part_of(problem, self.evaluation, rows)
        yield STEP_PAIRS + len(part.pairs)
        calm = self.slow.worth.of(problem)[rows]
        start = self.slow.start_of(self.declared, service, part.evaluation.shares_now)
        return Optima(part.problem, part.evaluation, self.declared.mesh.engine, calm, start)

    def _ready(self, question: Question) -> bool:
        if question.kind is not SlowKind.SCALE:
            return True
        provider, name = self.declared.providers[question.target], question.target
        return self.slow.scaling.ready(provider, self.endpoints.get(name, 0), self.now_s)

    def _pending(self, question: Question) -> bool:
        match question.kind:
            case SlowKind.SUBSTITUTE:
                pending = self.slow.substitutes.pending
                providers = self.declared.problem.providers
                return any(pending(providers[j]) for j in question.providers)
            case SlowKind.FLAG:
                return self.slow.switches.pending(question.target)
            case SlowKind.SCALE:
                return self.slow.scaling.pending(question.target)
