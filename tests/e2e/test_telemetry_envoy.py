"""What a real Envoy reports is what happened: counts, failures, latency, ORCA."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.plane import Recorder, WallClock, resources, shop
from tests.e2e.upstream import serving
from xds_server.cache.publisher import Publisher
from xds_server.core.histogram import quantile_s
from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.snapshot import Node
from xds_server.model.telemetry import COUNTERS, LATENCY_BUCKETS_MS, Floats, LoadReport, SampleBatch
from xds_server.model.topology import Mesh
from xds_server.registry.registry import Registry
from xds_server.resources.bootstrap import render_bootstrap
from xds_server.wire.ads import AggregatedDiscoveryService
from xds_server.wire.load_stats import LoadReportingService
from xds_server.wire.metrics_service import MetricsService

pytestmark = pytest.mark.e2e
FLUSH_S = 0.2
TIMEOUT_S = 0.3
NODE = Node("n1", "shop")


class Sums:
    """A sink that adds up what passes through it on its way to a registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.counts: dict[ProviderName, Floats] = {}
        self.hist: dict[ProviderName, Floats] = {}
        self.batches = 0

    @property
    def providers(self) -> frozenset[ProviderName]:
        return self.registry.providers

    def observe(self, batch: SampleBatch, now_s: float) -> None:
        self.batches += 1
        self.registry.observe(batch, now_s)
        for name, counts, hist in zip(
            batch.providers, batch.counts, batch.latency_hist, strict=True
        ):
            self.counts[name] = self.counts.get(name, np.zeros(len(COUNTERS))) + counts
            self.hist[name] = self.hist.get(name, np.zeros(len(hist))) + hist

    def observe_load(self, node_id: NodeId, reports: Iterable[LoadReport], now_s: float) -> None:
        self.registry.observe_load(node_id, reports, now_s)

    def of(self, provider: ProviderName, counter: str) -> int:
        counts = self.counts.get(provider, np.zeros(len(COUNTERS)))
        return int(counts[COUNTERS.index(counter)])


class Tally:
    """Counts what was dropped or refused."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()

    def telemetry(self, source: str, *, messages: int, samples: int, dropped: int) -> None:
        self.counted[f"{source} messages"] += messages
        self.counted[f"{source} samples"] += samples
        self.counted["dropped"] += dropped

    def telemetry_refused(self, source: str, reason: str) -> None:
        self.counted[f"{source} {reason}"] += 1


class Plane:
    """Everything that a sidecar speaks to, on one port that can die and come back."""

    def __init__(self, mesh: Mesh) -> None:
        self.port = mesh.server.xds.port
        clock, publisher = WallClock(), Publisher(mesh, resources(mesh))
        services = {p.name: p.service for p in mesh.providers.values()}
        registry = Registry(services, slot_s=1.0, load_valid_s=30.0)
        registry.node_connected(NODE, clock.now_s())
        self.sums, self.tally = Sums(registry), Tally()
        metrics = MetricsService(self.sums, self.tally, clock)
        load = LoadReportingService(self.sums, self.tally, clock, lambda: 0.3)
        self._ads = AggregatedDiscoveryService(publisher, Recorder(), clock)
        self._handlers = (self._ads.handler(), metrics.handler(), load.handler())

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(self._handlers)
        server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(grace=None)


def quick(
    ports: dict[str, int], *, retries: int = 0, timeout_s: float = TIMEOUT_S
) -> tuple[Mesh, int]:
    """A mesh with a short timeout, and the port that its sidecar listens on."""
    listen = free_port()
    mesh = shop(free_port(), listen, ports, retries=retries)
    template = mesh.templates["web"]
    call = replace(template.calls[0], timeout_s=timeout_s)
    template = replace(template, calls=(call,))
    application = replace(mesh.applications["shop"], template=template)
    mesh = replace(mesh, templates={"web": template}, applications={"shop": application})
    return mesh, listen


@asynccontextmanager
async def sidecar(mesh: Mesh, folder: Path) -> AsyncIterator[Envoy]:
    settings = {"admin.address": f"127.0.0.1:{free_port()}"}
    envoy = Envoy(render_bootstrap(mesh, "shop", NODE.node_id, settings), folder)
    await envoy.start()
    try:
        yield await envoy.ready()
    finally:
        await envoy.stop()


async def based(plane: Plane) -> None:
    """Wait until the node's first message, which only counts from where it is."""
    await eventually("a base", lambda: plane.tally.counted["metrics_service messages"] > 0)


async def send(port: int, count: int) -> Counter[int]:
    """Requests one after the other; how many answers had each status, 0 for a broken one."""
    answers: Counter[int] = Counter()
    async with aiohttp.ClientSession() as session:
        for _ in range(count):
            try:
                async with session.get(f"http://127.0.0.1:{port}/") as answer:
                    await answer.read()
                    answers[answer.status] += 1
            except aiohttp.ClientError:
                answers[0] += 1
    return answers


def without_endpoints(mesh: Mesh) -> Mesh:
    service = mesh.services["search"]
    bare = tuple(replace(p, endpoints=()) for p in service.providers)
    return replace(mesh, services={"search": replace(service, providers=bare)})


def orca(text: str) -> dict[str, str]:
    return {"endpoint-load-metrics": f"TEXT {text}"}


async def timed(port: int, count: int) -> list[float]:
    """How long each of these requests took, s."""
    spent, clock = [], asyncio.get_running_loop().time
    for _ in range(count):
        began_s = clock()
        await send(port, 1)
        spent.append(clock() - began_s)
    return spent


@asynccontextmanager
async def hanging() -> AsyncIterator[int]:
    """A port where connections are neither accepted nor refused: its backlog is full."""
    with socket.socket() as listener, ExitStack() as held:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@asynccontextmanager
async def breaking(after: bytes = b"") -> AsyncIterator[int]:
    """The port of a provider that reads a request, writes ``after`` and resets."""

    async def break_it(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        writer.write(after)
        await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(break_it, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def settled(plane: Plane, requests: int, errors: int) -> None:
    """Wait until the counts are these, and see that later messages leave them so."""

    def counts() -> tuple[int, int]:
        return plane.sums.of("a", "requests"), plane.sums.of("a", "errors")

    try:
        await eventually("counts", lambda: counts() == (requests, errors), within_s=3.0)
    except AssertionError:
        raise AssertionError(f"(requests, errors) are {counts()}") from None
    batches = plane.sums.batches
    await eventually("two messages more", lambda: plane.sums.batches >= batches + 2)
    assert counts() == (requests, errors)


async def test_counts_latencies_and_bytes_are_those_of_the_requests(tmp_path: Path) -> None:
    async with serving("a") as up:
        mesh, listen = quick({"a": up["a"].port})
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            assert await send(listen, 200) == {200: 200}
            await settled(plane, 200, 0)
            assert plane.sums.hist["a"].sum() == 200
            assert plane.sums.of("a", "rx_bytes") > 200 * 100
            assert plane.sums.of("a", "tx_bytes") > 200 * 50
            registry, now_s = plane.sums.registry, WallClock().now_s()
            registry.roll()
            window = registry.window(now_s, 5)
            assert window.requests.tolist() == [200.0]
            assert window.latency_count.tolist() == [200.0]
            signals = registry.signals(now_s)[0]
            assert signals.error_ratio == 0.0
            assert signals.rps_by_service["search"] == pytest.approx(200.0 / window.covered_s[0])
            assert plane.tally.counted["dropped"] == 0


FAILURES = {
    # what fails: answers that the client gets, whether it is retried
    "answers 503": (503, True),
    "is refused": (503, True),
    "resets": (503, True),
    "sends garbage": (502, True),
    "times out": (504, False),  # the timeout is the whole request's
    "has no endpoints": (503, False),
}


@asynccontextmanager
async def failing(how: str) -> AsyncIterator[int]:
    """A port where every request fails in that way."""
    match how:
        case "answers 503" | "times out":
            async with serving("a") as up:
                up["a"].status = 503 if how == "answers 503" else 200
                up["a"].delay_s = 2 * TIMEOUT_S if how == "times out" else 0.0
                yield up["a"].port
        case "resets" | "sends garbage":
            async with breaking(b"garbage\r\n\r\n" if how == "sends garbage" else b"") as port:
                yield port
        case _:
            yield free_port()


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("how", FAILURES)
async def test_each_failed_attempt_is_counted_once(how: str, retries: int, tmp_path: Path) -> None:
    status, retried = FAILURES[how]
    count = 4 if how == "times out" else 20
    async with failing(how) as port:
        mesh, listen = quick({"a": port}, retries=retries)
        if how == "has no endpoints":
            mesh = without_endpoints(mesh)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            assert await send(listen, count) == {status: count}
            attempts = count * (1 + retries) if retried else count
            await settled(plane, attempts, attempts)


@pytest.mark.parametrize("retries", [0, 1])
async def test_connections_that_hang_are_attempts_that_failed(retries: int, tmp_path: Path) -> None:
    async with hanging() as port:
        mesh, listen = quick({"a": port}, retries=retries)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path) as envoy:
            await based(plane)
            assert (await send(listen, 4)).total() == 4
            # Requests share the connection that hangs: how many are retried when it is given
            # up depends on when they came.
            retried = (await envoy.stats("cluster.a.upstream_rq_retry")).values()
            attempts = 4 + int(sum(retried))
            await settled(plane, attempts, attempts)


async def test_an_answer_that_breaks_off_is_an_attempt_whose_failure_envoy_hides(
    tmp_path: Path,
) -> None:
    async with breaking(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc") as port:
        mesh, listen = quick({"a": port}, retries=1)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            assert await send(listen, 1) == {0: 1}
            await settled(plane, 1, 0)


async def test_a_failure_that_a_retry_mends_is_counted(tmp_path: Path) -> None:
    async with serving("a") as up:
        up["a"].statuses = [503, 200]
        mesh, listen = quick({"a": up["a"].port}, retries=1)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            assert await send(listen, 20) == {200: 20}
            await settled(plane, 40, 20)


async def test_nothing_is_lost_while_the_sink_is_away(tmp_path: Path) -> None:
    async with serving("a") as up:
        mesh, listen = quick({"a": up["a"].port})
        plane = Plane(mesh)
        async with AsyncExitStack() as stack:
            async with plane.serving():
                await stack.enter_async_context(sidecar(mesh, tmp_path))
                await based(plane)
                assert await send(listen, 30) == {200: 30}
                await settled(plane, 30, 0)
            assert await send(listen, 50) == {200: 50}
            assert plane.sums.of("a", "requests") == 30
            async with plane.serving():
                await settled(plane, 80, 0)


async def test_the_95th_percentile_is_within_a_fifth(tmp_path: Path) -> None:
    async with serving("a") as up:
        mesh, listen = quick({"a": up["a"].port}, timeout_s=2.0)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            up["a"].delay_s = 0.02
            await send(listen, 90)
            up["a"].delay_s = 0.1
            spent = await timed(listen, 20)
            await settled(plane, 110, 0)
            measured = quantile_s(plane.sums.hist["a"], np.array(LATENCY_BUCKETS_MS) / 1e3, 0.95)
            assert measured == pytest.approx(np.median(spent), rel=0.2)


async def test_providers_say_their_utilisation_and_price_by_orca(tmp_path: Path) -> None:
    async with serving("a", "b") as up:
        mesh, listen = quick({"a": up["a"].port, "b": up["b"].port})
        plane = Plane(mesh)
        up["a"].headers = orca(
            "cpu_utilization=0.25, application_utilization=0.625, mem_utilization=0.5, "
            "named_metrics.price_per_million_requests_usd=4.5"
        )
        up["b"].headers = orca("cpu_utilization=0.375")
        async with plane.serving(), sidecar(mesh, tmp_path):
            registry = plane.sums.registry

            async def said() -> bool:
                await send(listen, 20)
                load = registry.provider_load(WallClock().now_s())
                return bool(np.isfinite(load.utilisation_ratio).all())

            await eventually("both are heard", said)
            load = registry.provider_load(WallClock().now_s())
            assert load.providers == ("a", "b")
            assert load.utilisation_ratio == pytest.approx([0.625, 0.375])
            assert load.memory_ratio == pytest.approx([0.5, np.nan], nan_ok=True)
            assert load.price_per_million_usd == pytest.approx([4.5, np.nan], nan_ok=True)
            up["a"].headers = orca("named_metrics.price_per_million_requests_usd=9")

            async def dearer() -> bool:
                await send(listen, 20)
                load = registry.provider_load(WallClock().now_s())
                return bool(load.price_per_million_usd[0] == pytest.approx(9.0))

            await eventually("the new price is heard", dearer)


async def test_garbage_ends_its_stream_and_no_other(tmp_path: Path) -> None:
    async with serving("a") as up:
        mesh, listen = quick({"a": up["a"].port})
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            for method, source in (
                ("envoy.service.metrics.v3.MetricsService/StreamMetrics", "metrics_service"),
                ("envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats", "load_stats"),
            ):
                async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}") as channel:
                    for body in (b"\xff\xff", b""):  # not a message; a message without a node
                        call: Any = channel.stream_stream(f"/{method}")(iter([body]))
                        with pytest.raises(grpc.aio.AioRpcError) as refused:
                            await call.read()
                        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
                assert plane.tally.counted[f"{source} malformed"] == 2
            await send(listen, 20)
            await settled(plane, 20, 0)
