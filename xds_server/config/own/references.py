"""What one resource names of other resources, and the rules that Envoy would refuse it by."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from xds_server.config.own.messages import Fault, message_class
from xds_server.config.source import KeyPath, Value
from xds_server.model.ids import CDS, ECDS, EDS, RDS, SDS, SRDS, ResourceName, TypeUrl

ANY_NAME: Final = ""
"""Stands for "at least one of that type"."""
_ANY: Final = "google.protobuf.Any"
_UINT32_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Reference:
    """One name of another resource, that comes over the same stream; and where it is.

    One that is not ``needed`` does nothing on a node that lacks the other.
    """

    type_url: TypeUrl
    name: ResourceName
    at: KeyPath
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Placed:
    """A message, what it was written as, and where."""

    message: Any
    value: Mapping[str, Value]
    at: KeyPath

    def key(self, field: str) -> KeyPath:
        """Return the path of a field as it is spelled here."""
        camel = self.message.DESCRIPTOR.fields_by_name[field].camelcase_name
        return (*self.at, camel if camel in self.value else field)


def walk(message: Message, value: Value, at: KeyPath) -> Iterator[Placed]:
    """Return a message and all those in it, those packed in an ``Any`` too, outermost first."""
    name = message.DESCRIPTOR.full_name
    if name == _ANY:
        packed: Any = message
        cls = message_class(packed.TypeName()) if packed.type_url else None
        if cls is not None:
            yield from walk(cls.FromString(packed.value), value, at)
        return
    if name.startswith("google.protobuf.") or not isinstance(value, Mapping):
        return
    placed = Placed(message, value, at)
    yield placed
    for field, held in message.ListFields():
        kind = field.message_type
        if kind is None:
            continue
        here = placed.key(field.name)
        inner = value.get(str(here[-1]))
        if kind.GetOptions().map_entry:
            if kind.fields_by_name["value"].message_type is not None and isinstance(inner, Mapping):
                for key in held:
                    yield from walk(held[key], inner.get(str(key)), (*here, str(key)))
        elif field.is_repeated:
            items = inner if isinstance(inner, tuple) else ()
            for i, (one, written) in enumerate(zip(held, items, strict=False)):
                yield from walk(one, written, (*here, i))
        else:
            yield from walk(held, inner, here)


def inspect(placed: Placed) -> Iterator[Reference | Fault]:
    """Return what one message, without those in it, names; and what is wrong with it."""
    name = placed.message.DESCRIPTOR.full_name
    for field in _CLUSTER_FIELDS.get(name, ()):
        held = getattr(placed.message, field)
        at = placed.key(field)
        if not isinstance(held, str):
            for i, cluster in enumerate(held):
                yield Reference(CDS, cluster, (*at, i))
        elif held:
            yield Reference(CDS, held, at)
    rule = _RULES.get(name)
    if rule is not None:
        yield from rule(placed)


def _over_ads(source: Any) -> bool:
    return source.WhichOneof("config_source_specifier") in ("ads", "self")


def _rds(placed: Placed) -> Iterator[Reference | Fault]:
    message = placed.message
    if _over_ads(message.config_source):
        at = placed.key("route_config_name")
        if message.route_config_name:
            yield Reference(RDS, message.route_config_name, at)
        else:
            yield Fault(at, "is missing", "name a RouteConfiguration")


def _scoped_rds(placed: Placed) -> Iterator[Reference | Fault]:
    source = placed.message.scoped_rds_config_source
    if _over_ads(source) and not placed.message.srds_resources_locator:
        yield Reference(SRDS, ANY_NAME, placed.at)


def _scope(placed: Placed) -> Iterator[Reference | Fault]:
    name = placed.message.route_configuration_name
    if name:
        yield Reference(RDS, name, placed.key("route_configuration_name"))
    elif not placed.message.HasField("route_configuration"):
        yield Fault(placed.at, "has no route_configuration_name", "name a RouteConfiguration")


def _cluster(placed: Placed) -> Iterator[Reference | Fault]:
    message = placed.message
    if message.WhichOneof("cluster_discovery_type") != "type" or message.type != message.EDS:
        return
    at = placed.key("eds_cluster_config")
    if not message.eds_cluster_config.HasField("eds_config"):
        remedy = "write `eds_cluster_config: {eds_config: {resource_api_version: V3, ads: {}}}`"
        yield Fault(at, "an EDS cluster has no eds_config", remedy)
    elif _over_ads(message.eds_cluster_config.eds_config):
        yield Reference(EDS, message.eds_cluster_config.service_name or message.name, at)


def _secret(placed: Placed) -> Iterator[Reference | Fault]:
    if placed.message.HasField("sds_config") and _over_ads(placed.message.sds_config):
        at = placed.key("name")
        if placed.message.name:
            yield Reference(SDS, placed.message.name, at)
        else:
            yield Fault(at, "is missing", "name a Secret")


def _filter(placed: Placed) -> Iterator[Reference | Fault]:
    message = placed.message
    if message.WhichOneof("config_type") != "config_discovery":
        return
    if _over_ads(message.config_discovery.config_source):
        at = placed.key("name")
        if message.name:
            yield Reference(ECDS, message.name, at)
        else:
            yield Fault(at, "is missing", "name a TypedExtensionConfig")


def _weighted(placed: Placed) -> Iterator[Reference | Fault]:
    at = placed.key("clusters")
    total = 0
    for i, entry in enumerate(placed.message.clusters):
        header = getattr(entry, "cluster_header", "")
        if entry.name:
            yield Reference(CDS, entry.name, (*at, i, "name"))
        elif not header:
            yield Fault((*at, i), "has no name", "name a Cluster")
        weight = entry.weight
        if not isinstance(weight, int):
            if not entry.HasField("weight"):
                yield Fault((*at, i), "has no weight", "write `weight: 1`, or 0 for no traffic")
            weight = weight.value
        total += weight
    if not 0 < total <= _UINT32_MAX:
        remedy = "give one of them a weight above 0" if not total else "write smaller weights"
        yield Fault(at, f"weights sum up to {total}: Envoy takes 1 to {_UINT32_MAX}", remedy)


_TCP: Final = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_HCM: Final = "envoy.extensions.filters.network.http_connection_manager.v3."

_CLUSTER_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "envoy.config.route.v3.RouteAction": ("cluster",),
    "envoy.config.route.v3.RouteAction.RequestMirrorPolicy": ("cluster",),
    _TCP: ("cluster",),
    "envoy.extensions.filters.udp.udp_proxy.v3.Route": ("cluster",),
    "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig": ("cluster",),
    "envoy.extensions.clusters.aggregate.v3.ClusterConfig": ("clusters",),
    "envoy.config.core.v3.GrpcService.EnvoyGrpc": ("cluster_name",),
    "envoy.config.core.v3.HttpUri": ("cluster",),
    "envoy.config.core.v3.ApiConfigSource": ("cluster_names",),
}
"""Where a cluster is named by a plain string."""

_RULES: Final[Mapping[str, Callable[[Placed], Iterator[Reference | Fault]]]] = {
    f"{_HCM}Rds": _rds,
    f"{_HCM}ScopedRds": _scoped_rds,
    f"{_HCM}HttpFilter": _filter,
    "envoy.config.listener.v3.Filter": _filter,
    "envoy.config.listener.v3.ListenerFilter": _filter,
    "envoy.config.route.v3.ScopedRouteConfiguration": _scope,
    "envoy.config.route.v3.WeightedCluster": _weighted,
    f"{_TCP}.WeightedCluster": _weighted,
    "envoy.config.cluster.v3.Cluster": _cluster,
    "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig": _secret,
}
