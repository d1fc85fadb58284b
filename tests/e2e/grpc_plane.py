"""A control plane for gRPC clients in this process, and the meshes that it serves."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc

from tests.e2e.envoy import free_port
from tests.e2e.fixed import build
from tests.e2e.grpc_app import Provider
from tests.e2e.plane import GROUP, Recorder, WallClock, overlay, resources, shop
from xds_server.cache.publisher import Publisher
from xds_server.model.ids import EDS
from xds_server.model.snapshot import Resource
from xds_server.model.template import Call
from xds_server.model.topology import Address, Mesh
from xds_server.protocol.events import Nacked
from xds_server.protocol.messages import Response
from xds_server.wire.ads import DiscoveryServices

DRAIN_S = 1.0
HOST = "127.0.0.1"
Front = Callable[[grpc.GenericRpcHandler], grpc.GenericRpcHandler]


class Plane:
    """Publisher and ADS on a port, which can be served more than once."""

    def __init__(self, ports: dict[str, int], **options: Any) -> None:
        self.xds = free_port()
        self.mesh = self.shop(ports, **options)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget everything, as a process does that is killed."""
        self.seen = Recorder()
        self.publisher = Publisher(self.mesh, resources(self.mesh))

    def shop(self, ports: dict[str, int], **options: Any) -> Mesh:
        return shop(self.xds, 15001, ports, **options)

    def reload(self, mesh: Mesh) -> None:
        self.publisher.set_mesh(mesh, resources(mesh), time.monotonic())

    def publish(self, **weights: int) -> None:
        self.publisher.set_group("g1", GROUP)
        self.publisher.publish(overlay(**weights), 0.0)

    def sent(self, type_url: str) -> list[Response]:
        return [r for r in self.seen.responses if r.type_url == type_url]

    @property
    def nacks(self) -> list[Nacked]:
        return [e for e in self.seen.events if isinstance(e, Nacked)]

    @asynccontextmanager
    async def serving(self, front: Front = lambda h: h) -> AsyncIterator[DiscoveryServices]:
        """Serve until the block ends; then the port is dead, as after a crash."""
        ads = DiscoveryServices(
            self.publisher, self.seen, WallClock(), cluster_drain_s=lambda: DRAIN_S
        )
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((front(ads.handler()),))
        server.add_insecure_port(f"127.0.0.1:{self.xds}")
        await server.start()
        try:
            yield ads
        finally:
            await server.stop(grace=None)


def ports(up: dict[str, Provider], *names: str) -> dict[str, int]:
    return {n: up[n].port for n in names or up}


def at(mesh: Mesh, *endpoints: int | str) -> Mesh:
    """The same with these endpoints, ports or unix sockets, of its one provider."""
    service = mesh.services["search"]
    addresses = tuple(Address(e) if isinstance(e, str) else Address(HOST, e) for e in endpoints)
    (provider,) = service.providers
    service = replace(service, providers=(replace(provider, endpoints=addresses),))
    return replace(mesh, services={"search": service})


def with_calls(mesh: Mesh, *calls: Call) -> Mesh:
    template = replace(mesh.templates["web"], calls=calls)
    application = replace(mesh.applications["shop"], template=template)
    return replace(mesh, templates={"web": template}, applications={"shop": application})


def padded(name: str, size_bytes: int) -> Resource:
    body = {"cluster_name": name, "named_endpoints": {"x" * size_bytes: {}}}
    return build(EDS, body)
