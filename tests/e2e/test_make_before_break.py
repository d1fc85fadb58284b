"""Providers come and go under traffic: none carries any before, or is gone while, it is used."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.plane import GROUP, Recorder, WallClock, listening, overlay, resources, shop
from tests.e2e.telemetry import Tally
from tests.e2e.upstream import Traffic, serving
from xds_server.cache.publisher import Publisher
from xds_server.model.ids import CDS, RDS
from xds_server.model.snapshot import Node
from xds_server.model.topology import Mesh, WeightsVia
from xds_server.protocol.events import Nacked
from xds_server.protocol.status import Standing
from xds_server.registry.registry import Registry
from xds_server.wire.ads import DiscoveryServices
from xds_server.wire.metrics_service import MetricsService

pytestmark = pytest.mark.e2e
DRAIN_S = 1.5


class Plane:
    """Publisher, registry and wire without an engine: tests say what the weights are."""

    def __init__(self, mesh: Mesh) -> None:
        self.clock, self.seen = WallClock(), Recorder()
        self.publisher = Publisher(mesh, resources(mesh))
        self.registry = Registry(_services(mesh), slot_s=1.0, load_valid_s=30.0)
        self.ads = DiscoveryServices(self, self.seen, self.clock, cluster_drain_s=lambda: DRAIN_S)
        self._metrics = MetricsService(self.registry, Tally(), self.clock, self.ads.speakers)
        self._port = mesh.server.xds.port

    def connect(self, node: Node) -> Any:
        self.registry.node_connected(node, self.clock.now_s())
        return self.publisher.connect(node)

    def disconnect(self, handle: Any) -> None:
        self.publisher.disconnect(handle)
        self.registry.node_disconnected(handle.node.node_id)

    def uses_runtime(self, handle: Any) -> None:
        self.publisher.uses_runtime(handle)

    def reload(self, mesh: Mesh) -> None:
        self.registry.set_providers(_services(mesh), slot_s=1.0, load_valid_s=30.0)
        self.publisher.set_mesh(mesh, resources(mesh), self.clock.now_s())

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with listening(self.ads.handler(), self._metrics.handler(), port=self._port):
            ticking = asyncio.create_task(self._tick())
            try:
                yield
            finally:
                ticking.cancel()

    async def _tick(self) -> None:
        while True:
            now_s = self.clock.now_s()
            for node_id in self.publisher.waiting:
                age_s = self.registry.telemetry_age_s(node_id, now_s)
                self.publisher.see(node_id, self.registry.hosts(node_id), age_s, now_s)
            self.publisher.renew(now_s)
            await asyncio.sleep(0.1)


def _services(mesh: Mesh) -> dict[str, str]:
    return {p.name: p.service for p in mesh.providers.values()}


def bare(mesh: Mesh, name: str) -> Mesh:
    """The same, but that provider has no endpoints."""
    service = mesh.services["search"]
    providers = tuple(replace(p, endpoints=()) if p.name == name else p for p in service.providers)
    return replace(mesh, services={"search": replace(service, providers=providers)})


@pytest.mark.parametrize("via", [WeightsVia.RTDS, WeightsVia.RDS])
@pytest.mark.parametrize("planned", [True, False], ids=["engine", "baseline"])
async def test_case_62_and_63_a_provider_carries_nothing_before_its_hosts_are_seen(
    sidecar: Callable[[Mesh], Envoy], via: WeightsVia, planned: bool
) -> None:
    async with serving("a", "b") as up:
        listen, xds = free_port(), free_port()
        ports = {n: u.port for n, u in up.items()}
        before = shop(xds, listen, {"a": ports["a"]}, via=via)
        after = shop(xds, listen, ports, via=via)
        plane = Plane(before)
        async with plane.serving():
            await (await sidecar(before).start()).ready()
            plane.publisher.set_group("n1", GROUP)
            async with Traffic(listen) as traffic:
                await traffic.split(20)
                plane.reload(bare(after, "b"))
                if planned:  # everything to the new one
                    plane.publisher.publish(overlay(a=1, b=9_999), plane.clock.now_s())
                want = plane.publisher.nodes["n1"].snapshot()

                def applied() -> bool:
                    acked = {
                        (s.type_url, s.name): s.version_acked
                        for s in plane.ads.streams[0].resources()
                        if s.state is Standing.ACKED
                    }
                    return all(
                        acked.get((url, name)) == r.version
                        for url in (CDS, RDS)
                        for name, r in want.of(url).resources.items()
                    )

                await eventually("the route that names it is applied", applied)
                assert set(await traffic.split(200)) == {"a"}
                assert plane.publisher.waits_for("n1") == {"b"}
                plane.reload(after)
                await eventually("it is seen", lambda: not plane.publisher.waits_for("n1"))
                await eventually("it serves", lambda: traffic.answers["b"] > 0)
                share = (await traffic.split(200)).get("b", 0.0)
                assert share > (0.9 if planned else 0.3)
                assert traffic.failures == []
            assert not [e for e in plane.seen.events if isinstance(e, Nacked)]


async def test_case_64_what_is_still_being_answered_is_not_cut_off(
    sidecar: Callable[[Mesh], Envoy],
) -> None:
    async with serving("a", "b") as up:
        listen, xds = free_port(), free_port()
        ports = {n: u.port for n, u in up.items()}
        before = shop(xds, listen, ports, retries=1)
        after = shop(xds, listen, {"a": ports["a"]}, retries=1)
        up["b"].delay_s = 1.0
        plane = Plane(before)
        async with plane.serving():
            envoy = await (await sidecar(before).start()).ready()
            async with Traffic(listen, workers=4) as traffic:
                await eventually("b serves", lambda: traffic.answers["b"] > 2)
                plane.reload(after)

                want = plane.publisher.nodes["n1"].snapshot().of(RDS).version
                progress = plane.ads.streams[0].progress
                await eventually(
                    "routes without it are applied", lambda: progress()[RDS].version_acked == want
                )
                assert "b::" in await envoy.get("/clusters")

                async def gone() -> bool:
                    return "b::" not in await envoy.get("/clusters")

                await eventually("it is removed after its drain", gone)
                await traffic.split(20)
                assert traffic.failures == []
