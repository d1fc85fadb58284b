"""What real Envoys report is what happened, whoever restarts, whoever lies meanwhile."""

import asyncio
import base64
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from xds.data.orca.v3 import orca_load_report_pb2

from tests.e2e.envoy import eventually
from tests.e2e.plane import WallClock
from tests.e2e.served import ports, served
from tests.e2e.telemetry import NODE, Plane, based, quick, send, settled, sidecar
from tests.e2e.test_history import Kept
from tests.e2e.upstream import serving
from tests.unit.telemetry_messages import Message
from xds_server.core.histogram import quantile_s
from xds_server.model.ids import CDS
from xds_server.model.telemetry import LATENCY_BUCKETS_MS
from xds_server.wire.ads import AGGREGATED

pytestmark = pytest.mark.e2e

METRICS = "/envoy.service.metrics.v3.MetricsService/StreamMetrics"
STATED_ERROR = 0.2
"""Of a quantile above 5 ms (``model/telemetry.py``)."""


@dataclass
class Metered:
    """An HTTP/1.1 provider that counts every byte and how long it took over each request."""

    delays_s: Sequence[float] = (0.0,)
    statuses: Sequence[int] = (200,)
    port: int = 0
    answered: Counter[int] = field(default_factory=Counter)
    read_bytes: int = 0
    written_bytes: int = 0
    spent_s: list[float] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                began_s, turn = clock(), self.answered.total()
                status = self.statuses[turn % len(self.statuses)]
                self.answered[status] += 1
                await asyncio.sleep(self.delays_s[turn % len(self.delays_s)])
                answer = b"HTTP/1.1 %d X\r\ncontent-length: 37\r\n\r\n%s" % (status, b"x" * 37)
                self.read_bytes += len(request)
                self.written_bytes += len(answer)
                writer.write(answer)
                await writer.drain()
                self.spent_s.append(clock() - began_s)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def metered(provider: Metered) -> AsyncIterator[Metered]:
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.port = server.sockets[0].getsockname()[1]
    try:
        yield provider
    finally:
        server.close()


async def together(port: int, count: int, at_once: int) -> list[float]:
    """How long each of these requests took its client, s."""
    spent: list[float] = []
    clock = asyncio.get_running_loop().time
    left = iter(range(count))
    async with aiohttp.ClientSession() as session:

        async def work() -> None:
            for _ in left:
                began_s = clock()
                async with session.get(f"http://127.0.0.1:{port}/") as answer:
                    await answer.read()
                spent.append(clock() - began_s)

        await asyncio.gather(*(work() for _ in range(at_once)))
    return spent


async def test_counts_errors_bytes_and_quantiles_are_those_of_the_traffic(tmp_path: Path) -> None:
    delays_s = np.random.default_rng(5).permutation(np.geomspace(0.02, 0.4, 120)).tolist()
    statuses = [200] * 9 + [503]
    async with metered(Metered(delays_s, statuses)) as provider:
        mesh, listen = quick({"a": provider.port}, timeout_s=5.0)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            seen_s = await together(listen, 240, at_once=12)
            assert provider.answered == {200: 216, 503: 24}
            await settled(plane, 240, 24)
            registry, now_s = plane.sums.registry, WallClock().now_s()
            registry.roll()
            window = registry.window(now_s, 5)
            assert (window.requests.tolist(), window.errors.tolist()) == ([240.0], [24.0])
            assert window.latency_count.tolist() == [240.0]
            assert window.rx_bytes.tolist() == [provider.written_bytes]
            assert window.tx_bytes.tolist() == [provider.read_bytes]
            bounds_s = np.array(LATENCY_BUCKETS_MS) / 1e3
            for quantile in (0.5, 0.95, 0.99):
                found = quantile_s(window.latency_hist[0], bounds_s, quantile)
                least = float(np.quantile(provider.spent_s, quantile))
                most = float(np.quantile(seen_s, quantile))
                assert least * (1 - STATED_ERROR) <= found <= most * (1 + STATED_ERROR), quantile
            mean_s = float(window.latency_sum_s[0] / window.latency_count[0])
            assert mean_s == pytest.approx(np.mean(provider.spent_s), rel=STATED_ERROR)
            (signals,) = registry.signals(now_s)
            assert signals.error_ratio == pytest.approx(0.1)
            assert plane.tally.refused.keys() <= {"metrics_service no ADS stream"}


async def test_counts_are_exact_over_a_restart_and_never_doubled_by_a_kill(tmp_path: Path) -> None:
    async with serving("a", "b") as up:
        plane = Kept(tmp_path, ports(up))
        listen = plane.ports["listen"]
        async with served(plane, ("n0", listen, "delta")):

            async def reports() -> bool:
                nodes = (await plane.get("/v1/status"))["nodes"]
                return bool(nodes) and (nodes[0]["telemetry_age_s"] or 99.0) < 1.0

            def sent() -> dict[str, int]:
                return {n: u.requests for n, u in up.items()}

            async def all_there() -> bool:
                return await plane.requests() == sent()

            await eventually("the sidecar reports", reports)
            assert await send(listen, 60) == {200: 60}
            assert await plane.end(signal.SIGTERM) == 0
            assert await send(listen, 40) == {200: 40}  # no control plane is there
            await plane.start()
            assert await send(listen, 30) == {200: 30}
            await eventually("every request is in history", all_there)

            before = sum(sent().values())
            await plane.end(signal.SIGKILL)
            assert await send(listen, 20) == {200: 20}  # these are lost
            await plane.start()
            await eventually("the sidecar reports again", reports)
            assert await send(listen, 10) == {200: 10}

            async def counted() -> bool:
                return sum((await plane.requests()).values()) >= before + 10

            await eventually("what came after is there", counted)
            assert sum((await plane.requests()).values()) == before + 10


async def test_who_lies_about_a_real_envoy_is_refused_and_its_counts_stay_right(
    tmp_path: Path,
) -> None:
    async with serving("a") as up, AsyncExitStack() as stack:
        mesh, listen = quick({"a": up["a"].port})
        plane = Plane(mesh)
        async with plane.serving():
            await stack.enter_async_context(sidecar(mesh, tmp_path))
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}")
            )
            await based(plane)
            ads: Any = channel.stream_stream(f"/{AGGREGATED}/DeltaAggregatedResources")()
            liar = base_pb2.Node(id="liar", cluster="shop")
            first = discovery_pb2.DeltaDiscoveryRequest(node=liar, type_url=CDS)
            await ads.write(first.SerializeToString())
            await ads.read()
            assert await send(listen, 20) == {200: 20}
            for _ in range(3):
                call: Any = channel.stream_unary(METRICS)()
                await call.write(Message(NODE.node_id).counts("a", total=1e6).body)
                assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
                said = await call.details()
                assert "'liar'" in said
                assert f"'{NODE.node_id}'" in said
            assert plane.tally.refused["metrics_service wrong node"] == 3
            assert await send(listen, 20) == {200: 20}
            await settled(plane, 40, 0)
            ads.cancel()
        assert await send(listen, 20) == {200: 20}
        async with plane.serving():  # the sink is back before the ADS stream, and waits for it
            await settled(plane, 60, 0)
        assert "metrics_service reset" not in plane.tally.events
        assert plane.tally.refused["metrics_service wrong node"] == 3  # the Envoy never was
        assert plane.tally.refused["load_stats wrong node"] == 0


def _report() -> orca_load_report_pb2.OrcaLoadReport:
    said = {"price_per_million_requests_usd": 4.5, "cost": 0.25}
    return orca_load_report_pb2.OrcaLoadReport(
        cpu_utilization=0.25, mem_utilization=0.5, application_utilization=0.625, named_metrics=said
    )


TEXT = (
    "cpu_utilization=0.25, mem_utilization=0.5, application_utilization=0.625, "
    "named_metrics.price_per_million_requests_usd=4.5, named_metrics.cost=0.25"
)
JSON = (
    '{"cpu_utilization": 0.25, "mem_utilization": 0.5, "application_utilization": 0.625, '
    '"named_metrics": {"price_per_million_requests_usd": 4.5, "cost": 0.25}}'
)
BINARY = base64.b64encode(_report().SerializeToString()).decode()
FORMS = {
    "text": {"endpoint-load-metrics": f"TEXT {TEXT}"},
    "json": {"endpoint-load-metrics": f"JSON {JSON}"},
    "binary": {"endpoint-load-metrics-bin": BINARY},
    "binary by prefix": {"endpoint-load-metrics": f"BIN {BINARY}"},
    "cpu only": {"endpoint-load-metrics": "TEXT cpu_utilization=0.375"},
}


async def _in_trailers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request with trailers after its body."""
    try:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
            writer.write(head + f"endpoint-load-metrics: TEXT {TEXT}\r\n\r\n".encode())
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def test_orca_is_exact_in_every_form(tmp_path: Path) -> None:
    names = [f"p{k}" for k in range(len(FORMS))]
    async with serving(*names) as up, AsyncExitStack() as stack:
        for name, headers in zip(names, FORMS.values(), strict=True):
            up[name].headers = headers
        last = await asyncio.start_server(_in_trailers, "127.0.0.1", 0)
        stack.callback(last.close)
        ports = {name: up[name].port for name in names}
        ports["trailers"] = last.sockets[0].getsockname()[1]
        mesh, listen = quick(ports)
        plane = Plane(mesh)
        registry = plane.sums.registry
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)

            async def heard() -> bool:
                await send(listen, 20)
                load = registry.provider_load(WallClock().now_s())
                return bool(np.isfinite(load.utilisation_ratio).all())

            await eventually("every form is heard", heard)
            load = registry.provider_load(WallClock().now_s())
            found = {
                form: (load.utilisation_ratio[k], load.memory_ratio[k],
                       load.price_per_million_usd[k])
                for form, k in zip(
                    (*FORMS, "trailers"), map(load.providers.index, ports), strict=True
                )
            }  # fmt: skip
            exact = pytest.approx((0.625, 0.5, 4.5), rel=1e-12)
            for form in ("text", "json", "binary", "binary by prefix", "trailers"):
                assert found[form] == exact, form
            assert found["cpu only"] == pytest.approx(
                (0.375, np.nan, np.nan), rel=1e-12, nan_ok=True
            )
            assert not [reason for reason in plane.tally.refused if "load_stats" in reason]
