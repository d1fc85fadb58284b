"""Real Envoys under traffic and constant change, for as long as it is asked to.

``python -m bench.soak [--minutes 10] [--envoys 20] [--json]``. The control plane is
``xds-server serve``; every change is a change of its files. Meanwhile Envoys are killed and
started again, connections to the control plane are cut, it is itself killed once, in the
beginning, and resources are refused. See ``bench/README.md``.
"""

import argparse
import asyncio
import json
import platform
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.arguments import file_to_write
from bench.output import dumped
from bench.soak_traffic import TIMEOUT_S, Caller, Line, endpoints
from bench.soak_world import COMES_AND_GOES, PROVIDERS, STEPS_PER_S, Ports, World
from xds_server.config import load_mesh
from xds_server.demo.processes import Child, Processes, find_envoy
from xds_server.resources.bootstrap import render_bootstrap

READY_S = 30.0
DISRUPT_EVERY_S = 6.0
WARM_S = 60.0
END_S = 20.0


@dataclass(frozen=True, slots=True)
class Options:
    """How long and how much."""

    minutes: float
    envoys: int
    rps: float
    seed: int


@dataclass(slots=True)
class Sidecar:
    """One Envoy, who calls it, and its way to the control plane."""

    node_id: str
    admin: str
    config: Path
    caller: Caller
    line: Line
    child: Child | None = None


class Soak:
    """One run."""

    def __init__(self, options: Options, folder: Path, session: aiohttp.ClientSession) -> None:
        self._options, self._folder, self._session = options, folder, session
        self._processes = Processes(folder)
        self._envoy = str(find_envoy())
        self._sidecars: list[Sidecar] = []
        self._generator = np.random.default_rng(options.seed)
        self.did: Counter[str] = Counter()
        self._last = "nothing yet"
        self._served = True
        self.rss_bytes: list[tuple[float, int]] = []  # by seconds since the start

    async def run(self) -> dict[str, Any]:
        """Start everything, let it run, end it; return the figures."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._processes.stop)
            found = await stack.enter_async_context(endpoints(2 * (len(PROVIDERS) + 1)))
            names = (*PROVIDERS, COMES_AND_GOES)
            upstreams = dict(zip(names, zip(found[::2], found[1::2], strict=True), strict=True))
            xds, admin, listen = _free_port(), _free_port(), _free_port()
            self._admin = f"http://127.0.0.1:{admin}"
            ports = Ports(xds, admin, listen, upstreams)
            self._world = World(self._folder, ports, self._options.seed)
            await self._serve()
            tasks_before = (await self._settled_metrics())["tasks"]
            for i in range(self._options.envoys):
                sidecar = await self._add_sidecar(i, xds)
                stack.callback(sidecar.line.stop)
            await asyncio.gather(*(self._start(s) for s in self._sidecars))
            await self._disturb()
            before_end = await self._metrics()
            await self._end_sidecars()
            after = await self._settled_metrics()
            code = await self._end_server()
        return self._report(before_end, after, tasks_before, code)

    # -- processes -------------------------------------------------------------------

    async def _serve(self) -> None:
        command = (sys.executable, "-m", "xds_server", "serve", "-c", str(self._world.path))
        self._server = self._processes.start("serve", command)
        await self._processes.ready(self._server, self._server_ready, READY_S)

    async def _server_ready(self) -> bool:
        return await self._answers(f"{self._admin}/readyz")

    async def _answers(self, url: str) -> bool:
        try:
            async with self._session.get(url) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _add_sidecar(self, index: int, xds: int) -> Sidecar:
        line = Line(xds)
        port, admin, listen = await line.start(), _free_port(), _free_port()
        node_id = f"envoy-{index}"
        settings = {
            "admin.address": f"127.0.0.1:{admin}",
            "xds.address": f"127.0.0.1:{port}",
            "api": "delta" if index % 2 else "sotw",
            "listeners.search": f"127.0.0.1:{listen}",
            "locality.region": "here",
            "locality.zone": f"z{index % 4}",
        }
        bootstrap = render_bootstrap(load_mesh(self._world.path), "shop", node_id, settings)
        config = self._folder / f"{node_id}.json"
        config.write_text(json.dumps(bootstrap, allow_nan=False))
        caller = Caller(f"http://127.0.0.1:{listen}/", self._options.rps)
        caller.situation = partial(self._situation, node_id)
        sidecar = Sidecar(node_id, f"http://127.0.0.1:{admin}", config, caller, line)
        self._sidecars.append(sidecar)
        return sidecar

    async def _start(self, sidecar: Sidecar) -> None:
        command = (self._envoy, "-c", str(sidecar.config), "--concurrency", "1")
        quiet = ("--disable-hot-restart", "-l", "error")
        sidecar.child = self._processes.start(sidecar.node_id, (*command, *quiet))
        sidecar.child.may_die = True

        async def ready() -> bool:
            return await self._answers(f"{sidecar.admin}/ready") and await self._answers(
                sidecar.caller.url
            )

        await self._processes.ready(sidecar.child, ready, READY_S)

    async def _end_sidecars(self) -> None:
        for sidecar in self._sidecars:
            if sidecar.child is not None:
                sidecar.child.signal(signal.SIGTERM)

    async def _end_server(self) -> int:
        self._server.may_die = True
        self._server.signal(signal.SIGTERM)
        return await asyncio.to_thread(self._server.process.wait, END_S)

    # -- what happens meanwhile ------------------------------------------------------

    async def _disturb(self) -> None:
        """Call, change, break; then let the last calls end."""
        duration_s = 60.0 * self._options.minutes
        self._began_s = time.monotonic()
        running = [asyncio.create_task(c) for c in (self._change(), self._break(), self._weigh())]
        callers = [asyncio.create_task(s.caller.run(self._session)) for s in self._sidecars]
        try:
            done, _ = await asyncio.wait(
                {*running, *callers}, timeout=duration_s, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in done:
                task.result()
        finally:
            for task in (*running, *callers):
                task.cancel()
            await asyncio.gather(*running, *callers, return_exceptions=True)

    async def _change(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s += 1.0 / STEPS_PER_S
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            self._world.step(served=self._served)

    async def _break(self) -> None:
        """One disturbance at a time; the control plane first, before memory is looked at."""
        await asyncio.sleep(DISRUPT_EVERY_S)
        self._served = False
        await self._processes.kill(self._server)
        await self._serve()
        await asyncio.sleep(DISRUPT_EVERY_S / 2)  # all are back by then
        self._served = True
        self._note("control plane killed")
        while True:
            for disturb in (self._kill_one, self._cut_half):
                await asyncio.sleep(DISRUPT_EVERY_S)
                await disturb()

    def _situation(self, node_id: str) -> str:
        at_s = time.monotonic() - self._began_s
        return f"{at_s:.2f} s, {node_id}, step {self._world.steps}, {self._last}:"

    def _note(self, what: str) -> None:
        self.did[what] += 1
        self._last = f"{what} at {time.monotonic() - self._began_s:.2f} s"

    async def _kill_one(self) -> None:
        sidecar = self._sidecars[int(self._generator.integers(len(self._sidecars)))]
        assert sidecar.child is not None
        sidecar.caller.down = True
        sidecar.caller.life += 1
        await self._processes.kill(sidecar.child)
        await self._start(sidecar)
        sidecar.caller.down = False
        self._note("envoys killed")

    async def _cut_half(self) -> None:
        for i in self._generator.permutation(len(self._sidecars))[::2]:
            self._sidecars[i].line.cut()
            self._note("connections cut")

    async def _weigh(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self._server.alive and self.did["control plane killed"]:
                rss = psutil.Process(self._server.process.pid).memory_info().rss
                self.rss_bytes.append((time.monotonic() - self._began_s, rss))

    # -- figures ---------------------------------------------------------------------

    async def _metrics(self) -> dict[str, float]:
        """Sums over the labels, by name without prefix."""
        async with self._session.get(f"{self._admin}/metrics") as answer:
            text = await answer.text()
        sums: dict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                sums[sample.name.removeprefix("xds_server_")] += sample.value
        return sums

    async def _settled_metrics(self) -> dict[str, float]:
        """Wait until no stream is open, and a tick after that has counted the tasks."""
        quiet = await self._wait(lambda now: not now.get("streams_open", 0))
        return await self._wait(lambda now: now["ticks_total"] >= quiet["ticks_total"] + 2)

    async def _wait(self, test: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Return the first metrics that pass, or the last when time is up."""
        until_s = time.monotonic() + END_S
        while True:
            found = await self._metrics()
            if test(found) or time.monotonic() > until_s:
                return found
            await asyncio.sleep(0.2)

    def _report(
        self, before: dict[str, float], after: dict[str, float], tasks_before: float, code: int
    ) -> dict[str, Any]:
        counts = sum((s.caller.counts for s in self._sidecars), Counter())
        failures = [f for s in self._sidecars for f in s.caller.failures]
        return {
            "minutes": self._options.minutes,
            "envoys": self._options.envoys,
            "requests": counts["requests"],
            "failed": counts["failed"],
            "failures": failures[:20],
            "excused": counts["excused"],
            "changes": self._world.steps,
            **{key.replace(" ", "_"): n for key, n in self.did.items()},
            "reloads": int(after["config_reloads_total"]),
            "reconnects": int(after["streams_ended_total"]) - len(self._sidecars),
            "pushes": int(before["responses_total"]),
            "acks": int(before["acks_total"]),
            "nacks": int(before["nacks_total"]),
            "quarantined": int(before.get("quarantined_total", 0)),
            "streams_open_at_end": int(after.get("streams_open", 0)),
            "tasks_at_start": int(tasks_before),
            "tasks_at_end": int(after["tasks"]),
            "tick_failures": int(after["tick_failures_total"]),
            "server_errors": self._errors(),
            "server_exit_code": code,
            "server_cpu_s": round(after["process_cpu_seconds_total"], 1),
            **self._memory(),
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
        }

    def _memory(self) -> dict[str, float]:
        """RSS at minute 1 (of a short run: after a third), at the end, and its slope between.

        The slope of the last half too: caches fill for some minutes, a leak goes on.
        """
        warm_s = min(WARM_S, 20.0 * self._options.minutes)
        series = [(at, rss) for at, rss in self.rss_bytes if at >= warm_s]
        at_s, rss = np.array([a for a, _ in series]), np.array([r for _, r in series])
        slope = np.polyfit(at_s, rss, 1)[0]
        late = at_s >= 0.5 * at_s[-1]
        late_slope = np.polyfit(at_s[late], rss[late], 1)[0]
        mib = 2.0**20
        return {
            "rss_warm_mib": round(float(np.median(rss[:5])) / mib, 1),
            "rss_end_mib": round(float(np.median(rss[-5:])) / mib, 1),
            "rss_max_mib": round(float(rss.max()) / mib, 1),
            "rss_slope_mib_per_h": round(float(slope) * 3600.0 / mib, 1),
            "rss_late_slope_mib_per_h": round(float(late_slope) * 3600.0 / mib, 1),
        }

    def _errors(self) -> dict[str, int]:
        """Lines that the control plane logged as errors, by name; a bad file is not ours."""
        found: Counter[str] = Counter()
        for line in self._server.log.read_text().splitlines():
            if line.startswith("{"):
                entry = json.loads(line)
                if entry.get("level") in ("error", "critical"):
                    found[str(entry.get("event"))[:100]] += 1
            elif line.startswith("Traceback"):
                found["traceback"] += 1
        return dict(found)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _run(options: Options) -> dict[str, Any]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    with tempfile.TemporaryDirectory(prefix="xds-soak-") as folder:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            return await Soak(options, Path(folder), session).run()


def main() -> int:
    """Parse, run, print; exit 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--envoys", type=int, default=20)
    parser.add_argument("--rps", type=float, default=20.0, help="to each Envoy")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=file_to_write, help="write the figures there as well")
    given = parser.parse_args()
    result = asyncio.run(_run(Options(given.minutes, given.envoys, given.rps, given.seed)))
    if given.out is not None:
        given.out.write_text(dumped(result, indent=2) + "\n")
    if given.json:
        print(dumped(result))
    else:
        for key, value in result.items():
            print(f"{key:22} {value}")
    return int(result["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
