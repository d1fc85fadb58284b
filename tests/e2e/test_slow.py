"""What slow ticks decide reaches a real Envoy: a substitute's traffic, a feature's boolean."""

import signal
from pathlib import Path

import pytest

from tests.e2e.envoy import Envoy, eventually
from tests.e2e.served import Plane, ports, served
from tests.e2e.upstream import Traffic, Upstream, serving

pytestmark = pytest.mark.e2e

FLAG = "flags.shop.recommend"
MESH = """\
mesh: test
mode: enforce
engine: {{tick_s: 0.25, slow_tick_s: 0.5, weights_ttl_s: 3.0, max_shift_ratio: 0.5}}
telemetry: {{stats_flush_interval_s: 0.25, load_report_interval_s: 1.0}}
services:
  search:
    providers:
      main:
        endpoints: [{{address: 127.0.0.1, port: {main}}}]
        price: {{per_million_requests_usd: 1.0}}
      spare:
        endpoints: [{{address: 127.0.0.1, port: {spare}}}]
        price: {{per_million_requests_usd: 1.0}}
        capacity: {{rps_per_endpoint: 400, concurrency: 8}}
        standby: true
templates:
  web:
    calls:
      search: {{timeout_s: 2.0, listener: "127.0.0.1:{listen}"}}
    profiles:
      steady: {{latency_p95_s: 0.5}}
    flags:
      recommend: {{default: true, saves: {{search: 0.5}}, worth_usd_per_h: {worth}}}
      banner: {{default: true, owner: operator}}
applications:
  shop: {{template: web}}
server:
  xds: {{address: "127.0.0.1:{xds}"}}
  admin: {{address: "127.0.0.1:{admin}"}}
"""


class SlowPlane(Plane):
    """The same process, with this mesh; the feature is worth more than anything at first."""

    def write(self, mode: str = "enforce", worth: float = 1e9, **changes: int) -> None:
        self.path.write_text(MESH.format(**self.ports, worth=worth))


async def test_a_standby_gets_traffic_and_a_feature_goes_off_and_comes_back_by_itself(
    tmp_path: Path,
) -> None:
    async with serving("main", "spare") as up:
        for upstream in up.values():
            upstream.delay_s = 0.01
        plane = SlowPlane(tmp_path, ports(up))
        listen = plane.ports["listen"]
        async with served(plane, ("n1", listen, "delta")) as (envoy,):
            async with Traffic(listen, gap_s=0.01) as traffic:
                await _enters(plane, up["main"], traffic)
                await _switches(plane, envoy)
            assert traffic.failures == []
            await plane.end(signal.SIGKILL)
            # Gone with its layer, which is to say: as the application has it by default.
            await eventually("nothing is switched any more", lambda: _is(envoy, None))


async def _enters(plane: SlowPlane, main: Upstream, traffic: Traffic) -> None:
    assert set(await traffic.split(100)) == {"main"}
    main.delay_s = 0.25

    async def moved() -> bool:
        return (await traffic.split(20)).get("spare", 0.0) > 0.5

    await eventually("the spare one has most calls", moved, within_s=20.0)
    rows = {row["target"]: row for row in (await plane.get("/v1/status"))["slow"]}
    assert rows["spare"]["state"] == "in"
    assert "ms there" in rows["spare"]["because"]
    assert rows["shop/recommend"]["state"] == "on"


async def _switches(plane: SlowPlane, envoy: Envoy) -> None:
    assert await _is(envoy, "true")
    plane.write(worth=1e-6)  # less than its calls cost
    final = await eventually("the feature is off", lambda: _is(envoy, "false"), within_s=15.0)
    assert final["flags.shop.banner"] == "true"
    assert "routing.shop.search.spare" in final


async def _is(envoy: Envoy, value: str | None) -> dict[str, str]:
    """Return the runtime, if the feature is so there; None: not there."""
    found = await envoy.runtime() | {"read": "true"}
    return found if found.get(FLAG) == value else {}
