"""Connections end and come back: by age, by silence. Real Envoys, the real server."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.plane import Recorder, WallClock, resources, shop
from tests.e2e.served import Plane, ports, served, sidecars
from tests.e2e.upstream import Traffic, Upstream, serving
from xds_server.app.clock import SystemClock
from xds_server.cache.publisher import Publisher
from xds_server.model.ids import CDS
from xds_server.model.topology import ServerSettings, XdsLimits
from xds_server.resources.bootstrap import render_bootstrap
from xds_server.wire.ads import AGGREGATED, DiscoveryServices
from xds_server.wire.server import serving as serving_grpc

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def planned(folder: Path, up: dict[str, Upstream], **xds: object) -> AsyncIterator[Plane]:
    """A control plane whose ``server.xds`` has these keys too."""
    plane = Plane(folder, ports(up))
    more = "".join(f"{key}: {value}, " for key, value in xds.items())
    text = plane.path.read_text()
    plane.path.write_text(text.replace("xds: {address: ", f"xds: {{{more}address: "))
    async with served(plane):
        yield plane


async def pushes(plane: Plane) -> dict[str, float]:
    """Responses by type that were no heartbeats; RTDS carries what changes all the time."""
    lines = (await plane.text("/metrics")).splitlines()
    wanted = [t for t in lines if t.startswith("xds_server_responses_total{") and '"push"' in t]
    counts = {t.split('type="')[1].split('"')[0]: float(t.rsplit(" ", 1)[1]) for t in wanted}
    return {kind: n for kind, n in counts.items() if kind != "RTDS"}


def absences(plane: Plane) -> list[float]:
    """How long the node was away each time, in seconds."""
    out, left = [], None
    for event in plane.logged():
        at = datetime.fromisoformat(event["timestamp"])
        if event["event"] == "xds.node_disconnected":
            left = at
        elif event["event"] == "xds.node_connected" and left is not None:
            out.append((at - left).total_seconds())
    return out


@pytest.mark.parametrize("api", ["delta", "sotw"])
async def test_old_connections_come_back_and_nothing_notices(tmp_path: Path, api: str) -> None:
    listen = free_port()
    async with (
        serving("a", "b") as up,
        planned(tmp_path, up, max_connection_age_s=1) as plane,
        sidecars(plane, ("n", listen, api)) as (envoy,),
        Traffic(listen, gap_s=0.01) as traffic,
    ):

        async def weighted() -> bool:
            return "routing.shop.search.a" in await envoy.runtime()

        await eventually("the engine's weights are there", weighted, within_s=15.0)
        before, looks = await pushes(plane), []

        async def came_back() -> bool:
            looks.append(await weighted())
            return len(absences(plane)) >= 3

        await eventually("it came back three times", came_back, within_s=20.0)
        assert max(absences(plane)) < 1.0
        assert all(looks)
        assert traffic.failures == []
        if api == "delta":
            assert await pushes(plane) == before  # nothing that it had came again
        status = await plane.get("/v1/status")
        assert status["nodes"][0]["phase_s"] > 5.0  # it is the same instance


async def test_case_76_a_frozen_envoy_is_noticed_and_comes_back(tmp_path: Path) -> None:
    keep = {"keepalive_s": 0.5, "keepalive_timeout_s": 0.5}
    async with (
        serving("a", "b") as up,
        planned(tmp_path, up, **keep) as plane,
        sidecars(plane, ("frozen", free_port(), "delta"), ("other", free_port(), "delta")) as (
            envoy,
            _,
        ),
    ):

        async def nodes() -> list[str]:
            return sorted(n["node_id"] for n in (await plane.get("/v1/status"))["nodes"])

        async def only_other() -> bool:
            return await nodes() == ["other"]

        async def both() -> bool:
            return await nodes() == ["frozen", "other"]

        await eventually("both are there", both)
        assert envoy._process is not None
        envoy._process.send_signal(signal.SIGSTOP)
        frozen_s = time.monotonic()
        try:
            await eventually("it is given up", only_other)
            assert time.monotonic() - frozen_s < 2.0  # both times, and a slow machine
        finally:
            envoy._process.send_signal(signal.SIGCONT)
        await eventually("it is back", both)


class Proxy:
    """Forwards TCP; what it has accepted before ``swallow`` goes nowhere, and stays open."""

    def __init__(self, to_port: int) -> None:
        self.port, self._to_port = 0, to_port
        self._epoch = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def swallow(self) -> None:
        self._epoch += 1

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.close()
            return
        epoch = self._epoch
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.ensure_future(self._pipe(source, sink, epoch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pipe(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, epoch: int
    ) -> None:
        try:
            while data := await source.read(65536):
                if epoch == self._epoch:
                    sink.write(data)
        except OSError:
            pass
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                sink.close()


async def test_a_network_that_swallows_is_noticed_from_both_ends(tmp_path: Path) -> None:
    mesh = shop(free_port(), free_port(), {"a": free_port()})
    limits = XdsLimits(keepalive_s=0.5, keepalive_timeout_s=0.5)
    mesh = replace(mesh, server=ServerSettings(xds=mesh.server.xds, limits=limits))
    publisher, seen = Publisher(mesh, resources(mesh)), Recorder()
    ads = DiscoveryServices(publisher, seen, WallClock(), limits=limits)
    async with serving_grpc(mesh.server, [ads.handler()]), Proxy(mesh.server.xds.port) as proxy:
        settings = {
            "admin.address": f"127.0.0.1:{free_port()}",
            "xds.address": f"127.0.0.1:{proxy.port}",
        }
        envoy = Envoy(render_bootstrap(mesh, "shop", "n1", settings), tmp_path)
        try:
            await (await envoy.start()).ready()
            await asyncio.sleep(2.0)  # four quiet keepalive times: nobody may tire of asking
            assert seen.reasons == []
            proxy.swallow()
            swallowed_s = time.monotonic()
            await eventually("the server notices", lambda: seen.reasons == ["client"])
            assert time.monotonic() - swallowed_s < 2.0
            await eventually("Envoy notices, and comes", lambda: seen.open == 1, within_s=12.0)
            assert time.monotonic() - swallowed_s < 5.0 + 2.0 + 1.0 + 1.0  # its own keepalive
        finally:
            await envoy.stop()


def first(node_id: str) -> bytes:
    node = base_pb2.Node(id=node_id, cluster="shop")
    body: bytes = discovery_pb2.DeltaDiscoveryRequest(node=node, type_url=CDS).SerializeToString()
    return body


async def test_a_grpc_client_s_old_stream_ends_and_the_same_channel_opens_the_next(
    tmp_path: Path,
) -> None:
    async with (
        serving("a", "b") as up,
        planned(tmp_path, up, max_connection_age_s=1) as plane,
        grpc.aio.insecure_channel(f"127.0.0.1:{plane.ports['xds']}") as channel,
    ):
        for _ in range(2):
            start_s = time.monotonic()
            call: Any = channel.stream_stream(f"/{AGGREGATED}/DeltaAggregatedResources")()
            await call.write(first("app"))
            assert await call.read()
            code = await call.code()
            assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            assert 2.5 < time.monotonic() - start_s < 4.5  # 1 s +-10 %, and 2 s of grace


async def test_case_82_serve_ends_a_stream_whose_certificate_expires(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = authority.issue_cert("plane.local")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    files = {"cert": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
    tls = ", ".join(f"{key}: {tmp_path / name}" for key, name in files.items())
    async with (
        serving("a", "b") as up,
        planned(tmp_path, up, tls=f"{{{tls}}}", auth_recheck_s=0.2) as plane,
    ):
        lives_s = 3.0
        until = datetime.fromtimestamp(SystemClock().wall_s() + lives_s, UTC)
        client = authority.issue_cert("app", not_after=until)
        credentials = grpc.ssl_channel_credentials(
            authority.cert_pem.bytes(),
            client.private_key_pem.bytes(),
            client.cert_chain_pems[0].bytes(),
        )
        options = [("grpc.ssl_target_name_override", "plane.local")]
        target = f"127.0.0.1:{plane.ports['xds']}"
        async with grpc.aio.secure_channel(target, credentials, options) as channel:
            call: Any = channel.stream_stream(f"/{AGGREGATED}/DeltaAggregatedResources")()
            await call.write(first("app"))
            assert await call.read()
            async with asyncio.timeout(lives_s + 2.0):
                assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert [
            e["node_id"] for e in plane.logged() if e["event"] == "xds.certificate_expired"
        ] == ["app"]
