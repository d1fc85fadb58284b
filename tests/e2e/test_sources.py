"""Real Envoys follow what files, HTTP servers and a Docker Engine say of endpoints and prices."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.servers import DocumentServer, Engine, serving_document, serving_engine
from tests.contract.test_docker_discovery import container
from tests.e2e.envoy import eventually, free_port
from tests.e2e.served import Plane, ports, served
from tests.e2e.upstream import Traffic, serving

pytestmark = pytest.mark.e2e

MESH = """\
mesh: test
mode: enforce
engine: {{tick_s: 0.5, weights_ttl_s: 3.0, min_share_ratio: 0.02, max_shift_ratio: 0.5}}
telemetry: {{stats_flush_interval_s: 0.25, load_report_interval_s: 1.0}}
services:
  search:
    providers:
      f:
        discovery: {{adapter: file, path: ./f.yaml, refresh_s: 0.1}}
        price: {{per_million_requests_usd: 1.0}}
        capacity: {{concurrency: 16}}
      h:
        discovery: {{adapter: http, url: "{endpoints}", refresh_s: 0.1}}
        price:
          per_million_requests_usd: 1.0
          source: {{adapter: http, url: "{price}", refresh_s: 0.1}}
        capacity: {{concurrency: 16}}
      d:
        discovery: {{adapter: docker, url: "{docker}", refresh_s: 60}}
        price: {{per_million_requests_usd: 1.0}}
        capacity: {{concurrency: 16}}
templates:
  web:
    calls:
      search: {{timeout_s: 2.0, retries: 1, listener: "127.0.0.1:{listen}"}}
    profiles:
      steady: {{latency_p95_s: 0.5, weights: {{performance: 0.3, cost: 0.7}}}}
    phases: {{min_dwell_s: 1.0, blend_s: 1.0}}
applications:
  shop: {{template: web}}
server:
  xds: {{address: "127.0.0.1:{xds}"}}
  admin: {{address: "127.0.0.1:{admin}"}}
"""


class SourcedPlane(Plane):
    """The same process, with this mesh."""

    def __init__(self, folder: Path, ports: dict[str, int], urls: dict[str, str]) -> None:
        self._urls = urls
        super().__init__(folder, ports)

    def write(self, mode: str = "enforce", **changes: int) -> None:
        self.path.write_text(MESH.format(**self.ports, **self._urls))


class World:
    def __init__(
        self, folder: Path, plane: Plane, endpoints: DocumentServer, price: DocumentServer
    ) -> None:
        self.folder, self.plane = folder, plane
        self.endpoints, self.price = endpoints, price
        self.engine: Engine
        self.up: dict[str, int] = {}
        self.listeners: list[int] = []

    def say_file(self, text: str) -> None:
        (self.folder / "new").write_text(text)
        (self.folder / "new").rename(self.folder / "f.yaml")

    def say_http(self, name: str) -> None:
        entry = {"address": "127.0.0.1", "port": self.up[name]}
        self.endpoints.body = json.dumps({"endpoints": [entry]}).encode()
        self.endpoints.tag = f'"{name}"'

    def say_docker(self, name: str, **more: Any) -> dict[str, Any]:
        return container("127.0.0.1", str(self.up[name]), provider="d", **more)

    async def view(self, name: str) -> dict[str, Any]:
        (service,) = await self.plane.get("/v1/services")
        return next(p for p in service["providers"] if p["provider"] == name)

    async def share(self, name: str) -> list[float]:
        routes = (await self.plane.get("/v1/status"))["routes"]
        return [p["share"] for r in routes for p in r["providers"] if p["provider"] == name]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with (
        serving("f", "f2", "h", "h2", "d", "d2") as up,
        serving_document() as endpoints,
        serving_document() as price,
        serving_engine(tmp_path / "docker.sock") as (engine, docker),
    ):
        for upstream in up.values():
            upstream.delay_s = 0.005
        urls = {"endpoints": endpoints.url, "price": price.url, "docker": docker}
        plane = SourcedPlane(tmp_path, ports({}), urls)
        world = World(tmp_path, plane, endpoints, price)
        world.engine, world.up = engine, {name: u.port for name, u in up.items()}
        world.say_file(f"- {{address: 127.0.0.1, port: {world.up['f']}}}")
        world.say_http("h")
        engine.containers = [world.say_docker("d")]
        price.body = b'{"per_million_requests_usd": 1.0}'
        world.listeners = [free_port(), free_port()]
        apis = zip(("n0", "n1"), world.listeners, ("delta", "sotw"), strict=True)
        async with served(plane, *apis):
            yield world


async def moved(traffic: Traffic, old: str, new: str) -> None:
    """Return when ``new`` answers in the place of ``old``."""

    async def has_moved() -> bool:
        split = await traffic.split(60)
        return split.get(new, 0.0) > 0.0 and old not in split

    await eventually(f"{new} answers, and {old} no more", has_moved, within_s=15.0)


async def test_envoys_follow_files_http_servers_and_containers_without_a_failed_request(
    world: World,
) -> None:
    plane, up = world.plane, world.up
    first, second = (Traffic(port, gap_s=0.005) for port in world.listeners)
    async with first, second:
        both = (first, second)
        for traffic in both:
            await eventually(
                "all three answer", lambda t=traffic: {"f", "h", "d"} <= t.answers.keys()
            )

        world.say_file(f"- {{address: 127.0.0.1, port: {up['f2']}}}")
        for traffic in both:
            await moved(traffic, "f", "f2")

        world.say_http("h2")
        for traffic in both:
            await moved(traffic, "h", "h2")

        # Another container starts; then the first one's health check fails.
        world.engine.containers.append(world.say_docker("d2"))
        world.engine.say("start")
        for traffic in both:
            await eventually("it answers", lambda t=traffic: t.answers["d2"] > 0)
        world.engine.containers[0] = world.say_docker("d", status="Up 9 seconds (unhealthy)")
        world.engine.say("health_status: unhealthy")
        for traffic in both:
            await moved(traffic, "d", "d2")
        (endpoint,) = (await world.view("d"))["endpoints"]
        assert endpoint["source"] == "docker"

        # All three are lost at once: what they said last stays.
        world.say_file("- {address: 127.0.0.1}")
        world.endpoints.status = 500
        world.engine.answering = False
        world.engine.send(None)

        def lost() -> bool:
            said = plane.logged()
            reasons = {e["provider"]: e["reason"] for e in said if e["event"] == "discovery.lost"}
            assert "secret" not in str(reasons)
            return (
                f"{world.folder}/f.yaml:1: 0.port" in reasons.get("f", "")
                and "answers 500" in reasons.get("h", "")
                and "docker.sock" in reasons.get("d", "")
            )

        await eventually("each loss is said", lost)
        for traffic in both:
            assert {"f2", "h2", "d2"} >= (await traffic.split(200)).keys()
        assert first.failures == second.failures == []


async def test_the_engine_follows_a_price_that_an_http_server_says(world: World) -> None:
    async with Traffic(world.listeners[0], gap_s=0.005), Traffic(world.listeners[1], gap_s=0.005):

        async def even() -> bool:
            shares = await world.share("h")
            return len(shares) == 1 and shares[0] > 0.2

        await eventually("equal prices, equal shares", even, within_s=15.0)
        world.price.body = b'{"per_million_requests_usd": 20.0}'

        async def dearer() -> bool:
            shares = await world.share("h")
            return bool(shares) and max(shares) < 0.1

        await eventually("the dear one loses its traffic", dearer, within_s=15.0)
        price = (await world.view("h"))["price_per_million_usd"]
        assert (price["value"], price["source"]) == (20.0, "http")
        assert price["age_s"] < 2.0
        world.price.status = 503

        async def old() -> bool:
            price = (await world.view("h"))["price_per_million_usd"]
            return bool(price["value"] == 20.0 and price["age_s"] > 1.0)

        await eventually("it holds, and grows old", old, within_s=15.0)
        # At an equal price there would be no reason to move back; at a lower one there is.
        world.price.status, world.price.body = 200, b'{"per_million_requests_usd": 0.05}'

        async def cheaper() -> bool:
            shares = await world.share("h")
            return bool(shares) and min(shares) > 0.2

        await eventually("the cheap one gets traffic", cheaper, within_s=40.0)
