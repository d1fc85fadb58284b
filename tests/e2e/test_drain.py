"""SIGTERM: clients go elsewhere one after the other, and are served until they do."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from grpc_health.v1 import health_pb2

from tests.e2e.envoy import eventually, free_port
from tests.e2e.served import Plane, sidecars
from tests.e2e.test_connections import planned
from tests.e2e.upstream import Traffic, serving
from xds_server.model.ids import CDS, EDS
from xds_server.wire.ads import AGGREGATED

pytestmark = pytest.mark.e2e
METHOD = f"/{AGGREGATED}/DeltaAggregatedResources"
STREAMS = 20


def request(**fields: Any) -> bytes:
    return discovery_pb2.DeltaDiscoveryRequest(**fields).SerializeToString()


@dataclass
class Client:
    """Asks for a cluster's endpoints again and again, and counts what it is owed."""

    call: Any
    answered: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    code: grpc.StatusCode | None = None
    owed: int = 0

    async def start(self, name: str) -> None:
        node = base_pb2.Node(id=name, cluster="shop")
        await self.call.write(request(node=node, type_url=CDS))
        await self._ack(CDS, await self.call.read())

    async def run(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await self.call.write(request(type_url=EDS, resource_names_subscribe=["a"]))
                self.owed += 1
                body = await self.call.read()
                if body is grpc.aio.EOF:
                    break
                self.owed -= 1
                self.answered.append(time.monotonic())
                await self._ack(EDS, body)
                await self.call.write(request(type_url=EDS, resource_names_unsubscribe=["a"]))
                await asyncio.sleep(0.05)
        self.ended_s = time.monotonic()
        self.code = await self.call.code()

    async def _ack(self, type_url: str, body: bytes) -> None:
        nonce = discovery_pb2.DeltaDiscoveryResponse.FromString(body).nonce
        await self.call.write(request(type_url=type_url, response_nonce=nonce))


@asynccontextmanager
async def clients(plane: Plane, count: int) -> AsyncIterator[tuple[list[Client], Any]]:
    target = f"127.0.0.1:{plane.ports['xds']}"
    async with grpc.aio.insecure_channel(target) as channel:
        out = [Client(channel.stream_stream(METHOD)()) for _ in range(count)]
        for i, client in enumerate(out):
            await client.start(f"c{i}")
        yield out, channel


async def late(plane: Plane) -> grpc.StatusCode:
    """What becomes of a stream that is opened now."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.ports['xds']}") as channel:
        call: Any = channel.stream_stream(METHOD)()
        code: grpc.StatusCode = await call.code()
        return code


async def unready(plane: Plane) -> bool:
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{plane.ports['admin']}/readyz"
        async with session.get(url) as answer:
            return answer.status == 503


async def test_case_81_streams_end_over_the_window_and_are_served_until_then(
    tmp_path: Path,
) -> None:
    listen = free_port()
    async with (
        serving("a", "b") as up,
        planned(tmp_path, up, drain_s=2) as plane,
        sidecars(plane, ("n", listen, "delta")),
        Traffic(listen, gap_s=0.01) as traffic,
        clients(plane, STREAMS) as (open_streams, channel),
    ):
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        first = health_pb2.HealthCheckResponse.FromString(await watch.read())
        assert first.status == health_pb2.HealthCheckResponse.SERVING
        running = [asyncio.ensure_future(client.run()) for client in open_streams]
        await eventually("all are served", lambda: all(c.answered for c in open_streams))
        assert plane.process is not None
        plane.process.send_signal(signal.SIGTERM)
        term_s = time.monotonic()
        second = health_pb2.HealthCheckResponse.FromString(await watch.read())
        assert second.status == health_pb2.HealthCheckResponse.NOT_SERVING
        await eventually("it is not ready", lambda: unready(plane))
        assert sum(not c.ended_s for c in open_streams) > STREAMS / 2
        assert await late(plane) is grpc.StatusCode.UNAVAILABLE

        await asyncio.gather(*running)
        ends = sorted(c.ended_s - term_s for c in open_streams)
        # A client that writes just when its stream has ended gets INTERNAL from its own library.
        codes = {c.code for c in open_streams}
        assert grpc.StatusCode.OK in codes
        assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.INTERNAL}
        assert "xds.stream_failed" not in plane.log.read_text()
        assert ends[-1] - ends[0] > 1.0  # over the window of 2 s, and not all at once
        assert max(b - a for a, b in pairwise(ends)) < 1.0  # one by one
        for client in open_streams:
            # What it asks in the last moment before its end may cross with it; no more.
            assert client.owed <= 1
            assert client.answered[-1] > client.ended_s - 1.0

        async with asyncio.timeout(10.0):
            assert await plane.process.wait() == 0
        assert traffic.failures == []


async def test_case_81_an_envoy_finds_the_next_server_and_loses_nothing(tmp_path: Path) -> None:
    listen = free_port()
    async with (
        serving("a", "b") as up,
        planned(tmp_path, up, drain_s=1) as plane,
        sidecars(plane, ("n", listen, "delta")) as (envoy,),
        Traffic(listen, gap_s=0.01) as traffic,
    ):
        assert await plane.end(signal.SIGTERM) == 0
        await plane.start()

        async def connected() -> bool:
            return [n["node_id"] for n in (await plane.get("/v1/status"))["nodes"]] == ["n"]

        await eventually("it is back", connected)
        assert traffic.failures == []
        assert "[critical]" not in envoy.log.read_text()


async def test_case_81_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    async with (
        serving("a", "b") as up,
        planned(tmp_path, up, drain_s=60) as plane,
        clients(plane, 5) as (_, channel),
    ):
        del channel
        assert plane.process is not None
        plane.process.send_signal(signal.SIGTERM)
        await eventually("it drains", lambda: unready(plane))
        start_s = time.monotonic()
        assert await plane.end(signal.SIGTERM) == 0
        assert time.monotonic() - start_s < 2.0
        assert "server.stopping_at_once" in await plane.events()
