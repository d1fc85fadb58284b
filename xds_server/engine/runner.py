"""Keeps the loop turning: groups from phases, the problem from groups, a tick from both."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import structlog

from xds_server.behaviour.phases import PhaseState, PhaseTracker
from xds_server.cache.publisher import Publisher
from xds_server.engine.adopt import adopt
from xds_server.engine.deploy import NOTHING
from xds_server.engine.explain import explain
from xds_server.engine.loop import Tick, tick
from xds_server.engine.problem import build_problem
from xds_server.engine.seeding import plant_providers, plant_routes
from xds_server.engine.slow import SlowLoop
from xds_server.engine.state import EngineState, initial_state
from xds_server.engine.types import Group, Problem
from xds_server.errors import XdsServerError
from xds_server.model.decision import Reverted
from xds_server.model.explanation import Explanation
from xds_server.model.history import Seeds
from xds_server.model.ids import GroupKey, Locality, NodeId, ProviderName
from xds_server.model.slow import SlowDecision
from xds_server.model.snapshot import Node
from xds_server.model.telemetry import InstanceSignals
from xds_server.model.template import Template
from xds_server.model.topology import Address, Mesh, Mode
from xds_server.registry.registry import Registry

log = structlog.get_logger()

REVERTS_LOGGED = 20
"""Lines of one tick; ``reverts_total`` and history have them all."""
WINDOW_SLOTS = 2
"""Completed ticks that one evaluation looks at: a report that is late by one still counts."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One tick with what it was made from; what status and metrics are made of."""

    tick: Tick
    signals: tuple[InstanceSignals, ...]
    phases: Mapping[NodeId, PhaseState]
    duration_s: float
    slow: tuple[SlowDecision, ...] = ()  # what a slow tick changed, for the next tick


class Engine:
    """The engine as one object: call ``turn`` once per tick."""

    def __init__(
        self,
        mesh: Mesh,
        endpoints: Mapping[ProviderName, tuple[Address, ...]],
        publisher: Publisher,
        registry: Registry,
        seeds: Seeds = Seeds(),  # noqa: B008 - frozen
    ) -> None:
        """Start from the priors of ``mesh``, or from ``seeds`` where they know better."""
        self._mesh, self._endpoints, self._seeds = mesh, endpoints, seeds
        self._publisher, self._registry = publisher, registry
        self._tracker = PhaseTracker()
        self._groups: dict[GroupKey, Group] = {}
        self.slow = SlowLoop()
        self._switched: Mapping[tuple[str, str], Mapping[str, bool]] = {}
        self._state = initial_state(self._problem())
        plant_providers(self._state, seeds)
        self._last_s: float | None = None
        self.turns = 0
        self.last: Turn | None = None

    @property
    def state(self) -> EngineState:
        """What the engine remembers."""
        return self._state

    def set_mesh(self, mesh: Mesh, endpoints: Mapping[ProviderName, tuple[Address, ...]]) -> None:
        """Take over another configuration or other endpoints; what still exists is kept."""
        stopped = self._mesh.mode is Mode.ENFORCE and mesh.mode is not Mode.ENFORCE
        self._mesh, self._endpoints = mesh, endpoints
        self._groups = {
            key: group
            for key, group in self._groups.items()
            if key.application in mesh.applications and self._has_phase(group)
        }
        self.slow.set_mesh(mesh)
        self._switch()
        problem = self._problem()
        self._state = adopt(self._state, problem)
        if stopped:  # nothing is published any more: sidecars are at their baseline
            self.forget_published()
            self._state.shares = initial_state(problem).shares

    def forget_published(self) -> None:
        """Say that sidecars no longer have what was published last."""
        self._state.weights[:] = 0
        self._state.overlay = NOTHING

    def turn(self, now_s: float, wall_s: float) -> Turn:
        """Run one tick. Raises nothing that a peer can cause."""
        begun = time.perf_counter()
        elapsed_s = self._mesh.engine.tick_s if self._last_s is None else now_s - self._last_s
        self._last_s = now_s
        self._registry.roll()
        signals = tuple(self._registry.signals(now_s))
        phases = self._update_groups(signals, now_s, wall_s)
        done = tick(
            self._state,
            self._registry.window(now_s, WINDOW_SLOTS),
            self._registry.provider_load(now_s),
            self._publisher,
            self._mesh.engine,
            self._mesh.mode,
            now_s=now_s,
            elapsed_s=max(elapsed_s, 1e-3),
        )
        self.turns += 1
        counts = {name: len(found) for name, found in self._endpoints.items()}
        slow = self.slow.run(self._mesh, self._state.problem, done, counts, now_s)
        self.last = Turn(done, signals, phases, time.perf_counter() - begun, slow)
        for reverted in done.reverted[:REVERTS_LOGGED]:
            log.warning("engine.reverted", **_reverted(reverted))
        for decision in slow:
            log.info("engine.slow_decision", **asdict(decision))
        self._switch()
        return self.last

    def explain(self, application: str, service: str) -> Callable[[], tuple[Explanation, ...]]:
        """Return what explains, in any thread, every route of that application and service.

        Raises KeyError if there is none.
        """
        routes = [
            r
            for r in self._state.problem.routes
            if r.group.application == application and r.service == service
        ]
        if not routes or self.last is None:
            raise KeyError(f"{application}/{service}")
        last = self.last.tick
        if len(last.decision.shares) != len(self._state.problem.excluded_because):
            raise KeyError(f"{application}/{service}")  # reloaded, not yet decided anew
        problem, mesh = self._state.problem, self._mesh
        return lambda: tuple(explain(problem, last, r, mesh) for r in routes)

    def _switch(self) -> None:
        """Tell the publisher of features whose state has changed."""
        if (states := self.slow.switches.states) != self._switched:
            self._switched = states
            self._publisher.set_flags(states)

    def _problem(self) -> Problem:
        self._substitutes = self.slow.substitutes.active
        return build_problem(self._mesh, self._endpoints, self._groups.values(), self._substitutes)

    # -- groups ----------------------------------------------------------------------

    def _update_groups(
        self, signals: tuple[InstanceSignals, ...], now_s: float, wall_s: float
    ) -> Mapping[NodeId, PhaseState]:
        nodes = {node_id: c.node for node_id, c in self._registry.nodes.items()}
        instances = [
            (s, template)
            for s in signals
            if (template := self._template(nodes[s.node_id])) is not None
        ]
        phases = self._tracker.update(instances, now_s=now_s, wall_s=wall_s)
        members: dict[GroupKey, set[NodeId]] = {}
        for node_id, state in phases.items():
            members.setdefault(_group_key(nodes[node_id], state), set()).add(node_id)
        groups = {
            key: self._group(key, frozenset(ids), nodes, phases, now_s)
            for key, ids in members.items()
        }
        if groups != self._groups or self.slow.substitutes.active != self._substitutes:
            self._groups = groups
            problem = self._problem()
            before, self._state = self._state.problem, adopt(self._state, problem)
            enforced = self._mesh.mode is Mode.ENFORCE
            ttl_s = self._mesh.engine.weights_ttl_s if enforced else 0.0
            plant_routes(self._state, before, self._seeds, now_s=now_s, ttl_s=ttl_s)
        for key, ids in members.items():
            for node_id in ids:
                self._publisher.set_group(node_id, key)
        return phases

    def _group(
        self,
        key: GroupKey,
        ids: frozenset[NodeId],
        nodes: Mapping[NodeId, Node],
        phases: Mapping[NodeId, PhaseState],
        now_s: float,
    ) -> Group:
        known = self._groups.get(key)
        if known is not None:
            return Group(key, ids, known.template, known.origin_phase, known.since_s)
        first = min(ids)
        template = self._template(nodes[first])
        if template is None:
            raise XdsServerError(f"group {key} has no template")
        return Group(key, ids, template.name, phases[first].previous, now_s)

    def _template(self, node: Node) -> Template | None:
        """Return the template in force; None for what a reload took away."""
        override = str(node.metadata.get("template", ""))
        if node.application not in self._mesh.applications:
            return None
        if override:
            return self._mesh.templates.get(override)
        return self._mesh.applications[node.application].template

    def _has_phase(self, group: Group) -> bool:
        key = group.key
        name = key.template or self._mesh.applications[key.application].template.name
        template = self._mesh.templates.get(name)
        return (
            template is not None
            and name == group.template
            and any(p.name == key.phase for p in template.profiles)
        )


def _reverted(reverted: Reverted) -> dict[str, object]:
    key = reverted.route
    return {
        "application": key.group.application,
        "phase": key.group.phase,
        "locality": str(key.group.locality),
        "service": key.service,
        "because": reverted.because,
        "z": round(reverted.z, 1),
        "p_value": reverted.p_value,
    }


def _group_key(node: Node, state: PhaseState) -> GroupKey:
    where = Locality(node.locality_region, node.locality_zone, node.locality_sub_zone)
    return GroupKey(node.application, state.phase, where, str(node.metadata.get("template", "")))
