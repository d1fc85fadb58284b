"""Suppositions about a mesh with a real Envoy: what was foretold comes true."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.envoy import eventually
from tests.e2e.served import Plane, ports, served
from tests.e2e.upstream import Traffic, Upstream, serving

pytestmark = pytest.mark.e2e
FRUGAL = "      frugal: {when: 'instance.rps < 0.0', weights: {performance: 0.1, cost: 0.9}}\n"
ASKED = ("what-if", "--application", "shop", "--service", "search")


class Recommending(Plane):
    """A control plane that pushes nothing: shares stay at the baseline, 70 to 30."""

    def write(self, mode: str = "recommend", **changes: int) -> None:
        super().write(mode, **changes)
        text = self.path.read_text().replace("      steady:", FRUGAL + "      steady:")
        b_price = text.rindex("per_million_requests_usd: 1.0")
        text = text[:b_price] + text[b_price:].replace("usd: 1.0", "usd: 0.2", 1)
        self.path.write_text(text + "history: {path: ./history.duckdb}\n")

    async def answer(self, *args: object) -> Any:
        done = await self.ask(*args, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    async def route(self) -> Any:
        (route,) = (await self.get("/v1/status"))["routes"]
        return route

    async def versions(self) -> list[tuple[str, str, str]]:
        nodes = (await self.get("/v1/status"))["nodes"]
        return [(n["node_id"], t["type"], t["version_sent"]) for n in nodes for t in n["types"]]


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[tuple[Recommending, dict[str, Upstream]]]:
    async with serving("a", "b") as up:
        plane = Recommending(tmp_path, ports(up))
        async with served(plane, ("n0", plane.ports["listen"], "delta")):
            yield plane, up


async def test_what_was_foretold_comes_true_and_asking_pushes_nothing(
    plane: tuple[Recommending, dict[str, Upstream]],
) -> None:
    control, up = plane
    up["a"].delay_s, up["b"].delay_s = 0.02, 0.03

    async def settled() -> Any:
        routes = (await control.get("/v1/status"))["routes"]
        seen = routes[0]["latency_ms"] if routes else None
        known = seen and abs(routes[0]["predicted_latency_ms"] - seen) < 0.1 * seen
        return routes[0] if known and routes[0]["demand_rps"] > 20.0 else None

    async with Traffic(control.ports["listen"], gap_s=0.01) as traffic:
        await eventually("the models have learned", settled, within_s=20.0)
        before = await control.versions()
        down = await control.get("/v1/what-if?application=shop&service=search&set=a.down")
        slower = await control.answer(*ASKED, "--set", "a.latency=x4")
        refused = await control.ask(*ASKED, "--set", "c.down", "--json")
        assert await control.versions() == before

        assert refused.returncode == 2
        assert "its providers: a, b" in refused.stderr
        (route,) = down["routes"]
        assert route["held"]["failed_ratio"] == pytest.approx(0.7, abs=0.02)
        assert {p["provider"]: p["share_then"] for p in route["providers"]} == {"a": 0.0, "b": 1.0}
        assert sum(route["gain_terms_ms"].values()) == pytest.approx(route["gain_ms"])

        foretold = slower["routes"][0]["held"]["latency_ms"]
        assert foretold > 1.8 * slower["routes"][0]["now"]["latency_ms"]
        up["a"].delay_s *= 4.0

        async def came_true() -> bool:
            seen = (await control.route())["latency_ms"]
            return seen is not None and abs(seen - foretold) < 0.15 * foretold

        await eventually(f"calls take the {foretold:.0f} ms foretold", came_true, within_s=10.0)
    assert traffic.failures == []

    asked = ("replay-decisions", "--profile", "frugal", "--since", "1m")
    live = await control.answer(*asked)
    assert live["replayed"]["usd"] < live["chosen"]["usd"]
    (route,) = live["routes"]
    assert route["shares_chosen"] == pytest.approx({"a": 0.7, "b": 0.3}, abs=0.01)
    assert route["shares_replayed"]["b"] > 0.3

    # The server is gone: the command reads its file.
    assert await control.end(signal.SIGTERM) == 0
    offline = await control.answer(*asked, "--config", control.path)
    assert offline["routes"][0]["shares_replayed"]["b"] > 0.3
    supposed = ("--set", "b.down", "--set", "demand=50")  # nobody calls at the end of it
    alone = await control.answer(*ASKED, *supposed, "--config", control.path)
    assert alone["source"].startswith("history up to")
