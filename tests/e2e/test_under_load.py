"""Many clients, bad clients, and none that hurts another. Real gRPC, no Envoy."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
import structlog
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from tests.e2e.envoy import eventually, free_port
from tests.e2e.fixed import Fixed, serving_fixed
from tests.e2e.plane import Recorder, WallClock, listening, resources, shop
from xds_server.cache.publisher import Publisher
from xds_server.model.ids import CDS, RDS
from xds_server.model.snapshot import Resource, Snapshot
from xds_server.model.topology import XdsLimits
from xds_server.model.versions import type_snapshot
from xds_server.wire.ads import AGGREGATED, DiscoveryServices

pytestmark = pytest.mark.e2e
METHOD = f"/{AGGREGATED}/DeltaAggregatedResources"
LARGE_BYTES = 300_000  # more than a stream's window and gRPC's write buffer together


def request(**fields: Any) -> bytes:
    return discovery_pb2.DeltaDiscoveryRequest(**fields).SerializeToString()


def first(node_id: str = "n", application: str = "shop", **fields: Any) -> bytes:
    node = base_pb2.Node(id=node_id, cluster=application)
    return request(node=node, **({"type_url": RDS, "resource_names_subscribe": ["r"]} | fields))


def response(body: bytes) -> Any:
    return discovery_pb2.DeltaDiscoveryResponse.FromString(body)


def routes(version: str, size: int = 10) -> Snapshot:
    body = version.encode() * (size // len(version))
    many = [Resource(RDS, f"x{i}", "1", b"x") for i in range(100)]
    return Snapshot({RDS: type_snapshot([Resource(RDS, "r", version, body), *many])})


@asynccontextmanager
async def channel(port: int) -> AsyncIterator[Any]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as out:
        yield out


class Reader:
    """A client that reads and ACKs; it says which version it has."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.version, self.responses = "", 0

    async def run(self) -> None:
        while (body := await self._call.read()) is not grpc.aio.EOF:
            message = response(body)
            self.version = message.resources[0].version
            self.responses += 1
            await self._call.write(request(type_url=RDS, response_nonce=message.nonce))


@asynccontextmanager
async def reading(stack: AsyncExitStack, port: int, count: int) -> AsyncIterator[list[Reader]]:
    readers, tasks = [], []
    for i in range(count):
        call: Any = (await stack.enter_async_context(channel(port))).stream_stream(METHOD)()
        await call.write(first(f"healthy-{i}"))
        readers.append(Reader(call))
        tasks.append(asyncio.ensure_future(readers[-1].run()))
    try:
        yield readers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_case_76_and_77_who_reads_is_served_beside_many_who_do_not() -> None:
    source, seen, port = Fixed(routes("1", LARGE_BYTES)), Recorder(), free_port()
    limits = XdsLimits(write_timeout_s=1.0)
    with structlog.testing.capture_logs() as logs:
        async with serving_fixed(source, port, seen, limits=limits), AsyncExitStack() as stack:
            for i in range(5):
                stuck: Any = (await stack.enter_async_context(channel(port))).stream_stream(METHOD)
                await stuck().write(first(f"stuck-{i}"))
            async with reading(stack, port, 10) as readers:
                await eventually("all read", lambda: all(r.version == "1" for r in readers))
                start_s = time.monotonic()
                for version in range(2, 12):
                    source.show(routes(str(version), LARGE_BYTES))
                    await eventually(
                        "all have the change",
                        lambda v=str(version): all(r.version == v for r in readers),
                    )
                assert time.monotonic() - start_s < 5.0
                # Nobody was told a version twice, and the stalled have cost nobody a stream.
                assert {r.responses for r in readers} == {11}
                await eventually("they are given up", lambda: len(seen.reasons) == 5)
                assert seen.reasons == ["stalled"] * 5
                assert seen.open == 10
    named = {e["node_id"] for e in logs if e["event"] == "xds.stream_stalled"}
    assert named == {f"stuck-{i}" for i in range(5)}


async def test_case_78_requests_are_answered_amid_continuous_changes() -> None:
    """Answers come fast while everything changes all the time; and changes arrive as well."""
    source, seen, port = Fixed(routes("1")), Recorder(), free_port()

    async def change() -> None:
        for version in range(2, 1_000_000):
            source.show(routes(str(version)))
            await asyncio.sleep(0.001)

    async with serving_fixed(source, port, seen), channel(port) as open_channel:
        call: Any = open_channel.stream_stream(METHOD)()
        await call.write(first())
        writing = asyncio.Lock()  # gRPC takes one write at a time

        async def write(body: bytes) -> None:
            async with writing:
                await call.write(body)

        changing = asyncio.ensure_future(change())
        asked_s: dict[str, float] = {}
        waits_s: list[float] = []
        pushes = 0

        async def read() -> None:
            nonlocal pushes
            while (body := await call.read()) is not grpc.aio.EOF:
                message = response(body)
                for r in message.resources:
                    if r.name in asked_s:
                        waits_s.append(time.monotonic() - asked_s[r.name])
                    else:
                        pushes += 1
                await write(request(type_url=RDS, response_nonce=message.nonce))

        receiving = asyncio.ensure_future(read())
        try:
            await eventually("changes come", lambda: pushes > 20)
            # A burst, as of a client that starts: nothing waits for its answer in between.
            before = pushes
            for i in range(100):
                asked_s[f"x{i}"] = time.monotonic()
                await write(request(type_url=RDS, resource_names_subscribe=[f"x{i}"]))
            await eventually("all is answered", lambda: len(waits_s) == 100)
            assert sorted(waits_s)[90] < 0.5
            await eventually("changes still come", lambda: pushes > before + 20)
        finally:
            for task in (changing, receiving):
                task.cancel()
            await asyncio.gather(changing, receiving, return_exceptions=True)


async def test_case_79_a_storm_is_let_in_at_the_rate_and_everybody_gets_in() -> None:
    source, seen, port = Fixed(routes("1")), Recorder(), free_port()
    limits = XdsLimits(streams_per_s=40.0, streams_max=400)
    outcomes: Counter[str] = Counter()

    async def come(i: int, open_channel: Any) -> None:
        """Try like Envoy does, until there is an answer; and stay."""
        while True:
            call: Any = open_channel.stream_stream(METHOD)()
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(first(f"n{i}"))
                if await call.read() is not grpc.aio.EOF:
                    outcomes["served"] += 1
                    calls.append(call)
                    return
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            outcomes["refused"] += 1

    calls: list[Any] = []
    async with (
        serving_fixed(source, port, seen, limits=limits),
        channel(port) as one,
        channel(port) as two,
    ):
        start_s = time.monotonic()
        async with asyncio.timeout(30.0):
            await asyncio.gather(*(come(i, (one, two)[i % 2]) for i in range(300)))
        took_s = time.monotonic() - start_s
    assert outcomes["served"] == 300
    assert took_s > (300 - 40) / 40.0 - 0.5
    assert seen.waited_most == 200  # five seconds' worth
    assert seen.refusals == {"rate": outcomes["refused"]}
    assert 0 < outcomes["refused"] < 60 * 15  # each comes back about every 0.55 s, not at once


async def test_case_80_a_thousand_refused_and_early_closed_streams_leave_nothing() -> None:
    mesh = shop(free_port(), free_port(), {"a": free_port()})
    publisher, seen, port = Publisher(mesh, resources(mesh)), Recorder(), free_port()
    services = DiscoveryServices(
        publisher, seen, WallClock(), limits=XdsLimits(streams_per_s=100_000.0)
    )
    ways: dict[str, tuple[bytes | None, Callable[[Any], Any]]] = {
        "no node": (request(type_url=CDS), _until_refused),
        "a stranger": (first(application="unheard-of"), _until_refused),
        "nonsense": (b"\xff\xff\xff", _until_refused),
        "gone at once": (None, _cancel),
        "gone after its request": (first(type_url=CDS), _cancel),
        "gone after the answer": (first(type_url=CDS, resource_names_subscribe=[]), _read_cancel),
        "done without a word": (None, _done),
        "done after its request": (first(type_url=CDS), _done),
    }
    async with listening(services.handler(), port=port), channel(port) as open_channel:
        await _one(open_channel, *ways["gone after the answer"])  # what is made once is made
        await eventually("it is over", lambda: not services._streams)
        tasks = len(asyncio.all_tasks())
        for _ in range(25):
            several = [way for way in ways.values() for _ in range(5)]
            await asyncio.gather(*(_one(open_channel, *way) for way in several))
        await eventually("all streams are over", lambda: not services._streams)
        assert services._gate._admission.open == 0
        assert services._gate._turns == {}
        assert publisher.nodes == {}
        assert seen.open == 0
        assert len(seen.reasons) >= 250  # the rest never became a node's stream
        await eventually("no task is left", lambda: len(asyncio.all_tasks()) <= tasks)


async def _one(open_channel: Any, body: bytes | None, then: Callable[[Any], Any]) -> None:
    call = open_channel.stream_stream(METHOD)()
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        if body is not None:
            await call.write(body)
        await then(call)


async def _until_refused(call: Any) -> None:
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def _cancel(call: Any) -> None:
    call.cancel()


async def _read_cancel(call: Any) -> None:
    assert await call.read()
    call.cancel()


async def _done(call: Any) -> None:
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass
    assert await call.code() is grpc.StatusCode.OK


async def test_case_80_a_stream_on_which_nothing_is_said_is_ended() -> None:
    source, seen, port = Fixed(routes("1")), Recorder(), free_port()
    limits = XdsLimits(first_request_s=0.3)
    async with serving_fixed(source, port, seen, limits=limits) as services:
        async with channel(port) as open_channel:
            speaking: Any = open_channel.stream_stream(METHOD)()
            await speaking.write(first())
            assert await speaking.read()
            silent: Any = open_channel.stream_stream(METHOD)()
            start_s = time.monotonic()
            assert await silent.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert 0.25 < time.monotonic() - start_s < 2.0
            assert seen.refusals == {"first_request": 1}
            assert seen.reasons == []
            source.show(routes("2"))
            assert response(await speaking.read())
        await eventually("nothing is left", lambda: not services._streams)
