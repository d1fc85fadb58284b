"""Each connected instance, as its sidecar, its phase and its template show it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xds_server.behaviour.bands import check_bands
from xds_server.behaviour.phases import PhaseState
from xds_server.cache.publisher import Publisher
from xds_server.engine.runner import Turn
from xds_server.model.history import Breach
from xds_server.model.ids import RTDS, SHORT, NodeId
from xds_server.model.snapshot import Node
from xds_server.model.status import BandStatus, NodeStatus, TypeStatus
from xds_server.model.telemetry import InstanceSignals
from xds_server.model.topology import Mesh
from xds_server.observability import Metrics
from xds_server.protocol.status import Standing
from xds_server.registry.registry import Registry
from xds_server.wire.pump import Stream

NAMES_SHOWN = 16
"""Names of resources in one type's status; more are cut off."""
_ORDER = {url: i for i, url in enumerate((RTDS, *SHORT))}  # as Envoy asks; RTDS first


@dataclass(frozen=True, slots=True)
class Instance:
    """One connected node of an application that is configured."""

    node: Node
    phase: PhaseState | None
    signals: InstanceSignals
    bands: tuple[BandStatus, ...]


def see_instances(mesh: Mesh, registry: Registry, turn: Turn | None) -> dict[NodeId, Instance]:
    """Return the instances that the engine's last turn knew and that are connected still."""
    found = {}
    for signals in turn.signals if turn is not None else ():
        connected = registry.nodes.get(signals.node_id)
        application = mesh.applications.get(connected.node.application) if connected else None
        if turn is None or connected is None or application is None:
            continue  # nodes with own resources only are instances of nothing
        override = str(connected.node.metadata.get("template", ""))
        template = mesh.templates.get(override, application.template)
        bands = check_bands(template.behaviour, signals)
        phase = turn.phases.get(signals.node_id)
        found[signals.node_id] = Instance(connected.node, phase, signals, bands)
    return found


def breaches_of(instances: Mapping[NodeId, Instance]) -> Iterator[Breach]:
    """Yield every instance outside of what its template declares."""
    for node_id, instance in instances.items():
        phase = instance.phase.phase if instance.phase else ""
        for band in instance.bands:
            if band.state == "breach" and band.value is not None:
                where = (node_id, instance.node.application, phase)
                yield Breach(*where, band.name, band.service, band.value, band.low, band.high)


def record_instances(metrics: Metrics, mesh: Mesh, instances: Mapping[NodeId, Instance]) -> None:
    """Set the metrics of instances; labels are names of mesh.yaml alone."""
    ages = [i.signals.telemetry_age_s for i in instances.values() if not i.node.is_grpc]
    metrics.telemetry_age_seconds.set(max(ages, default=0.0))
    nodes = Counter(dict.fromkeys(mesh.applications, 0))
    phases = Counter(
        {
            (name, profile.name): 0
            for name, application in mesh.applications.items()
            for profile in application.template.profiles
        }
    )
    breaches: Counter[tuple[str, str]] = Counter()
    for instance in instances.values():
        application = instance.node.application
        nodes[application] += 1
        if instance.phase is not None:
            phases[application, instance.phase.phase] += 1
        for band in instance.bands:
            breaches[application, band.name] += band.state == "breach"
    for application, count in nodes.items():
        metrics.nodes.labels(application).set(count)
    for (application, phase), count in phases.items():
        metrics.instances.labels(application, phase).set(count)
    for key, count in breaches.items():
        metrics.behaviour_breaches.labels(*key).set(count)


def node_status(
    stream: Stream, node: Node, instance: Instance | None, publisher: Publisher, now_s: float
) -> NodeStatus:
    """Show one stream of a node, and the instance that the node is, if it is one."""
    signals = instance.signals if instance is not None else None
    phase = instance.phase if instance is not None else None
    via = publisher.weights_via(node.node_id)
    levels = (node.locality_region, node.locality_zone, node.locality_sub_zone)
    return NodeStatus(
        node_id=node.node_id,
        application=node.application,
        locality="/".join(level for level in levels if level) or "-",
        phase=phase.phase if phase else "",
        phase_s=now_s - phase.since_s if phase else 0.0,
        age_s=now_s - stream.opened_at_s,
        protocol=stream.protocol,
        weights_via=via.value if via else "none",
        telemetry_age_s=signals.telemetry_age_s if signals else None,
        rps=signals.rps if signals else 0.0,
        error_ratio=signals.error_ratio if signals else 0.0,
        latency_p95_ms=1e3 * signals.latency_p95_s if signals else None,
        types=_types(stream),
        behaviour=instance.bands if instance is not None else (),
        waiting_for=tuple(sorted(publisher.waits_for(node.node_id))[:NAMES_SHOWN]),
    )


def _types(stream: Stream) -> tuple[TypeStatus, ...]:
    refused: dict[str, list[str]] = {}
    errors: dict[str, str] = {}
    for r in stream.resources():
        if r.state is Standing.REFUSED:
            refused.setdefault(r.type_url, []).append(r.name)
            errors[r.type_url] = r.error  # it may be from an earlier stream
    return tuple(
        TypeStatus(
            SHORT[url],
            p.version_sent,
            p.version_acked,
            p.nacks,
            p.last_nack or errors.get(url, ""),
            p.unanswered_s,
            p.silent,
            p.lacks[:NAMES_SHOWN],
            tuple(refused.get(url, ())[:NAMES_SHOWN]),
        )
        for url, p in sorted(stream.progress().items(), key=lambda item: _ORDER[item[0]])
    )
