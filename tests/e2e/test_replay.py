"""Real Envoys are recorded, the server is killed, and its recording replays byte for byte."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.test_serve import Plane
from tests.e2e.upstream import Traffic, serving

pytestmark = pytest.mark.e2e


class RecordedPlane(Plane):
    """One `xds-server serve --record` process."""

    @property
    def tapes(self) -> Path:
        return self.folder / "recording"

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "xds_server", "serve", "-c", self.path),
                *("--record", self.tapes),
                stdout=log,
                stderr=log,
            )
        await eventually("it is ready", self.ready, within_s=20.0)


def replayed(folder: Path) -> list[dict[str, Any]]:
    """Run the command; it says that every stream is identical."""
    command = [sys.executable, "-m", "xds_server", "replay", folder]
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stdout + said.stderr
    out = subprocess.run(
        [*command, "--json"], check=True, capture_output=True, text=True, timeout=60
    )
    streams: list[dict[str, Any]] = json.loads(out.stdout)
    assert all(s["identical"] for s in streams)
    assert said.stdout.count(": identical: ") == len(streams)
    return streams


def test_a_folder_that_cannot_be_written_to_is_said_in_one_line(tmp_path: Path) -> None:
    plane = Plane(tmp_path, {n: free_port() for n in ("a", "b", "listen", "xds", "admin")})
    command = (sys.executable, "-m", "xds_server", "serve", "-c", plane.path, "--record")
    out = subprocess.run(
        [*command, plane.path], check=False, capture_output=True, text=True, timeout=30
    )
    assert out.returncode == 1
    assert out.stderr == f"--record {plane.path}: cannot record there: File exists\n"


async def test_what_real_envoys_were_told_replays_identical_after_kill_9(tmp_path: Path) -> None:
    async with serving("a", "b", "c") as up:
        for upstream in up.values():
            upstream.delay_s = 0.01
        ports = {n: u.port for n, u in up.items()}
        plane = RecordedPlane(
            tmp_path, ports | {name: free_port() for name in ("listen", "xds", "admin")}
        )
        envoys: list[Envoy] = []
        listeners = (free_port(), free_port())
        try:
            await plane.start()
            for i, api in enumerate(("delta", "sotw")):
                envoys.append(await plane.sidecar(f"n{i}", listeners[i], api))
                await envoys[i].start()
            for envoy in envoys:
                await envoy.ready()
            async with Traffic(listeners[0], gap_s=0.01), Traffic(listeners[1], gap_s=0.01):
                up["a"].delay_s = 0.2

                async def shed() -> bool:
                    routes = (await plane.get("/v1/status"))["routes"]
                    shares = [p["share"] for r in routes for p in r["providers"]]
                    return bool(shares) and min(shares) < 0.2

                await eventually("weights move", shed, within_s=15.0)
                plane.write(b=ports["c"])  # another endpoint
                await eventually("c serves", lambda: up["c"].requests > 0)
                await plane.end(signal.SIGKILL)
                killed = await asyncio.to_thread(replayed, plane.tapes)

                await plane.start()  # into the same folder

                async def back() -> bool:
                    nodes = (await plane.get("/v1/status"))["nodes"]
                    types = [t for n in nodes for t in n["types"]]
                    return len(nodes) == 2 and all(t["version_acked"] for t in types)

                await eventually("both are back", back, within_s=15.0)
            assert await plane.end(signal.SIGTERM) == 0
        finally:
            for envoy in envoys:
                await envoy.stop()
            if plane.process is not None and plane.process.returncode is None:
                plane.process.kill()
                await plane.process.wait()
        events = await plane.events()
    assert not {"tape.cut", "tape.stopped", "xds.stream_failed"} & set(events)
    assert {s["protocol"] for s in killed} == {"delta", "sotw"}
    for stream in killed:
        assert stream["responses"] > 6, stream  # 5 types, and what changed
        assert stream["notes"] == ["the stream was open when recording stopped"]
    streams = await asyncio.to_thread(replayed, plane.tapes)
    assert len(streams) >= 4
    assert streams[-1]["notes"] == []
