"""Streams over a real gRPC server and clients whose every byte is known; no Envoy."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
import structlog
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from tests.e2e.envoy import eventually
from tests.e2e.fixed import Fixed
from tests.e2e.plane import Recorder, WallClock, listening
from xds_server.model.ids import CDS, RDS
from xds_server.model.snapshot import Resource, Snapshot
from xds_server.model.topology import XdsLimits
from xds_server.model.versions import type_snapshot
from xds_server.protocol.messages import DeltaRequest
from xds_server.wire.ads import AGGREGATED, DiscoveryServices
from xds_server.wire.requests import decode_delta, decode_sotw

METHOD = f"/{AGGREGATED}/DeltaAggregatedResources"
LARGE_BYTES = 200_000  # more than a stream's window and gRPC's write buffer together


def routes(version: str, size: int = 10) -> Snapshot:
    return Snapshot({RDS: type_snapshot([Resource(RDS, "r", version, version.encode() * size)])})


def request(**fields: Any) -> bytes:
    return discovery_pb2.DeltaDiscoveryRequest(**fields).SerializeToString()


FIRST = request(
    node=base_pb2.Node(id="n", cluster="shop"), type_url=RDS, resource_names_subscribe=["r"]
)


def ack(response: bytes) -> bytes:
    nonce = discovery_pb2.DeltaDiscoveryResponse.FromString(response).nonce
    return request(type_url=RDS, response_nonce=nonce)


class World:
    def __init__(self, snapshot: Snapshot, write_timeout_s: float) -> None:
        self.source, self.seen = Fixed(snapshot), Recorder()
        limits = XdsLimits(write_timeout_s=write_timeout_s)
        self.services = DiscoveryServices(self.source, self.seen, WallClock(), limits=limits)
        self.port = 0

    @asynccontextmanager
    async def stream(self, first: bytes = FIRST) -> AsyncIterator[Any]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options) as channel:
            call: Any = channel.stream_stream(METHOD)()
            await call.write(first)
            yield call


async def ending(call: Any) -> grpc.StatusCode:
    """The status of a stream on which nothing comes any more."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        assert await call.read() is grpc.aio.EOF
    code: grpc.StatusCode = await call.code()
    return code


@asynccontextmanager
async def serving(snapshot: Snapshot, write_timeout_s: float = 20.0) -> AsyncIterator[World]:
    world = World(snapshot, write_timeout_s)
    async with listening(world.services.handler()) as world.port:
        yield world


async def test_case_77_changes_while_a_response_is_unanswered_become_one() -> None:
    async with serving(routes("1")) as world, world.stream() as call:
        first = await call.read()
        for version in "234":
            world.source.show(routes(version))
            await asyncio.sleep(0)
        await call.write(ack(first))
        second = discovery_pb2.DeltaDiscoveryResponse.FromString(await call.read())
        assert [r.version for r in second.resources] == ["4"]
        await eventually("both are counted", lambda: len(world.seen.responses) == 2)


async def test_case_76_who_does_not_read_is_given_up_and_hears_of_it_when_it_reads() -> None:
    async with serving(routes("1", LARGE_BYTES), write_timeout_s=0.2) as world:
        async with world.stream() as stuck, world.stream() as healthy:
            with structlog.testing.capture_logs() as logs:
                response = await healthy.read()
                await eventually("it is given up", lambda: world.seen.reasons == ["stalled"])
            assert [e["node_id"] for e in logs if e["event"] == "xds.stream_stalled"] == ["n"]
            assert [s.stream_id for s in world.services.streams] != []
            assert len(world.services.streams) == 1
            assert len(world.source.wakeups) == 1
            # The other one is served as before.
            await healthy.write(ack(response))
            world.source.show(routes("2"))
            changed = discovery_pb2.DeltaDiscoveryResponse.FromString(await healthy.read())
            assert [r.version for r in changed.resources] == ["2"]
            # And the one that was given up learns it, so that it comes again.
            async with asyncio.timeout(5.0):
                await stuck.read()
                assert await ending(stuck) is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually("both are over", lambda: world.seen.open == 0)
        assert sorted(world.seen.reasons) == ["client", "stalled"]


async def test_a_stalled_client_that_goes_leaves_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = len(asyncio.all_tasks())
    async with serving(routes("1", LARGE_BYTES), write_timeout_s=0.1) as world:
        async with world.stream():
            await eventually("it is given up", lambda: world.seen.reasons == ["stalled"])
        # Draining does not wait for who does not read.
        async with world.stream():
            await eventually("it is given up", lambda: len(world.seen.reasons) == 2)
            async with asyncio.timeout(2.0):
                await world.services.drain(0.0, 10.0)
    await eventually("no task is left", lambda: len(asyncio.all_tasks()) <= tasks)
    assert [r.getMessage() for r in caplog.records if "ExecuteBatchError" in r.getMessage()] == []


async def test_a_slow_reader_that_reads_in_time_is_not_given_up() -> None:
    large = routes("1", LARGE_BYTES)
    async with serving(large, write_timeout_s=0.3) as world, world.stream() as call:
        for version in "2345":
            response = await call.read()
            await asyncio.sleep(0.15)
            await call.write(ack(response))
            world.source.show(routes(version, LARGE_BYTES))
        await call.read()
        assert world.seen.reasons == []


async def test_what_a_client_does_wrong_is_said_after_what_is_being_sent() -> None:
    async with serving(routes("1", LARGE_BYTES)) as world, world.stream() as call:
        await eventually("it is being sent", lambda: world.services.streams)
        await call.write(b"\xff\xff")
        assert len(await call.read()) > LARGE_BYTES
        assert await ending(call) is grpc.StatusCode.INVALID_ARGUMENT
        assert world.seen.reasons == ["protocol"]


@pytest.mark.parametrize("missing", [{}, {"node": base_pb2.Node(cluster="shop")}])
async def test_a_first_request_without_a_node_is_refused(missing: dict[str, Any]) -> None:
    first = request(type_url=RDS, **missing)
    async with serving(routes("1")) as world, world.stream(first) as call:
        assert await ending(call) is grpc.StatusCode.INVALID_ARGUMENT
        assert "node.id" in await call.details()


async def test_draining_sends_what_is_due_and_ends_cleanly() -> None:
    async with serving(routes("1")) as world, world.stream() as call:
        await call.write(ack(await call.read()))
        await eventually("it is answered", lambda: len(world.seen.events) == 2)
        world.source.show(routes("2"))
        await world.services.drain(0.0, 5.0)
        assert len(await call.read()) > 0
        assert await ending(call) is grpc.StatusCode.OK
        assert world.seen.reasons == ["drained"]


def test_an_ack_is_known_by_having_nothing_else_in_it() -> None:
    plain = DeltaRequest(RDS, response_nonce="7")
    assert decode_delta(request(type_url=RDS, response_nonce="7")) == (plain, None)
    with_more = [
        {"resource_names_subscribe": ["a"]},
        {"resource_names_subscribe": [""]},
        {"resource_names_unsubscribe": ["a"]},
        {"initial_resource_versions": {"a": "1"}},
    ]
    for more in with_more:
        found, node = decode_delta(request(type_url=RDS, response_nonce="7", **more))
        assert node is None
        assert found == replace(
            plain,
            subscribe=tuple(more.get("resource_names_subscribe", ())),
            unsubscribe=tuple(more.get("resource_names_unsubscribe", ())),
            initial_versions=more.get("initial_resource_versions", {}),
        )
    refused = request(type_url=RDS, response_nonce="7", error_detail={"message": ""})
    assert decode_delta(refused)[0].error == "code 0"
    unicode = request(type_url="ü" * 10, response_nonce="7")
    assert decode_delta(unicode)[0] == DeltaRequest("ü" * 10, response_nonce="7")


def test_a_node_is_read_only_when_there_is_one() -> None:
    plain = discovery_pb2.DiscoveryRequest(type_url=CDS, version_info="1", response_nonce="7")
    assert decode_sotw(plain.SerializeToString())[1] is None
    plain.node.id = "n"
    assert decode_sotw(plain.SerializeToString())[1].id == "n"
    assert decode_delta(FIRST)[1].id == "n"
