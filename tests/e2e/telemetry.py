"""The receiving half of the control plane, and providers that fail, for telemetry tests."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.plane import Recorder, WallClock, listening, resources, shop
from xds_server.cache.publisher import Publisher
from xds_server.model.calls import CallBatch
from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.snapshot import Node
from xds_server.model.telemetry import COUNTERS, Floats, LoadReport, SampleBatch
from xds_server.model.topology import Mesh
from xds_server.registry.registry import Registry
from xds_server.resources.bootstrap import render_bootstrap
from xds_server.wire.access_log_service import AccessLogService
from xds_server.wire.ads import DiscoveryServices
from xds_server.wire.load_stats import LoadReportingService
from xds_server.wire.metrics_service import MetricsService
from xds_server.wire.otlp_service import OtlpService

TIMEOUT_S = 0.3
NODE = Node("n1", "shop")


class Sums:
    """A sink that adds up what passes through it on its way to a registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.counts: dict[ProviderName, Floats] = {}
        self.hist: dict[ProviderName, Floats] = {}
        self.batches = 0
        self.loads: list[tuple[float, tuple[LoadReport, ...]]] = []

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
        kept = tuple(reports)
        self.loads.append((now_s, kept))
        self.registry.observe_load(node_id, kept, now_s)

    def observe_hosts(self, node_id: NodeId, hosts: Mapping[str, float], now_s: float) -> None:
        self.registry.observe_hosts(node_id, hosts, now_s)

    def observe_calls(self, batch: CallBatch, now_s: float) -> None:
        self.registry.observe_calls(batch, now_s)

    def of(self, provider: ProviderName, counter: str) -> int:
        counts = self.counts.get(provider, np.zeros(len(COUNTERS)))
        return int(counts[COUNTERS.index(counter)])


class Tally:
    """Counts what was taken in, and what was refused."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.events: Counter[str] = Counter()

    def telemetry(self, source: str, *, messages: int, samples: int) -> None:
        self.counted[f"{source} messages"] += messages
        self.counted[f"{source} samples"] += samples

    def telemetry_refused(self, source: str, reason: str, count: int = 1) -> None:
        self.refused[f"{source} {reason}"] += count

    def telemetry_event(self, source: str, event: str) -> None:
        self.events[f"{source} {event}"] += 1


class Plane:
    """Everything that a sidecar speaks to, on one port that can die and come back."""

    def __init__(self, mesh: Mesh) -> None:
        self.port = mesh.server.xds.port
        clock, publisher = WallClock(), Publisher(mesh, resources(mesh))
        services = {p.name: p.service for p in mesh.providers.values()}
        registry = Registry(services, slot_s=1.0, load_valid_s=30.0)
        registry.node_connected(NODE, clock.now_s())
        self.sums, self.tally = Sums(registry), Tally()
        self._ads = DiscoveryServices(publisher, Recorder(), clock)
        speakers = self._ads.speakers
        metrics = MetricsService(self.sums, self.tally, clock, speakers)
        load = LoadReportingService(self.sums, self.tally, clock, speakers, lambda: 0.3)
        otlp = OtlpService(self.sums, self.tally, clock, speakers)
        calls = AccessLogService(self.sums, self.tally, clock, speakers)
        parts = (self._ads, metrics, load, otlp, calls)
        self._handlers = tuple(part.handler() for part in parts)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with listening(*self._handlers, port=self.port):
            yield


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


async def based(plane: Plane, source: str = "metrics_service") -> None:
    """Wait until the node's first message, which only counts from where it is."""
    await eventually("a base", lambda: plane.tally.counted[f"{source} messages"] > 0)


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
