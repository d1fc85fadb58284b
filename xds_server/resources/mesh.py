"""Every resource of the mesh by application: shapes now, numbers later."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from xds_server.errors import InconsistentSnapshotError, UnknownApplicationError
from xds_server.model.ids import CDS, EDS, RDS, ApplicationName, ProviderName, ServiceName
from xds_server.model.snapshot import Resource, TypeSnapshot
from xds_server.model.template import Call
from xds_server.model.topology import Address, Mesh
from xds_server.model.versions import make_resource, type_snapshot
from xds_server.resources.cluster import cluster
from xds_server.resources.common import parse_address
from xds_server.resources.endpoint import load_assignment
from xds_server.resources.grpc_client import (
    grpc_assignment,
    grpc_cluster,
    grpc_listener,
    grpc_route_template,
)
from xds_server.resources.listener import listener
from xds_server.resources.route import RouteTemplate, resource_name, route_template
from xds_server.resources.runtime import RuntimeTemplate, runtime_template
from xds_server.resources.weights import validate_weights

LISTENERS_MAX = 4096
"""Combinations of listeners that are kept; beyond that all are forgotten and built again."""


@dataclass(frozen=True, slots=True)
class ApplicationResources:
    """What every instance of an application with one template has in common."""

    clusters: TypeSnapshot
    endpoints: TypeSnapshot
    routes: tuple[RouteTemplate, ...]
    baseline_routes: TypeSnapshot
    runtime: RuntimeTemplate
    baseline_runtime: TypeSnapshot
    listeners: Mapping[ServiceName, Address]  # where the template puts them


@dataclass(frozen=True, slots=True)
class GrpcResources:
    """What every gRPC client without a sidecar has of an application with one template."""

    clusters: TypeSnapshot
    endpoints: TypeSnapshot
    routes: tuple[RouteTemplate, ...]
    baseline_routes: TypeSnapshot
    listeners: TypeSnapshot


@dataclass(slots=True)
class MeshResources:
    """Resources of one configuration with one set of endpoints, built when first asked for.

    Bounded by applications times templates.
    """

    mesh: Mesh
    endpoints: Mapping[ProviderName, tuple[Address, ...]]
    _built: dict[tuple[ApplicationName, str], ApplicationResources] = field(default_factory=dict)
    _grpc: dict[tuple[ApplicationName, str], GrpcResources] = field(default_factory=dict)
    _clusters: dict[ProviderName, Resource] = field(default_factory=dict)
    _assignments: dict[ProviderName, Resource] = field(default_factory=dict)
    _listeners: dict[tuple[tuple[str, Address], ...], TypeSnapshot] = field(default_factory=dict)

    def template_of(self, application: ApplicationName, override: str) -> str:
        """Name the template in force. Raises UnknownApplicationError."""
        if application not in self.mesh.applications:
            raise UnknownApplicationError("application", application, self.mesh.applications)
        if not override:
            return self.mesh.applications[application].template.name
        if override not in self.mesh.templates:
            raise UnknownApplicationError("template", override, self.mesh.templates)
        return override

    def of(self, application: ApplicationName, template: str) -> ApplicationResources:
        """Return the resources of an application under a template."""
        key = (application, template)
        if key not in self._built:
            self._built[key] = self._build(application, template)
        return self._built[key]

    def of_grpc(self, application: ApplicationName, template: str) -> GrpcResources:
        """Return the same for clients that are not Envoys."""
        key = (application, template)
        if key not in self._grpc:
            self._grpc[key] = self._build_grpc(application, template)
        return self._grpc[key]

    def listeners(self, wanted: tuple[tuple[str, Address], ...]) -> TypeSnapshot:
        """Return listeners of these names at these addresses, shared by all who want them."""
        found = self._listeners.get(wanted)
        if found is None:
            if len(self._listeners) >= LISTENERS_MAX:
                self._listeners.clear()
            settings = self.mesh.telemetry
            found = type_snapshot(listener(name, address, settings) for name, address in wanted)
            self._listeners[wanted] = found
        return found

    def listener(self, name: str, address: Address) -> Resource:
        """Return the one listener of that name at that address."""
        return self.listeners(((name, address),)).resources[name]

    def _build(self, application: ApplicationName, template: str) -> ApplicationResources:
        calls = self.mesh.templates[template].calls
        routes = tuple(self._route(application, call) for call in calls)
        names = sorted({p for route in routes for p in route.providers})
        runtime = runtime_template(application, routes, self.mesh.templates[template].flags)
        built = ApplicationResources(
            clusters=type_snapshot(self._cluster(n) for n in names),
            endpoints=type_snapshot(self._assignment(n) for n in names),
            routes=routes,
            baseline_routes=type_snapshot(baseline_route(r) for r in routes),
            runtime=runtime,
            baseline_runtime=type_snapshot((runtime.baseline,)),
            listeners={call.service: parse_address(call.listener) for call in calls},
        )
        _check(built)
        return built

    def _build_grpc(self, application: ApplicationName, template: str) -> GrpcResources:
        calls = self.mesh.templates[template].calls
        routes = tuple(
            grpc_route_template(application, call, self.mesh.candidates(call)) for call in calls
        )
        names = sorted({p for route in routes for p in route.providers})
        providers = [self.mesh.providers[n] for n in names]
        return GrpcResources(
            clusters=type_snapshot(grpc_cluster(p) for p in providers),
            endpoints=type_snapshot(
                grpc_assignment(p, self.endpoints.get(p.name, ())) for p in providers
            ),
            routes=routes,
            baseline_routes=type_snapshot(baseline_route(r) for r in routes),
            listeners=type_snapshot(grpc_listener(r.name) for r in routes),
        )

    def _route(self, application: ApplicationName, call: Call) -> RouteTemplate:
        return route_template(application, call, self.mesh.candidates(call))

    def _cluster(self, name: ProviderName) -> Resource:
        if name not in self._clusters:
            self._clusters[name] = cluster(self.mesh.providers[name])
        return self._clusters[name]

    def _assignment(self, name: ProviderName) -> Resource:
        if name not in self._assignments:
            provider = self.mesh.providers[name]
            found = self.endpoints.get(name, ())
            self._assignments[name] = load_assignment(provider, found)
        return self._assignments[name]


def baseline_route(route: RouteTemplate) -> Resource:
    """Build the RouteConfiguration with the operator's weights."""
    weights = dict(zip(route.providers, route.baseline, strict=True))
    validate_weights(f"baseline of {route.name}", weights, route.providers)
    (body,) = route.bytes_but_weights.fill(np.array([route.baseline], dtype=np.int64))
    return make_resource(RDS, route.name, body)


def listener_name(application: ApplicationName, service: ServiceName) -> str:
    """Name of a service's listener."""
    return resource_name(application, service)


def _check(built: ApplicationResources) -> None:
    """No route may point at a cluster that is not there, no cluster lack its assignment."""
    named = {p for route in built.routes for p in route.providers}
    for type_url, have in ((CDS, built.clusters), (EDS, built.endpoints)):
        missing = frozenset(named - have.resources.keys())
        if missing:
            raise InconsistentSnapshotError(type_url, missing)
