"""CSDS, health and reflection, as their clients see them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from envoy.admin.v3 import config_dump_shared_pb2 as shared
from envoy.config.cluster.v3 import cluster_pb2
from envoy.service.status.v3 import csds_pb2, csds_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.fixed import Fixed, build, cluster, endpoints, over_ads, world
from tests.e2e.plane import Recorder, WallClock, listening
from xds_server.model.ids import CDS, EDS, RTDS, SDS
from xds_server.model.snapshot import Resource
from xds_server.wire.ads import AGGREGATED, DiscoveryServices
from xds_server.wire.client_status import ClientStatusService
from xds_server.wire.well_known import Health, reflecting

pytestmark = pytest.mark.e2e
Start = Callable[[int], Awaitable[Envoy]]
NOTHING = build(RTDS, {"name": "flags", "layer": {}})


class Server:
    def __init__(self, fixed: Fixed, port: int) -> None:
        self.ads = DiscoveryServices(fixed, Recorder(), WallClock())
        self.health = Health()
        self.port = port

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[grpc.aio.Channel]:
        status = ClientStatusService(lambda: self.ads.streams)
        handlers = (self.ads.handler(), status.handler(), self.health.handler(), reflecting())
        await self.health.set_serving(True)
        async with (
            listening(*handlers, port=self.port),
            grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel,
        ):
            yield channel


async def test_csds_shows_what_was_accepted_and_what_was_refused_and_why(start: Start) -> None:
    good = (NOTHING, cluster("a", over_ads()), endpoints("a", 9))
    secret = Resource(SDS, "key", "1", b"private")
    bad = build(CDS, {"name": "bad", "connect_timeout": "-1s"})
    server = Server(Fixed(world(*good, bad, secret)), free_port())
    async with server.serving() as channel:
        await start(server.port)
        stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(channel)

        async def entries() -> dict[tuple[str, str], Any]:
            answer = await stub.FetchClientStatus(csds_pb2.ClientStatusRequest())
            (config,) = answer.config
            assert (config.node.id, config.node.cluster) == ("n1", "shop")
            return {(e.type_url, e.name): e for e in config.generic_xds_configs}

        async def settled() -> bool:
            return (await entries())[CDS, "a"].config_status == csds_pb2.SYNCED

        await eventually("the good one is ACKed", settled)
        found = await entries()
        assert found[CDS, "a"].client_status == shared.ACKED
        inner = cluster_pb2.Cluster.FromString(found[CDS, "a"].xds_config.value)
        assert inner.name == "a"
        assert found[EDS, "a"].client_status == shared.ACKED
        refused = found[CDS, "bad"]
        assert (refused.client_status, refused.config_status) == (shared.NACKED, csds_pb2.ERROR)
        assert "duration" in refused.error_state.details
        assert refused.error_state.version_info == bad.version


async def test_csds_matches_nodes_by_id_and_refuses_matchers_that_it_does_not_have(
    start: Start,
) -> None:
    server = Server(Fixed(world(NOTHING, cluster("a", over_ads()), endpoints("a", 9))), free_port())
    async with server.serving() as channel:
        await start(server.port)
        stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(channel)
        for pattern, nodes in (
            ({"exact": "n1"}, 1),
            ({"exact": "N1"}, 0),
            ({"exact": "N1", "ignore_case": True}, 1),
            ({"prefix": "n"}, 1),
            ({"suffix": "2"}, 0),
            ({"contains": "1"}, 1),
        ):
            request = csds_pb2.ClientStatusRequest(
                node_matchers=[{"node_id": pattern}], exclude_resource_contents=True
            )
            answer = await stub.FetchClientStatus(request)
            assert len(answer.config) == nodes, pattern
            assert not any(
                e.HasField("xds_config") for c in answer.config for e in c.generic_xds_configs
            )
        regex = {"node_id": {"safe_regex": {"regex": "n.*"}}}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.FetchClientStatus(csds_pb2.ClientStatusRequest(node_matchers=[regex]))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        call = stub.StreamClientStatus()
        for _ in range(2):
            await call.write(csds_pb2.ClientStatusRequest())
            assert len((await call.read()).config) == 1
        await call.done_writing()


async def test_health_follows_the_server_and_names_its_services() -> None:
    server = Server(Fixed(world()), free_port())
    async with server.serving() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", AGGREGATED):
            request = health_pb2.HealthCheckRequest(service=service)
            assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await server.health.set_serving(False)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.Check(health_pb2.HealthCheckRequest(service="nothing"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services_and_describes_them() -> None:
    server = Server(Fixed(world()), free_port())
    async with server.serving() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {s.name for s in (await call.read()).list_services_response.service}
        assert {AGGREGATED, "grpc.health.v1.Health"} < listed
        for name in sorted(listed):
            await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
            described = await call.read()
            assert described.file_descriptor_response.file_descriptor_proto, name
        await call.done_writing()
