"""A source of fixed snapshots, and bare Envoy resources to put into them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2, scoped_route_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2  # noqa: F401 - for its Any
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401 - for its Any
from envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: F401 - its Any
    http_connection_manager_pb2,
)
from envoy.service.runtime.v3 import rtds_pb2
from google.protobuf import json_format

from tests.e2e.plane import Recorder, WallClock, listening
from xds_server.model.ids import CDS, ECDS, EDS, LDS, RDS, RTDS, SRDS, VHDS
from xds_server.model.snapshot import Node, Resource, Snapshot
from xds_server.model.versions import make_resource, type_snapshot
from xds_server.protocol.quarantine import Quarantine
from xds_server.wire.ads import DiscoveryServices

Json = dict[str, Any]
MESSAGES: dict[str, tuple[type[Any], str]] = {
    CDS: (cluster_pb2.Cluster, "name"),
    EDS: (endpoint_pb2.ClusterLoadAssignment, "cluster_name"),
    LDS: (listener_pb2.Listener, "name"),
    RDS: (route_pb2.RouteConfiguration, "name"),
    SRDS: (scoped_route_pb2.ScopedRouteConfiguration, "name"),
    VHDS: (route_components_pb2.VirtualHost, "name"),
    RTDS: (rtds_pb2.Runtime, "name"),
    ECDS: (extension_pb2.TypedExtensionConfig, "name"),
}


def build(type_url: str, body: Json) -> Resource:
    """Serialise a resource written as Envoy's JSON."""
    kind, key = MESSAGES[type_url]
    message = json_format.ParseDict(body, kind())
    return make_resource(type_url, getattr(message, key), message.SerializeToString())


def world(*resources: Resource) -> Snapshot:
    by_type: dict[str, list[Resource]] = {}
    for r in resources:
        by_type.setdefault(r.type_url, []).append(r)
    return Snapshot({url: type_snapshot(found) for url, found in by_type.items()})


def cluster(name: str, source: Json, **more: Any) -> Resource:
    return build(
        CDS,
        {
            "name": name,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": source},
            "connect_timeout": "1s",
            **more,
        },
    )


def endpoints(name: str, *ports: int) -> Resource:
    hosts = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": p}}}}
        for p in ports
    ]
    return build(EDS, {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]})


def routes(name: str, **weights: int) -> Resource:
    clusters = [{"name": n, "weight": w} for n, w in weights.items()]
    route = {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": clusters}}}
    host = {"name": "all", "domains": ["*"], "routes": [route]}
    return build(RDS, {"name": name, "virtual_hosts": [host]})


def listener(name: str, port: int, **manager: Any) -> Resource:
    """``manager`` are fields of the HTTP connection manager: ``rds``, ``scoped_routes``, ..."""
    router = {
        "name": "router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
        },
    }
    config = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network"
        ".http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [*manager.pop("filters", []), router],
        **manager,
    }
    return build(
        LDS,
        {
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": config}]}],
        },
    )


class Handle:
    """One stream; all streams share a snapshot and a quarantine."""

    heartbeat_seq = 0

    def __init__(self, source: "Fixed") -> None:
        self._source = source
        self.quarantine = source.quarantine

    def snapshot(self) -> Snapshot:
        return self._source.snapshot

    def subscribe_wakeup(self, event: asyncio.Event) -> None:
        self._source.wakeups.add(event)

    def unsubscribe_wakeup(self, event: asyncio.Event) -> None:
        self._source.wakeups.discard(event)


class Fixed:
    """The same snapshot for everyone, until ``show`` replaces it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.quarantine = Quarantine()
        self.wakeups: set[asyncio.Event] = set()
        self.nodes: list[Node] = []

    def show(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        for event in self.wakeups:
            event.set()

    def connect(self, node: Node) -> Handle:
        self.nodes.append(node)
        return Handle(self)

    def disconnect(self, handle: Handle) -> None:
        pass

    def uses_runtime(self, handle: Handle) -> None:
        pass


@asynccontextmanager
async def serving_fixed(
    source: Fixed,
    port: int,
    recorder: Recorder,
    lose: Callable[[bytes], bool] = lambda _: False,
    **options: Any,
) -> AsyncIterator[DiscoveryServices]:
    """Serve until the block ends; responses that ``lose`` picks never leave."""
    service = DiscoveryServices(source, recorder, WallClock(), **options)
    async with listening(_Losing(service.handler(), lose), port=port):
        yield service


class _Losing(grpc.GenericRpcHandler):
    def __init__(self, inner: grpc.GenericRpcHandler, lose: Callable[[bytes], bool]) -> None:
        self._inner, self._lose = inner, lose

    def service(self, details: Any) -> Any:
        found = self._inner.service(details)
        if found is None:
            return None

        async def serve(requests: Any, context: Any) -> None:
            await found.stream_stream(requests, _Context(context, self._lose))

        return grpc.stream_stream_rpc_method_handler(serve)


class _Context:
    def __init__(self, inner: Any, lose: Callable[[bytes], bool]) -> None:
        self._inner, self._lose = inner, lose

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def write(self, body: bytes) -> None:
        if not self._lose(body):
            await self._inner.write(body)


def bootstrap(xds_port: int, admin_port: int, api: str, *, aggregated: bool = True) -> Json:
    """A bare Envoy; without ``aggregated`` every type has a stream of its own."""
    kind = {"delta": "DELTA_GRPC", "sotw": "GRPC"}[api]
    back_off = {"retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}}
    grpc_service = {"envoy_grpc": {"cluster_name": "xds", "retry_policy": back_off}}
    source = {"api_type": kind, "transport_api_version": "V3", "grpc_services": [grpc_service]}
    own = {"resource_api_version": "V3", "api_config_source": source}
    ads = {"resource_api_version": "V3", "ads": {}}
    dynamic: Json = {"cds_config": ads, "lds_config": ads, "ads_config": source}
    if not aggregated:
        dynamic = {"cds_config": own, "lds_config": own}
    else:
        source["set_node_on_first_message_only"] = True
    h2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "node": {"id": "n1", "cluster": "shop"},
        "admin": {
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}}
        },
        "dynamic_resources": dynamic,
        "layered_runtime": {
            "layers": [
                {
                    "name": "flags",
                    "rtds_layer": {"name": "flags", "rtds_config": ads if aggregated else own},
                }
            ]
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        h2: {
                            "@type": f"type.googleapis.com/{h2}",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {
                                        "endpoint": {
                                            "address": {
                                                "socket_address": {
                                                    "address": "127.0.0.1",
                                                    "port_value": xds_port,
                                                }
                                            }
                                        }
                                    }
                                ]
                            }
                        ],
                    },
                }
            ]
        },
    }


def over_ads() -> Json:
    return {"resource_api_version": "V3", "ads": {}}


def over_own(api: str) -> Json:
    """The config source of a resource that has a stream of its own."""
    kind = {"delta": "DELTA_GRPC", "sotw": "GRPC"}[api]
    return {
        "resource_api_version": "V3",
        "api_config_source": {
            "api_type": kind,
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
        },
    }
