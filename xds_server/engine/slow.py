"""The slow tick: what reweighting cannot do, judged by the same prices.

Every ``engine.slow_tick_s``, after an ordinary tick. It changes no weights: it changes what there
is to choose from, and ordinary ticks follow in their bounded steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from xds_server.engine.loop import Tick
from xds_server.engine.optima import Optima, Worth
from xds_server.engine.scaling import Scaling
from xds_server.engine.substitutes import Substitutes
from xds_server.engine.switches import Switches
from xds_server.engine.types import Problem
from xds_server.model.ids import ProviderName, ServiceName
from xds_server.model.slow import SlowDecision, SlowStatus
from xds_server.model.topology import Mesh, Mode


@dataclass(slots=True)
class SlowLoop:
    """What slow ticks remember; bounded by what the mesh declares."""

    substitutes: Substitutes = field(default_factory=Substitutes)
    switches: Switches = field(default_factory=Switches)
    scaling: Scaling = field(default_factory=Scaling)
    worth: Worth = field(default_factory=Worth)
    _due_s: float | None = None
    _first: int = 0  # the kind that begins
    _starved: frozenset[object] = frozenset()

    def set_mesh(self, mesh: Mesh) -> None:
        """Forget what is not declared any more, and what only a mesh that enforces may do."""
        standby = frozenset(n for n, p in mesh.providers.items() if p.standby)
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
        """Decide, if it is time; in mode observe never. ``endpoints``: how many each has."""
        if self._due_s is None:
            self._due_s = now_s + mesh.engine.slow_tick_s
        urgent = self._newly_starved(problem)
        if mesh.mode is Mode.OBSERVE or not (now_s >= self._due_s or urgent):
            return ()
        if urgent:
            self._first = 0
        self._due_s = now_s + mesh.engine.slow_tick_s
        enforced = mesh.mode is Mode.ENFORCE
        optima, evaluation = Optima(mesh.engine), tick.evaluation
        self.worth.update(problem, evaluation)
        kinds: tuple[Callable[[], tuple[SlowDecision, ...]], ...] = (
            lambda: self.substitutes.decide(
                problem, evaluation, optima, _service_of(mesh), enforced=enforced, now_s=now_s
            ),
            lambda: self.switches.decide(
                mesh, problem, evaluation, optima, self.worth, enforced=enforced, now_s=now_s
            ),
            lambda: self.scaling.decide(
                mesh, problem, evaluation, endpoints, optima, self.worth, now_s=now_s
            ),
        )
        return self.in_turn(kinds, optima)

    def in_turn(
        self, kinds: Sequence[Callable[[], tuple[SlowDecision, ...]]], optima: Optima
    ) -> tuple[SlowDecision, ...]:
        """Let kinds decide, until one has changed the mesh or the time is over.

        What just entered relieves the rest: what that leaves to do is seen at the next slow tick.
        Where there is not time for all, the next slow tick begins with a kind that had to wait.
        """
        begin, self._first = self._first, 0
        found: tuple[SlowDecision, ...] = ()
        for step in range(len(kinds)):
            kind = (begin + step) % len(kinds)
            found += kinds[kind]()
            if optima.over:
                self._first = kind if step else (kind + 1) % len(kinds)
                break
            if any(decision.enforced for decision in found):
                break
        return found

    def status(self, now_s: float) -> tuple[SlowStatus, ...]:
        """Everything that slow ticks decide about, as it stands."""
        parts = (self.substitutes, self.switches, self.scaling)
        return tuple(row for part in parts for row in part.status(now_s))

    def _newly_starved(self, problem: Problem) -> bool:
        """Whether a route has just lost the last provider that may serve it: that cannot wait."""
        without = ~problem.pairs.any_by_route(problem.allowed)
        starved = frozenset(problem.routes[r] for r in without.nonzero()[0])
        new = bool(starved - self._starved)
        self._starved = starved
        return new


def _service_of(mesh: Mesh) -> Callable[[ProviderName], ServiceName]:
    known = mesh.providers
    return lambda name: known[name].service if name in known else ""
