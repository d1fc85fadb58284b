"""The whole product as its user runs it: `xds-server serve`, `bootstrap`, real Envoys."""

import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.served import TTL_S, Plane, ports, served, xds_server
from tests.e2e.upstream import Traffic, Upstream, serving

pytestmark = pytest.mark.e2e


class World:
    def __init__(
        self, plane: Plane, envoys: list[Envoy], up: dict[str, Upstream], ports: list[int]
    ) -> None:
        self.plane, self.envoys, self.up, self.listeners = plane, envoys, up, ports

    async def share(self, provider: str) -> list[float]:
        """Weights asked for, as the status says them, of every route."""
        routes = (await self.plane.get("/v1/status"))["routes"]
        return [p["share"] for r in routes for p in r["providers"] if p["provider"] == provider]

    async def overridden(self) -> list[bool]:
        """Whether each Envoy's runtime has the engine's weights."""
        return ["routing.shop.search.a" in await e.runtime() for e in self.envoys]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serving("a", "b") as up:
        for upstream in up.values():
            upstream.delay_s = 0.01
        plane, listeners = Plane(tmp_path, ports(up)), [free_port(), free_port()]
        apis = zip(("n0", "n1"), listeners, ("delta", "sotw"), strict=True)
        async with served(plane, *apis) as envoys:
            yield World(plane, envoys, up, listeners)


async def test_a_slow_provider_loses_traffic_and_everything_survives_the_controller(
    world: World,
) -> None:
    plane = world.plane
    first, second = (Traffic(port, gap_s=0.01) for port in world.listeners)
    async with first, second:

        async def measured() -> bool:
            status = await plane.get("/v1/status")
            ages = [n["telemetry_age_s"] for n in status["nodes"]]
            return len(ages) == 2 and all(a is not None and a < 1.0 for a in ages)

        await eventually("both sidecars report", measured, within_s=15.0)
        status = await plane.get("/v1/status")
        assert {n["protocol"] for n in status["nodes"]} == {"delta", "sotw"}
        assert all(t["version_acked"] == t["version_sent"] or t["type"] == "RTDS"
                   for n in status["nodes"] for t in n["types"])  # fmt: skip
        assert all(t["nacks"] == 0 for n in status["nodes"] for t in n["types"])

        world.up["a"].delay_s = 0.2

        async def shed() -> bool:
            shares = await world.share("a")
            return bool(shares) and max(shares) < 0.2

        await eventually("a sheds its traffic", shed, within_s=10.0)
        await eventually("Envoys follow", lambda: _split_below(first, "a", 0.35), within_s=10.0)
        explained = await plane.get("/v1/explain/shop/search")
        terms = {t["provider"]: t for t in explained[0]["terms"]}
        assert terms["a"]["total_ms"] > terms["b"]["total_ms"]

        # Killed: Envoy goes back to the baseline by itself, and no request is lost.
        assert all(await world.overridden())
        await plane.end(signal.SIGKILL)
        killed_s = time.monotonic()

        async def back() -> bool:
            return not any(await world.overridden())

        await eventually("the baseline is back", back, within_s=TTL_S + 1.0)
        assert time.monotonic() - killed_s <= TTL_S + 1.0
        assert 0.5 < (await first.split(100))["a"] < 0.9

        world.up["a"].delay_s = 0.01
        await plane.start()
        await eventually("both are back", measured, within_s=15.0)

        async def resumed() -> bool:
            return all(await world.overridden())

        await eventually("the engine's weights are back", resumed, within_s=15.0)
        assert first.failures == []
        assert second.failures == []
    assert [e.log.read_text() for e in world.envoys if "[critical]" in e.log.read_text()] == []


async def _split_below(traffic: Traffic, name: str, most: float) -> bool:
    return (await traffic.split(60)).get(name, 0.0) < most


async def test_a_bad_change_is_refused_and_a_good_one_is_taken_while_traffic_flows(
    world: World,
) -> None:
    plane = world.plane
    async with serving("c") as more, Traffic(world.listeners[0], gap_s=0.01) as traffic:
        await traffic.split(30)
        good = plane.path.read_text()
        plane.path.write_text(good.replace("timeout_s: 2.0", "timeout_ms: 2000"))

        async def refused() -> str:
            return str((await plane.get("/v1/status"))["config_error"])

        reason = await eventually("the bad change is refused", refused)
        line = 1 + next(i for i, t in enumerate(good.splitlines()) if "timeout_s" in t)
        assert f"{plane.path}:{line}" in reason
        assert "timeout_ms" in reason
        assert "timeout_s" in reason
        await traffic.split(30)

        plane.write(b=more["c"].port)

        async def moved() -> bool:
            return (await plane.get("/v1/status"))["config_error"] == "" and more["c"].requests > 0

        await eventually("b's new endpoint serves", moved)
        asked = world.up["b"].requests
        await traffic.split(60)
        assert world.up["b"].requests - asked <= 2  # in flight when it moved
        assert traffic.failures == []


async def test_leaving_enforce_returns_every_sidecar_to_its_baseline(world: World) -> None:
    async with Traffic(world.listeners[0], gap_s=0.01), Traffic(world.listeners[1], gap_s=0.01):

        async def planned() -> bool:
            return all(await world.overridden())

        await eventually("the engine has published", planned, within_s=15.0)
        world.plane.write(mode="observe")

        async def baseline() -> bool:
            return not any(await world.overridden())

        await eventually("weights are withdrawn", baseline)


async def test_sigterm_ends_it_cleanly(world: World) -> None:
    assert await world.plane.end(signal.SIGTERM) == 0
    events = await world.plane.events()
    assert events[-1] == "server.stopped"
    assert "xds.node_connected" in events


async def test_a_taken_port_is_said_in_one_line(world: World) -> None:
    out = await xds_server("serve", "-c", world.plane.path)
    assert out.returncode == 1
    assert "cannot listen" in out.stderr
    assert "Traceback" not in out.stderr
