"""The control plane's parts, joined; and what the admin API may see of them."""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from xds_server.app.endpoints import Endpoints
from xds_server.app.instances import (
    Instance,
    breaches_of,
    node_status,
    record_instances,
    see_instances,
)
from xds_server.app.prices import Prices, with_prices
from xds_server.app.registered import (
    CallRecorder,
    LeaseRecorder,
    show_instances,
    show_services,
    with_capacities,
)
from xds_server.app.telemetry import TelemetryServices
from xds_server.app.usage import Meters
from xds_server.app.what_if import ask_engine, ask_history
from xds_server.cache.nodes import NodeHandle
from xds_server.cache.publisher import Publisher
from xds_server.config import inert_keys
from xds_server.engine.record import Records
from xds_server.engine.report import (
    bottlenecks_status,
    providers_status,
    record_turn,
    routes_status,
)
from xds_server.engine.runner import Engine, Turn
from xds_server.errors import ConfigError, Problem
from xds_server.history.writer import History
from xds_server.model.decision_replay import DecisionReplay
from xds_server.model.explanation import Explanation
from xds_server.model.history import Breach
from xds_server.model.ids import NodeId, ProviderName, ServiceName
from xds_server.model.services import InstanceView, ServiceView
from xds_server.model.snapshot import Node
from xds_server.model.status import Status
from xds_server.model.topology import Mesh
from xds_server.model.what_if import WhatIf
from xds_server.observability import Metrics
from xds_server.ports import Clock
from xds_server.registry.announcements import Announcements
from xds_server.registry.leases import ADAPTER, Leases
from xds_server.registry.registry import Registry
from xds_server.registry.services import Directory, load_valid_s, services_of
from xds_server.registry.tariffs import Tariffs
from xds_server.resources.mesh import MeshResources
from xds_server.wire.ads import DiscoveryServices
from xds_server.wire.client_status import ClientStatusService
from xds_server.wire.hold import Hold
from xds_server.wire.record import Recorder
from xds_server.wire.registry_service import RegistryService
from xds_server.wire.tape.recorder import TapeRecorder
from xds_server.wire.well_known import Handler, Health, reflecting

log = structlog.get_logger()

STALLED_TICKS = 5
"""Ticks without one after which the engine counts as stalled, and the plane as not ready."""
RECONNECT_S = 2.0
"""How long a node without a stream is still the same one, with its weights, phase and windows:
connections end by age, and Envoy is back within a second. How fast streams are let in bounds
how many such nodes there are."""


class ControlPlane:
    """All parts of one process; the ``View`` of the admin API."""

    def __init__(
        self,
        path: Path,
        mesh: Mesh,
        clock: Clock,
        *,
        record: Path | None = None,
        record_max_bytes: int = 0,
    ) -> None:
        """Join the parts; ``record`` is where streams are recorded. Raises AdapterError."""
        self._path, self._clock = path, clock
        self.mesh = mesh
        self.metrics = Metrics()
        self.metrics.config_last_reload_success.set(1)
        self._build_sources()
        self._build_engine()
        self._build_services(record, record_max_bytes)
        self.serving = False
        self.config_error = ""
        self._started_s = clock.now_s()
        self._turned_s: float | None = None
        self._refused_recorded: Counter[str] = Counter()
        self._leaving: deque[tuple[float, NodeHandle]] = deque()  # when to let go, and of whom

    def _build_sources(self) -> None:
        """What others say: where endpoints are, what they cost, what was measured of them."""
        mesh, clock, folder = self.mesh, self._clock, self._path.parent
        self.leases = Leases()
        self.leases.set_providers(mesh.providers)
        self.announcements = Announcements(clock, self.leases)
        own = {ADAPTER: self.announcements.discover}
        self.endpoints = Endpoints(clock, self.endpoints_changed, own, folder)
        self.tariffs = Tariffs()
        self.prices = Prices(clock, folder, self.tariffs, self._set_problem)
        self.registry = Registry(
            _services(mesh),
            slot_s=mesh.engine.tick_s,
            load_valid_s=load_valid_s(mesh),
            leases=self.leases,
            tariffs=self.tariffs,
        )
        self.meters = Meters(clock, folder, lambda: self.endpoints.current, self.registry.usages)

    def _build_engine(self) -> None:
        """Who decides and publishes, and what is kept of it."""
        mesh = self.mesh
        self.publisher = Publisher(mesh, MeshResources(mesh, {}))
        self.history = History(mesh.history, self._path.parent, self.metrics, self._clock)
        self._records = Records()
        self.engine = Engine(mesh, {}, self.publisher, self.registry, self.history.seeds())

    def _build_services(self, record: Path | None, record_max_bytes: int) -> None:
        """What the xDS port serves."""
        mesh, clock, recorder = self.mesh, self._clock, Recorder(self.metrics)
        self.tape: TapeRecorder | None = None
        if record is not None:
            self.tape = TapeRecorder(record, self.metrics, clock, max_bytes=record_max_bytes)
        self.ads = DiscoveryServices(
            self,
            recorder,
            clock,
            limits=mesh.server.limits,
            bind_node_id=mesh.server.xds_tls is not None and mesh.server.xds_tls.bind_node_id,
            cluster_drain_s=lambda: self.mesh.engine.cluster_drain_s,
            tape=self.tape,
        )
        self.hold = Hold(self.ads.handler(), mesh.server.limits.streams_max)
        self.telemetry = TelemetryServices(
            self.registry,
            recorder,
            clock,
            self.ads.speakers,
            lambda: self.mesh.telemetry,
            self._path.parent / mesh.history.path if mesh.history and self.history.up else None,
        )
        self.client_status = ClientStatusService(lambda: self.ads.streams)
        self.registry_service = RegistryService(
            self.announcements, self.directory, CallRecorder(self.metrics)
        )
        self._lease_recorder = LeaseRecorder(self.metrics, self.leases)
        self.health = Health()

    def handlers(self) -> tuple[Handler, ...]:
        """Return everything that the xDS port serves."""
        parts = (self.client_status, self.registry_service, self.health)
        rest = (part.handler() for part in parts)
        return (self.hold, *self.telemetry.handlers(), *rest, reflecting())

    async def set_serving(self, serving: bool) -> None:
        """Say so to who asks for readiness or health; the first time, let streams in."""
        self.serving = serving
        if serving:
            self.hold.open()
        await self.health.set_serving(serving)

    # -- Source of the ADS streams ---------------------------------------------------

    def connect(self, node: Node) -> NodeHandle:
        """Register a stream: its node gets a snapshot, and counts as an instance."""
        handle = self.publisher.connect(node)
        self.registry.node_connected(node, self._clock.now_s())
        log.info("xds.node_connected", node_id=node.node_id, application=node.application)
        return handle

    def disconnect(self, handle: NodeHandle) -> None:
        """Take back one ``connect``, when the node has had the time to come back."""
        self._leaving.append((self._clock.now_s() + RECONNECT_S, handle))
        log.info("xds.node_disconnected", node_id=handle.node.node_id)

    def _let_go(self, now_s: float) -> None:
        while self._leaving and self._leaving[0][0] <= now_s:
            _, handle = self._leaving.popleft()
            self.publisher.disconnect(handle)
            self.registry.node_disconnected(handle.node.node_id)

    def uses_runtime(self, handle: NodeHandle) -> None:
        """Say that the stream subscribes to RTDS."""
        self.publisher.uses_runtime(handle)

    # -- changes ---------------------------------------------------------------------

    def reload(self, mesh: Mesh) -> None:
        """Take over another configuration.

        Raises ConfigError for a change that needs a restart; then nothing is changed.
        """
        if mesh.server != self.mesh.server:
            problem = Problem(
                str(self._path),
                0,
                "server",
                "cannot change while serving",
                "undo the change or restart",
            )
            raise ConfigError((problem,))
        for gone in self.mesh.providers.keys() - mesh.providers.keys():
            self.metrics.forget_provider(gone)
        self.mesh = mesh
        self.history.configure(mesh.history)
        self.registry.set_providers(
            _services(mesh), slot_s=mesh.engine.tick_s, load_valid_s=load_valid_s(mesh)
        )
        self.announcements.set_mesh(mesh)
        self.endpoints.set_mesh(mesh)
        self.prices.set_mesh(mesh)
        self.meters.set_mesh(mesh)
        self.endpoints_changed()

    def endpoints_changed(self) -> None:
        """Bring resources and problem up to date with what is configured and found."""
        found = self.endpoints.current
        resources = MeshResources(self.mesh, found)
        self.publisher.set_mesh(self.mesh, resources, self._clock.now_s())
        self._set_problem()
        self.announcements.wake()

    def _set_problem(self) -> None:
        """Tell the engine what there is, with what is said of it beside the configuration."""
        mesh = with_prices(with_capacities(self.mesh, self.leases), self.tariffs)
        self.engine.set_mesh(mesh, self.endpoints.current)

    # -- time ------------------------------------------------------------------------

    def turn(self) -> None:
        """Run one tick and record it."""
        now_s = self._clock.now_s()
        self._let_go(now_s)
        if self.publisher.expire(now_s):
            log.error("engine.weights_expired", ttl_s=self.mesh.engine.weights_ttl_s)
            self.engine.forget_published()
        for node_id in self.publisher.waiting:
            age_s = self.registry.telemetry_age_s(node_id, now_s)
            self.publisher.see(node_id, self.registry.hosts(node_id), age_s, now_s)
        turn = self.engine.turn(now_s, self._clock.wall_s())
        span_s = self.mesh.engine.tick_s if self._turned_s is None else now_s - self._turned_s
        self._turned_s = now_s
        record_turn(self.metrics, self.engine.state.problem, turn)
        instances = see_instances(self.mesh, self.registry, turn)
        self._record_nodes(instances)
        if self.history.up:
            self._put_history(turn, span_s, tuple(breaches_of(instances)))
        else:
            self.history.missed()
        if turn.duration_s > self.mesh.engine.tick_s:
            self.metrics.tick_overruns_total.inc()

    def finish(self) -> None:
        """Count what came after the last tick, and leave the counters to the next process."""
        try:
            self.turn()
        except Exception:  # a bug of ours; it is over anyway
            log.exception("engine.tick_failed")
        self.telemetry.save()

    def expire(self) -> None:
        """Withdraw weights that a stuck engine no longer renews; let go of nodes that left."""
        self._let_go(self._clock.now_s())
        self.announcements.expire()
        self._lease_recorder.record()
        if self.publisher.expire(self._clock.now_s()):
            log.error("engine.weights_expired", ttl_s=self.mesh.engine.weights_ttl_s)
            self.engine.forget_published()

    def _put_history(self, turn: Turn, span_s: float, breaches: tuple[Breach, ...]) -> None:
        record = self._records.of(
            self.mesh,
            self.engine.state.problem,
            turn.tick,
            self.registry.newest(),
            at_s=self._clock.wall_s(),
            span_s=span_s,
            breaches=breaches,
        )
        self.history.put(record)

    def _record_nodes(self, instances: Mapping[NodeId, Instance]) -> None:
        metrics = self.metrics
        metrics.registry_pairs.set(self.registry.pairs)
        for reason, count in (self.registry.refused - self._refused_recorded).items():
            metrics.telemetry_refused_total.labels("registry", reason).inc(count)
        self._refused_recorded = Counter(self.registry.refused)
        record_instances(metrics, self.mesh, instances)
        silent = {s.node.node_id for s in self.ads.streams if s.node and s.silent()}
        metrics.silent_nodes.set(len(silent))

    # -- View ------------------------------------------------------------------------

    def ready(self) -> tuple[bool, Mapping[str, str]]:
        """Return whether Envoys can be served, and why not."""
        age_s = None if self._turned_s is None else self._clock.now_s() - self._turned_s
        ticking = age_s is not None and age_s < STALLED_TICKS * self.mesh.engine.tick_s
        parts = {
            "xds": "serving" if self.serving else "not serving",
            "engine": "ticking" if ticking else "stalled",
            "config": "current" if not self.config_error else "newest change refused",
        }
        return self.serving and ticking, parts

    def status(self) -> Status:
        """Return the state of everything, now."""
        now_s, last = self._clock.now_s(), self.engine.last
        problem = self.engine.state.problem
        fits = last is not None and len(last.tick.decision.shares) == len(problem.excluded_because)
        turn = last if fits else None
        instances = see_instances(self.mesh, self.registry, last)
        found = self.endpoints.current
        return Status(
            mesh=self.mesh.name,
            mode=self.mesh.mode.value,
            uptime_s=now_s - self._started_s,
            ticks=self.engine.turns,
            last_tick_age_s=None if self._turned_s is None else now_s - self._turned_s,
            last_tick_ms=None if last is None else 1e3 * last.duration_s,
            config_path=str(self._path),
            config_error=self.config_error,
            inert_keys=inert_keys(self.mesh),
            nodes=tuple(
                node_status(s, s.node, instances.get(s.node.node_id), self.publisher, now_s)
                for s in self.ads.streams
                if s.node is not None
            ),
            routes=routes_status(problem, turn) if turn else (),
            providers=providers_status(problem, turn, _services(self.mesh), found) if turn else (),
            bottlenecks=bottlenecks_status(turn) if turn else (),
            slow=self.engine.slow.status(now_s),
        )

    def directory(self) -> Directory:
        """Return where endpoints are, now."""
        found = self.endpoints.current
        return Directory(self.mesh, found, self.leases, self._clock.now_s(), self.tariffs)

    def services(self, name: str = "") -> tuple[ServiceView, ...]:
        """Return every service, or the one of that name. Raises KeyError."""
        age_s = None if self._turned_s is None else self._clock.now_s() - self._turned_s
        views = show_services(self.directory(), self.registry, self.engine, age_s)
        return services_of(views, name) if name else views

    def instances(self) -> tuple[InstanceView, ...]:
        """Return every connected instance, by node id."""
        return show_instances(self.services(), self.registry, self.engine, self.directory())

    def explain(self, application: str, service: str) -> Callable[[], tuple[Explanation, ...]]:
        """Return what explains, in any thread, each route in order. Raises KeyError."""
        return self.engine.explain(application, service)

    def what_if(
        self, application: str, service: str, changes: Sequence[str]
    ) -> Callable[[], WhatIf]:
        """Return what answers, in any thread, from the engine as it is now."""
        counts = {name: len(found) for name, found in self.endpoints.current.items()}
        return ask_engine(self.engine, self.mesh, counts, application, service, changes)

    def replay_decisions(
        self, profile: str, application: str, since_s: float, resolution: str
    ) -> Callable[[], DecisionReplay]:
        """Return what answers, in any thread, from history."""
        return ask_history(self.history, self.mesh, profile, application, since_s, resolution)


def _services(mesh: Mesh) -> dict[ProviderName, ServiceName]:
    return {p.name: p.service for p in mesh.providers.values()}
