"""Who should have what: composes each node's snapshot, and wakes the streams it changes.

Snapshots are made of shared parts: clusters, endpoints and baseline routes per application,
listeners per set of addresses, weights per group. Weights are the only part that a tick
changes; they are encoded for all groups of an application at once.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import structlog

from xds_server.errors import RemoteProtocolError, UnknownApplicationError
from xds_server.model.ids import (
    CDS,
    EDS,
    LDS,
    RDS,
    RTDS,
    GroupKey,
    NodeId,
    ProviderName,
    ServiceName,
)
from xds_server.model.snapshot import Node, Overlay, Resource, Snapshot, TypeSnapshot
from xds_server.model.topology import Address, Mesh, Mode, WeightsVia
from xds_server.protocol.quarantine import Quarantine
from xds_server.resources.common import parse_address
from xds_server.resources.extra import Extras
from xds_server.resources.mesh import ApplicationResources, MeshResources, listener_name
from xds_server.resources.runtime import LAYER
from xds_server.resources.versions import make_resource, type_snapshot
from xds_server.resources.weights import validate_weights

log = structlog.get_logger()

HEARTBEATS_PER_TTL = 3
_NO_OVERLAY = Overlay({})


class NodeHandle:
    """One stream of a node.

    What a stream says of itself (where it listens, that it has a runtime layer) counts for
    that stream alone: two Envoys that share an id by mistake do not move each other's
    listeners. Its group is that of the node.
    """

    def __init__(self, node: Node, snapshot: Snapshot, group: GroupKey | None) -> None:
        self.node = node
        self.group = group
        self.runtime = False
        self.heartbeat_seq = 0
        self.quarantine = Quarantine()
        self._snapshot = snapshot
        self._wakeups: set[asyncio.Event] = set()

    def snapshot(self) -> Snapshot:
        """Return what the node should have now."""
        return self._snapshot

    def subscribe_wakeup(self, event: asyncio.Event) -> None:
        """Set ``event`` whenever the snapshot or ``heartbeat_seq`` changes."""
        self._wakeups.add(event)

    def unsubscribe_wakeup(self, event: asyncio.Event) -> None:
        """Stop that."""
        self._wakeups.discard(event)

    def show(self, snapshot: Snapshot) -> None:
        """Replace the snapshot; wakes streams if anything in it differs."""
        before, now = self._snapshot.types, snapshot.types
        self._snapshot = snapshot
        if any(before.get(url) != now.get(url) for url in before.keys() | now.keys()):
            self.wake()

    def wake(self) -> None:
        """Make this node's streams look."""
        for event in self._wakeups:
            event.set()


@dataclass(frozen=True, slots=True)
class _Encoded:
    """One group's weights in both forms."""

    runtime: TypeSnapshot
    routes: TypeSnapshot


@dataclass(slots=True)
class _Weights:
    """What is published, as asked for and as encoded."""

    overlay: Overlay = _NO_OVERLAY
    encoded: dict[GroupKey, _Encoded] = field(default_factory=dict)
    epoch: int = 0
    renewed_at_s: float | None = None
    heartbeat_at_s: float = float("-inf")


class Publisher:
    """The source of every stream's snapshot."""

    def __init__(self, mesh: Mesh, resources: MeshResources) -> None:
        self._mesh, self._resources = mesh, resources
        self._extras = Extras(mesh.resources)
        self._nodes: dict[NodeId, list[NodeHandle]] = {}
        self._weights = _Weights()

    # -- nodes -----------------------------------------------------------------------

    @property
    def nodes(self) -> Mapping[NodeId, NodeHandle]:
        """Every node with an open stream, by its newest."""
        return {node_id: handles[-1] for node_id, handles in self._nodes.items()}

    @property
    def _handles(self) -> Iterable[NodeHandle]:
        return (handle for handles in self._nodes.values() for handle in handles)

    def connect(self, node: Node) -> NodeHandle:
        """Register one more stream of a node.

        Raises UnknownApplicationError, or RemoteProtocolError for unusable metadata.
        """
        others = self._nodes.get(node.node_id, [])
        group = others[-1].group if others else None
        handle = NodeHandle(node, self._compose(node, group, runtime=False), group)
        self._nodes.setdefault(node.node_id, []).append(handle)
        return handle

    def disconnect(self, handle: NodeHandle) -> None:
        """Take back one ``connect``."""
        node_id = handle.node.node_id
        self._nodes[node_id].remove(handle)
        if not self._nodes[node_id]:
            del self._nodes[node_id]

    def uses_runtime(self, handle: NodeHandle) -> None:
        """Say that the stream subscribes to RTDS: its weights come that way, and expire."""
        if not handle.runtime:
            handle.runtime = True
            self._refresh((handle,))

    def set_group(self, node_id: NodeId, group: GroupKey) -> None:
        """Say which weights a node has. Unknown nodes are ignored: they have just left."""
        for handle in self._nodes.get(node_id, ()):
            if handle.group != group:
                handle.group = group
                self._refresh((handle,))

    def weights_via(self, node_id: NodeId) -> WeightsVia | None:
        """Say how a node gets the engine's weights now; None while it has the baseline."""
        handle = self._nodes[node_id][-1]
        if handle.group not in self._weights.encoded:
            return None
        return WeightsVia.RTDS if self._by_runtime(handle.runtime) else WeightsVia.RDS

    # -- what they get ---------------------------------------------------------------

    def set_mesh(self, mesh: Mesh, resources: MeshResources) -> None:
        """Take over another configuration, or other endpoints; weights stay in force."""
        if mesh.resources != self._mesh.resources:
            self._extras = Extras(mesh.resources)
        self._mesh, self._resources = mesh, resources
        if mesh.mode is not Mode.ENFORCE:
            self._weights.overlay = _NO_OVERLAY
        self._encode(self._weights.overlay)
        self._refresh(self._handles)

    def publish(self, overlay: Overlay, now_s: float) -> None:
        """Replace all weights. Raises InvalidWeightsError, and then changes nothing."""
        self._encode(overlay)
        self._weights.overlay = overlay
        self._weights.renewed_at_s = now_s
        self._refresh(self._handles)

    def renew(self, now_s: float) -> None:
        """The engine is alive: let heartbeats go out, a few per TTL."""
        state = self._weights
        state.renewed_at_s = now_s
        if state.encoded and now_s - state.heartbeat_at_s >= (
            self._mesh.engine.weights_ttl_s / HEARTBEATS_PER_TTL
        ):
            state.heartbeat_at_s = now_s
            for handle in self._handles:
                handle.heartbeat_seq += 1
                handle.wake()

    def expire(self, now_s: float) -> bool:
        """Withdraw weights that were not renewed for their TTL, as Envoy does by itself."""
        renewed = self._weights.renewed_at_s
        if renewed is None or now_s - renewed < self._mesh.engine.weights_ttl_s:
            return False
        self.withdraw()
        return True

    def withdraw(self) -> None:
        """Put every node back to its baseline."""
        epoch = self._weights.epoch + 1  # what comes next is new, also to who had it before
        self._weights = _Weights(epoch=epoch)
        self._refresh(self._handles)

    def weights_asked(self, group: GroupKey) -> Mapping[ServiceName, Mapping[ProviderName, int]]:
        """Return the weights that a group has been given; empty at the baseline."""
        return self._weights.overlay.weights.get(group, {})

    # -- composition -----------------------------------------------------------------

    def _refresh(self, handles: Iterable[NodeHandle]) -> None:
        for handle in handles:
            try:
                handle.show(self._compose(handle.node, handle.group, runtime=handle.runtime))
            except UnknownApplicationError as error:
                # Its application left the configuration: it keeps what it has.
                log.warning("xds.node_orphaned", node_id=handle.node.node_id, reason=str(error))

    def _compose(self, node: Node, group: GroupKey | None, *, runtime: bool) -> Snapshot:
        override = str(node.metadata.get("template", ""))
        template = self._resources.template_of(node.application, override)
        parts = self._resources.of(node.application, template)
        encoded = self._weights.encoded.get(group) if group else None
        by_runtime = self._by_runtime(runtime)
        baseline_runtime = type_snapshot((parts.runtime.baseline,))
        generated = {
            CDS: parts.clusters,
            EDS: parts.endpoints,
            LDS: self._listeners(node, parts),
            RDS: encoded.routes if encoded and not by_runtime else parts.baseline_routes,
            RTDS: encoded.runtime if encoded and by_runtime else baseline_runtime,
        }
        return Snapshot(self._extras.add_to(generated, node))

    def _by_runtime(self, subscribed: bool) -> bool:
        via = self._mesh.engine.weights_via
        return via is WeightsVia.RTDS or (via is WeightsVia.AUTO and subscribed)

    def _listeners(self, node: Node, parts: ApplicationResources) -> TypeSnapshot:
        override = node.metadata.get("listeners", {})
        if not isinstance(override, Mapping):
            raise RemoteProtocolError("node.metadata.listeners must map services to addresses")
        resources = []
        for service, default in parts.listeners.items():
            address: Address = default
            if service in override:
                try:
                    address = parse_address(str(override[service]))
                except ValueError as error:
                    message = f"node.metadata.listeners.{service}: {error}"
                    raise RemoteProtocolError(message) from None
            name = listener_name(node.application, service)
            resources.append(self._resources.listener(name, address))
        return type_snapshot(resources)

    def _encode(self, overlay: Overlay) -> None:
        """Encode the weights of all groups; unchanged ones keep their objects."""
        by_shape: dict[tuple[str, str], list[GroupKey]] = {}
        for group in overlay.weights:
            if group.application in self._mesh.applications:
                template = self._resources.template_of(group.application, group.template)
                by_shape.setdefault((group.application, template), []).append(group)
        encoded: dict[GroupKey, _Encoded] = {}
        for (application, template), groups in by_shape.items():
            parts = self._resources.of(application, template)
            tables = [_table(parts, group, overlay.weights[group]) for group in groups]
            runtimes = self._runtime(parts, groups, tables)
            routes = _routes(parts, tables)
            for group, runtime, per_group in zip(groups, runtimes, routes, strict=True):
                encoded[group] = _Encoded(type_snapshot((runtime,)), type_snapshot(per_group))
        for group, old in self._weights.encoded.items():
            if encoded.get(group) == old:
                encoded[group] = old
        self._weights.encoded = encoded

    def _runtime(
        self,
        parts: ApplicationResources,
        groups: list[GroupKey],
        tables: list[dict[ServiceName, dict[ProviderName, int]]],
    ) -> list[Resource]:
        keys = parts.runtime.keys
        numbers = np.array([[t[s][p] for s, p in keys] for t in tables], dtype=np.float64)
        bodies = parts.runtime.bytes_but_weights.fill(numbers.reshape(len(groups), len(keys)))
        ttl_s = self._mesh.engine.weights_ttl_s
        plain = (make_resource(RTDS, LAYER, body, ttl_s) for body in bodies)
        # A client may have dropped what expired, so an epoch counts as part of the content.
        return [replace(r, version=f"{r.version}-{self._weights.epoch}") for r in plain]


def _table(
    parts: ApplicationResources,
    group: GroupKey,
    asked: Mapping[ServiceName, Mapping[ProviderName, int]],
) -> dict[ServiceName, dict[ProviderName, int]]:
    """Weights of every route of a group: as asked for, else the baseline's.

    After a reload the last plan may lack new providers and name ones that are gone: new
    ones wait at 0, and a route that only had gone ones is back at its baseline.
    """
    table = {}
    for route in parts.routes:
        wanted = asked.get(route.service, {})
        weights = {p: wanted.get(p, 0) for p in route.providers}
        if not any(weights.values()):
            if wanted and wanted.keys() == weights.keys():
                validate_weights(f"{group} {route.service}", wanted, route.providers)
            weights = dict(zip(route.providers, route.baseline, strict=True))
        validate_weights(f"{group} {route.service}", weights, route.providers)
        table[route.service] = weights
    return table


def _routes(
    parts: ApplicationResources, tables: list[dict[ServiceName, dict[ProviderName, int]]]
) -> list[list[Resource]]:
    """RouteConfigurations of every group, with the weights inside."""
    per_group: list[list[Resource]] = [[] for _ in tables]
    for route in parts.routes:
        rows = [[t[route.service][p] for p in route.providers] for t in tables]
        bodies = route.bytes_but_weights.fill(np.array(rows, dtype=np.int64))
        for resources, body in zip(per_group, bodies, strict=True):
            resources.append(make_resource(RDS, route.name, body))
    return per_group
