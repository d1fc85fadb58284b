"""Cases that are about streams and codes, through a real gRPC server on loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2
from structlog.testing import capture_logs

from tests.conformance.adapter import bare
from tests.e2e.envoy import eventually, free_port
from tests.e2e.fixed import Fixed, serving_fixed, world
from tests.e2e.plane import Recorder, WallClock
from xds_server.model.ids import CDS, EDS, LDS, RDS
from xds_server.model.topology import Address, ServerSettings
from xds_server.wire.ads import AGGREGATED, DiscoveryServices
from xds_server.wire.server import serving

DELTA = discovery_pb2.DeltaDiscoveryRequest
SOTW = discovery_pb2.DiscoveryRequest
WORLD = world(bare(CDS, "a", "1"), bare(EDS, "a", "1"), bare(LDS, "l", "1"), bare(RDS, "r", "1"))


class Client:
    """One stream of a bare client."""

    def __init__(self, channel: grpc.aio.Channel, method: str, answer: Any) -> None:
        self.call = channel.stream_stream(
            f"/{method}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=answer.FromString,
        )()

    async def say(self, request: Any) -> None:
        await self.call.write(request)

    async def hear(self) -> Any:
        async with asyncio.timeout(5.0):
            response = await self.call.read()
        assert response is not grpc.aio.EOF, await self.call.code()
        return response

    async def code(self) -> grpc.StatusCode:
        async with asyncio.timeout(5.0):
            found: grpc.StatusCode = await self.call.code()
        return found


@asynccontextmanager
async def server(
    fixed: Fixed, seen: Recorder | None = None
) -> AsyncIterator[tuple[DiscoveryServices, grpc.aio.Channel]]:
    port = free_port()
    async with (
        serving_fixed(fixed, port, seen or Recorder()) as services,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield services, channel


def sotw(channel: grpc.aio.Channel) -> Client:
    return Client(
        channel, f"{AGGREGATED}/StreamAggregatedResources", discovery_pb2.DiscoveryResponse
    )


def delta(channel: grpc.aio.Channel) -> Client:
    answer = discovery_pb2.DeltaDiscoveryResponse
    return Client(channel, f"{AGGREGATED}/DeltaAggregatedResources", answer)


def first(kind: Any, type_url: str, node: str = "n1") -> Any:
    request = kind(type_url=type_url)
    request.node.id = node
    return request


async def test_case_01_the_node_of_the_first_request_stays_that_of_the_stream() -> None:
    fixed = Fixed(WORLD)
    async with server(fixed) as (services, channel):
        client = sotw(channel)
        await client.say(first(SOTW, CDS))
        response = await client.hear()
        await client.say(SOTW(type_url=CDS, response_nonce=response.nonce, version_info="x"))
        await client.say(SOTW(type_url=LDS))
        assert (await client.hear()).type_url == LDS
        assert [s.node.node_id for s in services.streams if s.node] == ["n1"]
        assert len(fixed.nodes) == 1


@pytest.mark.parametrize("kind", [SOTW, DELTA], ids=["sotw", "delta"])
async def test_case_02_and_07_a_first_request_without_a_node_is_the_clients_error(
    kind: Any,
) -> None:
    fixed = Fixed(WORLD)
    async with server(fixed) as (_, channel):
        client = sotw(channel) if kind is SOTW else delta(channel)
        await client.say(kind(type_url=CDS))
        assert await client.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert fixed.nodes == []


async def test_case_03_another_node_later_is_ignored_and_said_once() -> None:
    fixed = Fixed(WORLD)
    async with server(fixed) as (services, channel):
        client = sotw(channel)
        await client.say(first(SOTW, CDS))
        await client.hear()
        with capture_logs() as logs:
            for type_url in (LDS, RDS, LDS):
                await client.say(first(SOTW, type_url, node="n2"))
            assert (await client.hear()).type_url == LDS
            await eventually("it is flagged", lambda: logs)
            await client.say(SOTW(type_url=EDS, resource_names=["a"]))
            await client.hear()
        flagged = [entry for entry in logs if entry["event"] == "xds.node_changed"]
        assert [(entry["node_id"], entry["other"]) for entry in flagged] == [("n1", "n2")]
        assert [s.node.node_id for s in services.streams if s.node] == ["n1"]
        assert len(fixed.nodes) == 1


async def test_case_06_and_07_and_81_streams_end_cleanly_and_new_ones_are_sent_elsewhere() -> None:
    fixed = Fixed(WORLD)
    async with server(fixed) as (services, channel):
        client = sotw(channel)
        await client.say(first(SOTW, CDS))
        assert (await client.hear()).type_url == CDS
        await services.drain(0.0, 5.0)
        assert await client.code() is grpc.StatusCode.OK  # after a response that means: go on
        late = sotw(channel)
        await late.say(first(SOTW, CDS))
        assert await late.code() is grpc.StatusCode.UNAVAILABLE  # and not: there is nothing
        assert services.streams == ()


async def test_case_08_a_request_of_more_than_4_mib_is_read() -> None:
    fixed, port = Fixed(WORLD), free_port()
    services = DiscoveryServices(fixed, Recorder(), WallClock())
    settings = ServerSettings(xds=Address("127.0.0.1", port))
    async with (
        serving(settings, (services.handler(),)),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        client = delta(channel)
        request = first(DELTA, EDS)
        request.resource_names_subscribe.append("a")
        for i in range(60_000):
            request.initial_resource_versions[f"endpoints-of-some-cluster-with-a-name-{i:06}"] = (
                "1" * 40
            )
        assert request.ByteSize() > 5 * 2**20
        await client.say(request)
        response = await client.hear()
        assert [r.name for r in response.resources] == ["a"]
        assert len(response.removed_resources) == 60_000


async def test_case_61_a_delta_response_says_which_world_it_belongs_to() -> None:
    fixed = Fixed(WORLD)
    async with server(fixed) as (_, channel):
        client = delta(channel)
        await client.say(first(DELTA, CDS))
        response = await client.hear()
        assert response.system_version_info == WORLD.of(CDS).version


async def test_case_78_requests_are_answered_while_pushes_never_stop() -> None:
    fixed, seen = Fixed(WORLD), Recorder()
    async with server(fixed, seen) as (_, channel):
        client = delta(channel)
        await client.say(first(DELTA, CDS))
        response = await client.hear()
        await client.say(DELTA(type_url=CDS, response_nonce=response.nonce))
        pushed = answered = 0
        assignments = [bare(EDS, f"e{k}", "1") for k in range(300)]
        for i in range(300):  # every request comes with a change of its own
            fixed.show(world(bare(CDS, "a", str(i + 2)), *assignments))
            await client.say(DELTA(type_url=EDS, resource_names_subscribe=[f"e{i}"]))
            while answered <= i:
                response = await client.hear()
                nonce = response.nonce
                await client.say(DELTA(type_url=response.type_url, response_nonce=nonce))
                pushed += response.type_url == CDS
                answered += len(response.resources) if response.type_url == EDS else 0
        assert answered == 300
        assert pushed > 100
