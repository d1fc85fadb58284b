"""Who should have what: composes each node's snapshot, and wakes the streams it changes.

Snapshots are made of shared parts: clusters, endpoints and baseline routes per application,
listeners per set of addresses, weights per group. Weights are the only part that a tick
changes; they are encoded for all groups of an application at once.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

import structlog

from xds_server.cache.nodes import NodeHandle, Quarantines
from xds_server.cache.readiness import Readiness
from xds_server.cache.weights import (
    NO_FLAGS,
    Asked,
    Encoded,
    Flags,
    baseline_masked,
    encode,
    encode_masked,
    encode_routes,
)
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
    TypeUrl,
)
from xds_server.model.snapshot import Node, Overlay, Snapshot, TypeSnapshot
from xds_server.model.telemetry import HostsSeen
from xds_server.model.topology import Address, Mesh, Mode, WeightsVia
from xds_server.resources.common import parse_address
from xds_server.resources.extra import Extras
from xds_server.resources.mesh import (
    ApplicationResources,
    GrpcResources,
    MeshResources,
    listener_name,
)

log = structlog.get_logger()

HEARTBEATS_PER_TTL = 3
VARIANTS_MAX = 1024
"""Combinations of group and masked providers, and groups of gRPC clients, that are kept
encoded; beyond that all are forgotten, and encoded again when they are asked for."""
KINDS_MAX = 16_384
"""Kinds of nodes that are told apart at once; beyond that equal ones may count as different,
which costs a snapshot each."""
_NO_OVERLAY = Overlay({})
_T = TypeVar("_T", Encoded, TypeSnapshot)


@dataclass(slots=True)
class _Weights:
    """What is published, as asked for and as encoded."""

    overlay: Overlay = _NO_OVERLAY
    encoded: dict[GroupKey, Encoded] = field(default_factory=dict)
    variants: dict[tuple[object, ...], Encoded | TypeSnapshot] = field(default_factory=dict)
    epoch: int = 0
    renewed_at_s: float | None = None
    heartbeat_at_s: float = float("-inf")


class Publisher:
    """The source of every stream's snapshot."""

    def __init__(self, mesh: Mesh, resources: MeshResources) -> None:
        self._mesh, self._resources = mesh, resources
        self._extras = Extras(mesh.resources)
        self._nodes: dict[NodeId, list[NodeHandle]] = {}
        self._quarantines = Quarantines()
        self._readiness = Readiness()
        self._weights = _Weights()
        self._flags: Mapping[tuple[str, str], Flags] = {}
        self._kinds: dict[tuple[object, ...], int] = {}
        self._kind_numbers = count(1)

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
        masked = self._readiness.masked(node.node_id)
        snapshot = self._compose(node, group, masked, runtime=False)
        handle = NodeHandle(node, snapshot, group, self._quarantines.open(node.node_id))
        handle.kind = self._kind(node)
        if not others:
            self._readiness.offer(node.node_id, self._clusters(node), 0.0)
        self._nodes.setdefault(node.node_id, []).append(handle)
        return handle

    def disconnect(self, handle: NodeHandle) -> None:
        """Take back one ``connect``."""
        node_id = handle.node.node_id
        self._nodes[node_id].remove(handle)
        if not self._nodes[node_id]:
            del self._nodes[node_id]
            self._quarantines.close(node_id)
            self._readiness.forget(node_id)

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
        by_runtime = self._by_runtime(handle.runtime) and not handle.node.is_grpc
        return WeightsVia.RTDS if by_runtime else WeightsVia.RDS

    # -- what they get ---------------------------------------------------------------

    @property
    def waiting(self) -> tuple[NodeId, ...]:
        """Nodes that may not use some provider yet."""
        return self._readiness.waiting

    def waits_for(self, node_id: NodeId) -> frozenset[ProviderName]:
        """Providers that came to this node and that it has not reported healthy hosts of."""
        return self._readiness.masked(node_id)

    def see(
        self,
        node_id: NodeId,
        seen: Mapping[ProviderName, HostsSeen],
        telemetry_age_s: float,
        now_s: float,
    ) -> None:
        """Take in what a node reports of its hosts; it gets the weights that this frees."""
        if self._readiness.see(node_id, seen, telemetry_age_s, now_s):
            self._refresh(self._nodes[node_id])

    def set_mesh(self, mesh: Mesh, resources: MeshResources, now_s: float) -> None:
        """Take over another configuration, or other endpoints; weights stay in force."""
        if mesh.resources != self._mesh.resources:
            self._extras = Extras(mesh.resources)
            self._kinds.clear()
            for handle in self._handles:
                handle.kind = self._kind(handle.node)
        self._mesh, self._resources = mesh, resources
        if mesh.mode is not Mode.ENFORCE:
            self._weights.overlay = _NO_OVERLAY
        self._encode(self._weights.overlay, anew=True)
        for node_id, handles in self._nodes.items():
            self._readiness.offer(node_id, self._clusters(handles[-1].node), now_s)
        self._refresh(self._handles)

    def publish(self, overlay: Overlay, now_s: float) -> None:
        """Replace all weights. Raises InvalidWeightsError, and then changes nothing."""
        self._encode(overlay)
        self._weights.overlay = overlay
        self._weights.renewed_at_s = now_s
        self._refresh(self._handles)

    def set_flags(self, flags: Mapping[tuple[str, str], Flags]) -> None:
        """Set features other than their defaults, by application and template in force.

        They are in force where weights are, and expire with them.
        """
        self._flags = flags
        self._encode(self._weights.overlay, anew=True)
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

    # -- composition -----------------------------------------------------------------

    def _refresh(self, handles: Iterable[NodeHandle]) -> None:
        shared: dict[tuple[object, ...], Snapshot] = {}
        for handle in handles:
            masked = self._readiness.masked(handle.node.node_id)
            # By identity, since to hash a group costs as much as all else here.
            key = (handle.kind, id(handle.group), masked, handle.runtime)
            composed = shared.get(key)
            if composed is None:
                try:
                    composed = self._compose(
                        handle.node, handle.group, masked, runtime=handle.runtime
                    )
                except UnknownApplicationError as error:
                    # Its application left the configuration: it keeps what it has.
                    node_id = handle.node.node_id
                    log.warning("xds.node_orphaned", node_id=node_id, reason=str(error))
                    continue
                shared[key] = composed
            handle.show(composed)

    def _kind(self, node: Node) -> int:
        """Number nodes by what of them a snapshot depends on, beside group and stream."""
        if len(self._kinds) >= KINDS_MAX:
            self._kinds.clear()  # numbers go on: no two kinds ever have the same
        own = (node.application, str(node.metadata.get("template", "")), node.is_grpc)
        listeners = repr(node.metadata.get("listeners"))
        return self._kinds.setdefault(
            (*own, listeners, self._extras.matching(node)), next(self._kind_numbers)
        )

    def _compose(
        self,
        node: Node,
        group: GroupKey | None,
        masked: frozenset[ProviderName],
        *,
        runtime: bool,
    ) -> Snapshot:
        try:
            template = self._template(node)
        except UnknownApplicationError:
            own = self._extras.add_to({}, node)
            if not own:
                raise
            return Snapshot(own)  # no application of ours, but resources are meant for it
        if node.is_grpc:
            return Snapshot(self._extras.add_to(self._for_grpc(node, template, group), node))
        parts = self._resources.of(node.application, template)
        encoded = self._weights.encoded.get(group) if group else None
        routes = parts.baseline_routes
        if masked:
            routes = self._baseline_masked(parts, masked)
            if encoded is not None and group is not None:
                encoded = self._encoded_masked(parts, group, masked)
        by_runtime = self._by_runtime(runtime)
        generated = {
            CDS: parts.clusters,
            EDS: parts.endpoints,
            LDS: self._listeners(node, parts),
            RDS: encoded.routes if encoded and not by_runtime else routes,
            RTDS: encoded.runtime if encoded and by_runtime else parts.baseline_runtime,
        }
        return Snapshot(self._extras.add_to(generated, node))

    def _for_grpc(
        self, node: Node, template: str, group: GroupKey | None
    ) -> dict[TypeUrl, TypeSnapshot]:
        """Return what a client without a sidecar has: weights in its routes, whatever the way."""
        parts = self._resources.of_grpc(node.application, template)
        routes = parts.baseline_routes
        if group is not None and group in self._weights.encoded:
            routes = self._encoded_grpc(parts, group)
        return {CDS: parts.clusters, EDS: parts.endpoints, LDS: parts.listeners, RDS: routes}

    def _template(self, node: Node) -> str:
        override = str(node.metadata.get("template", ""))
        return self._resources.template_of(node.application, override)

    def _clusters(self, node: Node) -> Iterable[ProviderName]:
        """Providers that a node has clusters of, and says of whether it sees their hosts.

        None if its application is gone. A gRPC client sends no telemetry; it takes over routes
        when it has the endpoints of all that they name, and calls wait until it is connected.
        """
        if node.is_grpc:
            return ()
        try:
            return self._resources.of(node.application, self._template(node)).clusters.resources
        except UnknownApplicationError:
            return ()

    def _by_runtime(self, subscribed: bool) -> bool:
        via = self._mesh.engine.weights_via
        return via is WeightsVia.RTDS or (via is WeightsVia.AUTO and subscribed)

    def _listeners(self, node: Node, parts: ApplicationResources) -> TypeSnapshot:
        override = node.metadata.get("listeners", {})
        if not isinstance(override, Mapping):
            raise RemoteProtocolError("node.metadata.listeners must map services to addresses")
        wanted = []
        for service, default in parts.listeners.items():
            address: Address = default
            if service in override:
                try:
                    address = parse_address(str(override[service]))
                except ValueError as error:
                    message = f"node.metadata.listeners.{service}: {error}"
                    raise RemoteProtocolError(message) from None
            wanted.append((listener_name(node.application, service), address))
        return self._resources.listeners(tuple(wanted))

    def _encode(self, overlay: Overlay, *, anew: bool = False) -> None:
        """Encode the weights of all groups; unchanged ones keep their objects.

        A group whose very mapping was encoded before is not looked at, unless ``anew``.
        """
        before = self._weights
        encoded, asked = self._kept(overlay, {} if anew else before.overlay.weights)
        by_shape: dict[tuple[str, str], dict[GroupKey, Asked]] = {}
        for group, weights in asked:
            by_shape.setdefault((group.application, group.template), {})[group] = weights
        for (application, override), groups in by_shape.items():
            if application not in self._mesh.applications:
                continue
            template = self._resources.template_of(application, override)
            parts = self._resources.of(application, template)
            flags = self._flags.get((application, template), NO_FLAGS)
            made = encode(parts, groups, self._ttl_s, before.epoch, flags)
            for group, new in zip(groups, made, strict=True):
                old = before.encoded.get(group)
                encoded[group] = old if old is not None and old.same_as(new) else new
        before.encoded = encoded
        before.variants = {}

    def _kept(
        self, overlay: Overlay, known: Mapping[GroupKey, Asked]
    ) -> tuple[dict[GroupKey, Encoded], list[tuple[GroupKey, Asked]]]:
        """Return what is encoded already of what was ``known``, and what is asked for beside."""
        before, weights = self._weights.encoded, overlay.weights
        if len(before) == len(known) == len(weights) and all(map(operator.is_, known, weights)):
            # The same groups in the same order, tick after tick: no key has to be looked up.
            both = zip(weights.items(), known.values(), strict=True)
            return dict(before), [item for item, old in both if item[1] is not old]
        kept = {g: before[g] for g, w in weights.items() if g in before and known.get(g) is w}
        return kept, [(g, w) for g, w in weights.items() if g not in kept]

    @property
    def _ttl_s(self) -> float:
        return self._mesh.engine.weights_ttl_s

    def _baseline_masked(
        self, parts: ApplicationResources, masked: frozenset[ProviderName]
    ) -> TypeSnapshot:
        key = (parts.baseline_routes.version, masked)
        found = self._weights.variants.get(key)
        if not isinstance(found, TypeSnapshot):
            found = self._keep(key, baseline_masked(parts, masked))
        return found

    def _encoded_masked(
        self, parts: ApplicationResources, group: GroupKey, masked: frozenset[ProviderName]
    ) -> Encoded:
        key = (group, masked)
        found = self._weights.variants.get(key)
        if not isinstance(found, Encoded):
            asked = self._weights.overlay.weights.get(group, {})
            template = self._resources.template_of(group.application, group.template)
            flags = self._flags.get((group.application, template), NO_FLAGS)
            epoch = self._weights.epoch
            found = self._keep(key, encode_masked(parts, asked, masked, self._ttl_s, epoch, flags))
        return found

    def _encoded_grpc(self, parts: GrpcResources, group: GroupKey) -> TypeSnapshot:
        key = (group, "gRPC")
        found = self._weights.variants.get(key)
        if not isinstance(found, TypeSnapshot):
            asked = self._weights.overlay.weights.get(group, {})
            found = self._keep(key, encode_routes(parts, asked))
        return found

    def _keep(self, key: tuple[object, ...], encoded: _T) -> _T:
        if len(self._weights.variants) >= VARIANTS_MAX:
            self._weights.variants.clear()
        self._weights.variants[key] = encoded
        return encoded
