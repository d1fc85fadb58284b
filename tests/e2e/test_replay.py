"""Real Envoys are recorded, the server is killed, and its recording replays byte for byte."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.envoy import eventually, free_port
from tests.e2e.served import Plane, ports, served, xds_server
from tests.e2e.upstream import Traffic, serving

pytestmark = pytest.mark.e2e


class RecordedPlane(Plane):
    """One `xds-server serve --record` process."""

    @property
    def tapes(self) -> Path:
        return self.folder / "recording"

    @property
    def options(self) -> tuple[object, ...]:
        return "--record", self.tapes


async def replayed(folder: Path) -> list[dict[str, Any]]:
    """Run the command; it says that every stream is identical."""
    said = await xds_server("replay", folder)
    assert said.returncode == 0, said.stdout + said.stderr
    out = await xds_server("replay", folder, "--json")
    assert out.returncode == 0, out.stderr
    streams: list[dict[str, Any]] = json.loads(out.stdout)
    assert all(s["identical"] for s in streams)
    assert said.stdout.count(": identical: ") == len(streams)
    return streams


async def test_a_folder_that_cannot_be_written_to_is_said_in_one_line(tmp_path: Path) -> None:
    plane = Plane(tmp_path, ports({}, "a", "b"))
    out = await xds_server("serve", "-c", plane.path, "--record", plane.path)
    assert out.returncode == 1
    assert out.stderr == f"--record {plane.path}: cannot record there: File exists\n"


async def test_what_real_envoys_were_told_replays_identical_after_kill_9(tmp_path: Path) -> None:
    async with serving("a", "b", "c") as up:
        for upstream in up.values():
            upstream.delay_s = 0.01
        plane, listeners = RecordedPlane(tmp_path, ports(up)), (free_port(), free_port())
        apis = zip(("n0", "n1"), listeners, ("delta", "sotw"), strict=True)
        async with served(plane, *apis):
            async with Traffic(listeners[0], gap_s=0.01), Traffic(listeners[1], gap_s=0.01):
                up["a"].delay_s = 0.2

                async def shed() -> bool:
                    routes = (await plane.get("/v1/status"))["routes"]
                    shares = [p["share"] for r in routes for p in r["providers"]]
                    return bool(shares) and min(shares) < 0.2

                await eventually("weights move", shed, within_s=15.0)
                plane.write(b=up["c"].port)  # another endpoint
                await eventually("c serves", lambda: up["c"].requests > 0)
                await plane.end(signal.SIGKILL)
                killed = await replayed(plane.tapes)

                await plane.start()  # into the same folder

                async def back() -> bool:
                    nodes = (await plane.get("/v1/status"))["nodes"]
                    types = [t for n in nodes for t in n["types"]]
                    return len(nodes) == 2 and all(t["version_acked"] for t in types)

                await eventually("both are back", back, within_s=15.0)
            assert await plane.end(signal.SIGTERM) == 0
        events = await plane.events()
    assert not {"tape.cut", "tape.stopped", "xds.stream_failed"} & set(events)
    assert {s["protocol"] for s in killed} == {"delta", "sotw"}
    for stream in killed:
        assert stream["responses"] > 6, stream  # 5 types, and what changed
        assert stream["notes"] == ["the stream was open when recording stopped"]
    streams = await replayed(plane.tapes)
    assert len(streams) >= 4
    assert streams[-1]["notes"] == []
