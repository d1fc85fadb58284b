"""The public conformance harness's adapter, beside our own server.

``python -m tests.conformance.adapter --xds-port 18000 --adapter-port 17000``, and then the
harness (github.com/ii/xds-test-harness) with its defaults. What is under test is the protocol
layer and the wire as they are; the world is what the harness dictates, versions included.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2

from tests.conformance import adapter_pb2 as pb
from tests.e2e.fixed import Fixed
from tests.e2e.plane import Recorder, WallClock, listening
from xds_server.model.ids import CDS, EDS, LDS, RDS
from xds_server.model.snapshot import Resource, Snapshot, TypeSnapshot
from xds_server.wire.ads import DiscoveryServices

SERVICE = "adapter.Adapter"
KINDS: dict[str, tuple[type[Any], str]] = {
    CDS: (cluster_pb2.Cluster, "name"),
    EDS: (endpoint_pb2.ClusterLoadAssignment, "cluster_name"),
    LDS: (listener_pb2.Listener, "name"),
    RDS: (route_pb2.RouteConfiguration, "name"),
}


def bare(type_url: str, name: str, version: str) -> Resource:
    """A resource that has a name and nothing else."""
    kind, key = KINDS[type_url]
    return Resource(type_url, name, version, kind(**{key: name}).SerializeToString())


class Adapter:
    """Sets the world as it is told, under the versions that it is told."""

    def __init__(self, source: Fixed) -> None:
        self._source = source

    def handler(self) -> grpc.GenericRpcHandler:
        methods = {
            "SetState": (self._set, pb.SetStateRequest),
            "ClearState": (self._clear, pb.clearStateRequest),
            "UpdateResource": (self._put(pb.UpdateResourceResponse), pb.ResourceRequest),
            "AddResource": (self._put(pb.AddResourceResponse), pb.ResourceRequest),
            "RemoveResource": (self._remove, pb.ResourceRequest),
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    method,
                    request_deserializer=request.FromString,
                    response_serializer=lambda answer: answer.SerializeToString(),
                )
                for name, (method, request) in methods.items()
            },
        )

    async def _set(self, request: Any, _: Any) -> Any:
        world: dict[str, dict[str, Resource]] = {url: {} for url in KINDS}
        for packed in request.resources:
            kind, key = KINDS[packed.type_url]
            name = getattr(kind.FromString(packed.value), key)
            world[packed.type_url][name] = bare(packed.type_url, name, request.version)
        self._show(world, dict.fromkeys(KINDS, request.version))
        return pb.SetStateResponse(success=True)

    async def _clear(self, request: Any, _: Any) -> Any:
        self._show({url: {} for url in KINDS}, dict.fromkeys(KINDS, "0"))
        return pb.clearStateResponse(response="cleared")

    def _put(self, answer: Callable[..., Any]) -> Callable[[Any, Any], Any]:
        async def put(request: Any, _: Any) -> Any:
            resource = bare(request.typeUrl, request.resourceName, request.version)
            self._change(request, {request.resourceName: resource})
            return answer(success=True)

        return put

    async def _remove(self, request: Any, _: Any) -> Any:
        self._change(request, {})
        return pb.RemoveResourceResponse(success=True)

    def _change(self, request: Any, new: dict[str, Resource]) -> None:
        parts = self._source.snapshot.types
        world = {url: dict(part.resources) for url, part in parts.items()}
        world[request.typeUrl].pop(request.resourceName, None)
        world[request.typeUrl] |= new
        versions = {url: part.version for url, part in parts.items()}
        # A removal comes without a version in some of the harness's steps.
        versions[request.typeUrl] = request.version or f"{versions[request.typeUrl]}-"
        self._show(world, versions)

    def _show(self, world: dict[str, dict[str, Resource]], versions: dict[str, str]) -> None:
        self._source.show(
            Snapshot(
                {
                    url: TypeSnapshot(versions[url], MappingProxyType(found))
                    for url, found in world.items()
                }
            )
        )


@asynccontextmanager
async def serving(xds_port: int, adapter_port: int) -> AsyncIterator[DiscoveryServices]:
    """Serve both until the block ends."""
    source = Fixed(Snapshot({}))
    services = DiscoveryServices(source, Recorder(), WallClock())
    async with (
        listening(services.handler(), port=xds_port),
        listening(Adapter(source).handler(), port=adapter_port),
    ):
        yield services


async def _forever(xds_port: int, adapter_port: int) -> None:
    async with serving(xds_port, adapter_port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--xds-port", type=int, default=18000)
    parser.add_argument("--adapter-port", type=int, default=17000)
    chosen = parser.parse_args()
    asyncio.run(_forever(chosen.xds_port, chosen.adapter_port))
