"""All that a node gets as one static bootstrap, for Envoy itself to validate.

What would come by discovery stands where it is named: routes in listeners, endpoints in
clusters, extensions in filters; secrets are static ones.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from envoy.config.bootstrap.v3 import bootstrap_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from xds_server.config.own.messages import message_class
from xds_server.model.extra import NodeSelector
from xds_server.model.ids import (
    CDS,
    ECDS,
    EDS,
    LDS,
    RDS,
    RTDS,
    SDS,
    SRDS,
    VHDS,
    ApplicationName,
    ResourceName,
    TypeUrl,
)
from xds_server.model.snapshot import Resource
from xds_server.model.topology import Mesh
from xds_server.resources.bootstrap import CLUSTER
from xds_server.resources.extra import Extras
from xds_server.resources.mesh import MeshResources, listener_name

COMBINATIONS_MAX: Final = 64
"""Combinations of sets per application that are rendered; the rest is left out."""

_HCM: Final = "envoy.extensions.filters.network.http_connection_manager.v3."


@dataclass(frozen=True, slots=True)
class Preflight:
    """What some nodes of an application get."""

    application: ApplicationName
    nodes: str  # which nodes, in words
    own: tuple[Resource, ...]
    render: Callable[[Resource | None], bytes]
    """Return a serialised Bootstrap; with a resource, without that one."""


def preflights(mesh: Mesh) -> Iterable[Preflight]:
    """Return a bootstrap for each application and each distinct combination of own resources.

    The combinations are what a node gets that matches no selector but its application's,
    and for each selector what a node gets that matches just that.
    """
    extras = Extras(mesh.resources)
    found = {p.name: p.endpoints for p in mesh.providers.values()}
    resources = MeshResources(mesh, found)
    for application in mesh.applications:
        for matching, nodes in _combinations(mesh, application).items():
            own = tuple(r for found in extras.combine(matching).values() for r in found)
            yield Preflight(application, nodes, own, partial(_render, resources, application, own))


def _combinations(mesh: Mesh, application: ApplicationName) -> dict[tuple[int, ...], str]:
    everyone = NodeSelector(cluster=application)
    selectors = [s.selector for s in mesh.resources]
    asked = [everyone, *(s for s in selectors if not s.excludes(everyone))]
    out: dict[tuple[int, ...], str] = {}
    for selector in asked[:COMBINATIONS_MAX]:
        narrowed = replace(selector, cluster=application)
        matching = tuple(i for i, s in enumerate(selectors) if s.covers(narrowed))
        out.setdefault(matching, str(replace(selector, cluster=None)))
    return out


def _render(
    resources: MeshResources,
    application: ApplicationName,
    own: tuple[Resource, ...],
    without: Resource | None,
) -> bytes:
    template = resources.template_of(application, "")
    parts = resources.of(application, template)
    world = _World()
    for part in (parts.clusters, parts.endpoints, parts.baseline_routes):
        world.add(part.resources.values())
    for service, address in parts.listeners.items():
        world.add((resources.listener(listener_name(application, service), address),))
    world.add(r for r in own if r is not without)
    boot = bootstrap_pb2.Bootstrap()
    json_format.ParseDict(_frame(application), boot)
    static = boot.static_resources
    for type_url, place in ((CDS, static.clusters), (LDS, static.listeners), (SDS, static.secrets)):
        for message in world.of(type_url).values():
            world.inline(message)
            place.add().CopyFrom(message)
    for i, (name, routes) in enumerate(world.unused_routes().items()):
        static.listeners.append(_listener_for(name, routes, i))
    for name, layer in world.of(RTDS).items():
        boot.layered_runtime.layers.add(name=name).static_layer.CopyFrom(layer.layer)
    body: bytes = boot.SerializeToString(deterministic=True)
    return body


def _frame(application: ApplicationName) -> dict[str, Any]:
    """Everything that is in a sidecar's bootstrap and that resources may lean on."""
    return {
        "node": {"id": "preflight", "cluster": application},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": CLUSTER}}],
            }
        },
        "static_resources": {
            "clusters": [{"name": CLUSTER, "type": "STATIC", "connect_timeout": "1s"}]
        },
    }


def _listener_for(name: ResourceName, routes: Any, place: int) -> Any:
    """Build a listener for routes that nothing here names, so that they are looked at."""
    world = "type.googleapis.com/"
    router = f"{world}envoy.extensions.filters.http.router.v3.Router"
    manager = {
        "@type": f"{world}{_HCM}HttpConnectionManager",
        "stat_prefix": "preflight",
        "route_config": json_format.MessageToDict(routes, preserving_proto_field_name=True),
        "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
    }
    address = {"address": f"127.255.{place >> 8 & 255}.{place & 255}", "port_value": 65535}
    listener = {
        "name": f"preflight: routes {name}",
        "address": {"socket_address": address},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return json_format.ParseDict(listener, _class(LDS)())


def _over_ads(source: Any) -> bool:
    return source.WhichOneof("config_source_specifier") in ("ads", "self")


class _World:
    """Messages by type and name; and how to put them where they are named."""

    def __init__(self) -> None:
        self._messages: dict[TypeUrl, dict[ResourceName, Any]] = {}
        self._routes_used: set[ResourceName] = set()
        self._rules: Mapping[str, Callable[[Any], None]] = {
            "envoy.config.cluster.v3.Cluster": self._endpoints,
            "envoy.config.route.v3.RouteConfiguration": self._hosts,
            "envoy.config.route.v3.ScopedRouteConfiguration": self._scope,
            f"{_HCM}HttpConnectionManager": self._routes,
            f"{_HCM}HttpFilter": self._extension,
            "envoy.config.listener.v3.Filter": self._extension,
            "envoy.config.listener.v3.ListenerFilter": self._extension,
            "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig": self._secret,
        }

    def add(self, resources: Iterable[Resource]) -> None:
        for resource in resources:
            message: Any = _class(resource.type_url).FromString(resource.body)
            self._messages.setdefault(resource.type_url, {})[resource.name] = message

    def of(self, type_url: TypeUrl) -> Mapping[ResourceName, Any]:
        return self._messages.get(type_url, {})

    def unused_routes(self) -> dict[ResourceName, Any]:
        """Return the RouteConfigurations that nothing inlined so far has named."""
        unused = {n: m for n, m in self.of(RDS).items() if n not in self._routes_used}
        for message in unused.values():
            self.inline(message)
        return unused

    def _routes_named(self, name: ResourceName) -> Any:
        self._routes_used.add(name)
        return self.of(RDS).get(name)

    def inline(self, message: Any) -> None:
        """Replace what a message and those in it name by what is named."""
        name = message.DESCRIPTOR.full_name
        if name == "google.protobuf.Any":
            self._inline_packed(message)
            return
        if name.startswith("google.protobuf."):
            return
        rule = self._rules.get(name)
        if rule is not None:
            rule(message)
        for field, held in message.ListFields():
            kind = field.message_type
            if kind is None:
                continue
            if kind.GetOptions().map_entry:
                if kind.fields_by_name["value"].message_type is not None:
                    for key in held:
                        self.inline(held[key])
            elif field.is_repeated:
                for one in held:
                    self.inline(one)
            else:
                self.inline(held)

    def _inline_packed(self, packed: Any) -> None:
        try:
            inner: Any = _class(packed.type_url).FromString(packed.value)
        except KeyError:
            return
        self.inline(inner)
        packed.value = inner.SerializeToString(deterministic=True)

    def _endpoints(self, cluster: Any) -> None:
        by_eds = cluster.WhichOneof("cluster_discovery_type") == "type" and (
            cluster.type == cluster.EDS and _over_ads(cluster.eds_cluster_config.eds_config)
        )
        if not by_eds:
            return
        assignment = self.of(EDS).get(cluster.eds_cluster_config.service_name or cluster.name)
        cluster.ClearField("eds_cluster_config")
        cluster.type = cluster.STATIC
        cluster.load_assignment.SetInParent()
        if assignment is not None:
            cluster.load_assignment.CopyFrom(assignment)
        cluster.load_assignment.cluster_name = cluster.name

    def _routes(self, manager: Any) -> None:
        if manager.HasField("rds") and _over_ads(manager.rds.config_source):
            named = self._routes_named(manager.rds.route_config_name)
            if named is not None:
                manager.route_config.CopyFrom(named)
        scoped = manager.scoped_routes.scoped_rds if manager.HasField("scoped_routes") else None
        if scoped is not None and _over_ads(scoped.scoped_rds_config_source):
            scopes = manager.scoped_routes.scoped_route_configurations_list
            for scope in self.of(SRDS).values():
                scopes.scoped_route_configurations.add().CopyFrom(scope)

    def _scope(self, scope: Any) -> None:
        named = self._routes_named(scope.route_configuration_name)
        if named is not None:
            scope.route_configuration.CopyFrom(named)
            scope.ClearField("route_configuration_name")

    def _hosts(self, routes: Any) -> None:
        if not routes.HasField("vhds") or not _over_ads(routes.vhds.config_source):
            return
        routes.ClearField("vhds")
        for name, host in self.of(VHDS).items():
            if name.rpartition("/")[0] == routes.name:
                routes.virtual_hosts.add().CopyFrom(host)

    def _extension(self, filter_: Any) -> None:
        if filter_.WhichOneof("config_type") != "config_discovery":
            return
        named = self.of(ECDS).get(filter_.name)
        if named is not None and _over_ads(filter_.config_discovery.config_source):
            filter_.typed_config.CopyFrom(named.typed_config)

    def _secret(self, secret: Any) -> None:
        if _over_ads(secret.sds_config) and secret.name in self.of(SDS):
            secret.ClearField("sds_config")


def _class(type_url: TypeUrl) -> type[Message]:
    """Return the class of a message. Raises KeyError for one that nobody knows."""
    cls = message_class(type_url.rpartition("/")[2])
    if cls is None:
        raise KeyError(type_url)
    return cls
