"""What processes and a Prometheus say of instances and providers, from mesh.yaml to /v1."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.contract.exporter import Exporter, PrometheusApi, vector
from tests.contract.servers import serving as serving_app
from tests.contract.test_usage_processes import BALLAST_BYTES, PYTHON_BYTES, Worker
from tests.e2e.envoy import eventually
from tests.e2e.served import Plane, ports, served
from tests.e2e.upstream import serving

pytestmark = pytest.mark.e2e

MESH = """\
mesh: test
mode: observe
engine: {{tick_s: 0.25, weights_ttl_s: 3.0}}
telemetry: {{stats_flush_interval_s: 0.25, load_report_interval_s: 1.0}}
services:
  search: {{providers: {{a: {{endpoints: [{{address: 127.0.0.1, port: {a}}}]}}}}}}
templates:
  web:
    calls:
      search: {{timeout_s: 2.0, listener: "127.0.0.1:{listen}"}}
    profiles:
      big: {{when: instance.memory_bytes > 1e6}}
      small: {{}}
    phases: {{min_dwell_s: 0.0, blend_s: 0.0}}
    behaviour: {{cpu_ratio: [0.0, 1.0], memory_bytes: [0, 1000], read_ratio: [0, 1]}}
applications:
  shop: {{template: web}}
usage:
- adapter: psutil
  every_s: 0.3
  processes: {{n0: {{pid_file: ./n0.pid}}}}
  providers: [a]
- adapter: prometheus
  url: "http://127.0.0.1:{prometheus}"
  every_s: 0.3
  utilisation_query: busy
  provider_label: node
server:
  xds: {{address: "127.0.0.1:{xds}"}}
  admin: {{address: "127.0.0.1:{admin}"}}
"""


class UsedPlane(Plane):
    """The same process, with this mesh."""

    def write(self, mode: str = "enforce", **changes: int) -> None:
        self.path.write_text(MESH.format(**self.ports))


class World:
    def __init__(self, plane: Plane, worker: Worker) -> None:
        self.plane, self.worker = plane, worker

    async def bands(self) -> dict[str, str]:
        nodes = (await self.plane.get("/v1/status"))["nodes"]
        return {b["name"]: b["state"] for n in nodes for b in n["behaviour"]}

    async def instance(self) -> dict[str, Any]:
        (instance,) = await self.plane.get("/v1/instances")
        return instance

    async def provider(self) -> dict[str, Any]:
        (service,) = await self.plane.get("/v1/services")
        return service["providers"][0]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    api = PrometheusApi(Exporter())
    api.instead = lambda _: vector({"metric": {"node": "a"}, "value": [1.7e9, "0.4"]})
    app = web.Application()
    app.router.add_post("/api/v1/query", api.query)
    worker = Worker()
    async with serving("a") as up, serving_app(app, None) as prometheus:
        await worker.start()
        (tmp_path / "n0.pid").write_text(f"{worker.pid}\n")
        plane = UsedPlane(tmp_path, ports(up) | {"prometheus": prometheus})
        try:
            async with served(plane, ("n0", plane.ports["listen"], "delta")):
                yield World(plane, worker)
        finally:
            await worker.stop()


async def test_usage_is_checked_decides_phases_and_is_shown_with_its_age(world: World) -> None:
    measured = {"cpu_ratio": "ok", "memory_bytes": "breach", "read_ratio": "unmeasured"}

    async def is_measured() -> bool:
        return await world.bands() == measured and (await world.instance())["phase"] == "big"

    await eventually("bands are checked and the phase is decided", is_measured, within_s=10.0)
    instance, provider = await world.instance(), await world.provider()
    memory, cpu = instance["memory_bytes"], instance["cpu_ratio"]
    assert BALLAST_BYTES <= memory["value"] < BALLAST_BYTES + PYTHON_BYTES
    assert 0.0 < cpu["value"] <= 1.0
    assert (memory["source"], memory["stale"]) == ("psutil", False)
    assert memory["age_s"] < 0.9
    assert provider["memory_bytes"]["value"] > 10e6  # it runs in this very process
    busy = provider["utilisation_ratio"]
    assert (busy["value"], busy["source"], busy["stale"]) == (0.4, "prometheus", False)

    await world.worker.stop()  # the application ends, its sidecar goes on

    async def is_gone() -> bool:
        bands = await world.bands()
        return bands == measured | {"cpu_ratio": "unmeasured", "memory_bytes": "unmeasured"}

    await eventually("nobody is measured any more", is_gone, within_s=10.0)
    assert (await world.instance())["memory_bytes"]["value"] is None
