"""The registry of endpoints as part of the control plane: what it knows, counts and shows."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from xds_server.engine.report import providers_status
from xds_server.engine.runner import Engine
from xds_server.model.ids import ProviderName
from xds_server.model.services import InstanceView, ServiceView
from xds_server.model.topology import Mesh, Provider
from xds_server.observability import Metrics
from xds_server.registry.instance_views import instance_views
from xds_server.registry.leases import Leases
from xds_server.registry.registry import Registry
from xds_server.registry.services import (
    Directory,
    Estimates,
    prices_of,
    service_views,
)


class CallRecorder:
    """The ``Tally`` of the registry's API, as metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def called(self, method: str, result: str) -> None:
        """One call was answered."""
        self._metrics.registry_calls_total.labels(method, result).inc()

    def watchers(self, count: int) -> None:
        """So many watch now."""
        self._metrics.registry_watchers.set(count)


class LeaseRecorder:
    """Leases as metrics; called twice a second."""

    def __init__(self, metrics: Metrics, leases: Leases) -> None:
        self._metrics, self._leases = metrics, leases
        self._recorded: Counter[str] = Counter()

    def record(self) -> None:
        """Bring them up to date."""
        for name in self._leases.providers:
            self._metrics.registry_leases.labels(name).set(len(self._leases.of(name)))
        for reason, count in (self._leases.ended - self._recorded).items():
            self._metrics.registry_leases_ended_total.labels(reason).inc(count)
        self._recorded = Counter(self._leases.ended)


def with_capacities(mesh: Mesh, leases: Leases) -> Mesh:
    """Return the mesh with what endpoints say that they carry, as priors of the engine."""
    said = {name: leases.capacity_rps(name) for name in leases.providers}
    known = {name: rps for name, rps in said.items() if rps is not None}
    if not known:
        return mesh
    services = {
        name: replace(service, providers=tuple(_with(p, known) for p in service.providers))
        for name, service in mesh.services.items()
    }
    return replace(mesh, services=services)


def _with(provider: Provider, known: Mapping[ProviderName, float]) -> Provider:
    rps = known.get(provider.name)
    if rps is None:
        return provider
    return replace(provider, capacity=replace(provider.capacity, rps_per_endpoint=rps))


def show_services(
    directory: Directory, registry: Registry, engine: Engine, turn_age_s: float | None
) -> tuple[ServiceView, ...]:
    """Return every service, with the engine's estimates where nobody knows better."""
    turn, problem = engine.last, engine.state.problem
    fits = turn is not None and len(turn.tick.decision.shares) == len(problem.excluded_because)
    statuses = providers_status(problem, turn, {}, {}) if turn is not None and fits else ()
    estimates = Estimates({s.provider: s for s in statuses}, turn_age_s)
    return service_views(directory, registry, estimates)


def show_instances(
    views: tuple[ServiceView, ...], registry: Registry, engine: Engine, directory: Directory
) -> tuple[InstanceView, ...]:
    """Return every instance; ``views`` say what its calls cost."""
    last = engine.last
    signals = {s.node_id: s for s in last.signals} if last else {}
    phases = {n: (p.phase, p.since_s) for n, p in last.phases.items()} if last else {}
    now_s, valid_s = directory.now_s, directory.telemetry_valid_s
    return instance_views(registry, signals, phases, prices_of(views), now_s, valid_s)
