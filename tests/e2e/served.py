"""`xds-server serve` as its user runs it: the process, the file it watches, Envoys beside it."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.upstream import Upstream

TTL_S = 3.0
FAILED = {"engine.tick_failed", "xds.stream_failed", "source.failed"}
"""Events that no test may cause."""

MESH = """\
mesh: test
mode: {mode}
engine: {{tick_s: 0.5, weights_ttl_s: {ttl}, min_share_ratio: 0.02, max_shift_ratio: 0.5}}
telemetry: {{stats_flush_interval_s: 0.25, load_report_interval_s: 1.0}}
services:
  search:
    providers:
      a:
        endpoints: [{{address: 127.0.0.1, port: {a}}}]
        capacity: {{concurrency: 16}}
        price: {{per_million_requests_usd: 1.0}}
        baseline_weight: 70
      b:
        endpoints: [{{address: 127.0.0.1, port: {b}}}]
        capacity: {{concurrency: 16}}
        price: {{per_million_requests_usd: 1.0}}
        baseline_weight: 30
templates:
  web:
    calls:
      search: {{timeout_s: 2.0, retries: 1, listener: "127.0.0.1:{listen}"}}
    profiles:
      steady: {{latency_p95_s: 0.5, weights: {{performance: 0.9, cost: 0.1}}}}
    phases: {{min_dwell_s: 1.0, blend_s: 1.0}}
applications:
  shop: {{template: web}}
server:
  xds: {{address: "127.0.0.1:{xds}"}}
  admin: {{address: "127.0.0.1:{admin}"}}
"""


Wanted = tuple[str, int, str] | tuple[str, int, str, str]
"""A sidecar: its node, the port it listens on, its protocol, a setting."""


def ports(up: Mapping[str, Upstream], *more: str) -> dict[str, int]:
    """Ports by the names that meshes use: those of upstreams, and free ones."""
    free = ("listen", "xds", "admin", *more)
    return {n: u.port for n, u in up.items()} | {name: free_port() for name in free}


async def xds_server(*args: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "xds_server", *map(str, args)]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, timeout=60
    )


class Plane:
    """One `xds-server serve` process, and the file it watches."""

    options: tuple[object, ...] = ()
    """More of the command line."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.folder, self.ports = folder, ports
        self.path = folder / "mesh.yaml"
        self.log = folder / "serve.log"
        self.admin = f"http://127.0.0.1:{ports['admin']}"
        self.process: asyncio.subprocess.Process | None = None
        self.write()

    def write(self, mode: str = "enforce", **changes: int) -> None:
        text = MESH.format(**{**self.ports, **changes}, mode=mode, ttl=TTL_S)
        self.path.write_text(text)

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "xds_server", "serve", "-c", self.path),
                *map(str, self.options),
                stdout=log,
                stderr=log,
            )
        await eventually("it is ready", self.ready, within_s=20.0)

    async def ready(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, self.log.read_text()[-3000:]
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin}/readyz") as got:
            return got.status == 200

    async def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        async with asyncio.timeout(10.0):
            return await self.process.wait()

    async def kill(self) -> None:
        """End it, if it has not ended."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def text(self, path: str) -> str:
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin}{path}") as got:
            text = await got.text()
            assert got.status == 200, f"{path}: {text}\n{self.log.read_text()[-3000:]}"
            return text

    async def get(self, path: str) -> Any:
        return json.loads(await self.text(path))

    async def ask(self, *args: object) -> subprocess.CompletedProcess[str]:
        """Run a command that asks this server."""
        return await xds_server(*args, "--admin", self.admin)

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    async def events(self) -> list[str]:
        return [line["event"] for line in self.logged()]

    async def sidecar(self, node: str, listen: int, api: str, *settings: str) -> Envoy:
        """Bootstrap an Envoy as a person would: with the command."""
        chosen = (
            f"admin.address=127.0.0.1:{free_port()}",
            f"api={api}",
            f"listeners.search=127.0.0.1:{listen}",
            "locality.region=here",
            *settings,
        )
        out = await xds_server(
            *("bootstrap", "-c", self.path, "--application", "shop", "--node", node),
            *("--format", "json", *(arg for each in chosen for arg in ("--set", each))),
        )
        assert out.returncode == 0, out.stderr
        return Envoy(json.loads(out.stdout), self.folder)


@asynccontextmanager
async def sidecars(plane: Plane, *wanted: Wanted) -> AsyncIterator[list[Envoy]]:
    """Run Envoys beside a control plane."""
    made = await asyncio.gather(*(plane.sidecar(*each) for each in wanted))
    async with running(made):
        yield made


@asynccontextmanager
async def running(envoys: list[Envoy]) -> AsyncIterator[None]:
    """Start Envoys together, and wait until all serve."""
    try:
        await asyncio.gather(*(envoy.start() for envoy in envoys))
        await asyncio.gather(*(envoy.ready() for envoy in envoys))
        yield
    finally:
        await asyncio.gather(*(envoy.stop() for envoy in envoys))


@asynccontextmanager
async def served(plane: Plane, *wanted: Wanted) -> AsyncIterator[list[Envoy]]:
    """Run a control plane and its Envoys; in the end both are gone, and nothing has failed."""
    try:
        bootstraps = (plane.sidecar(*each) for each in wanted)
        _, *made = await asyncio.gather(plane.start(), *bootstraps)
        async with running(made):
            yield made
    finally:
        await plane.kill()
    assert not FAILED & set(await plane.events())
