"""History as its user meets it: `xds-server serve`, a real Envoy, `xds-server history`."""

import csv
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.e2e.envoy import eventually
from tests.e2e.served import Plane, ports, served
from tests.e2e.upstream import Traffic, Upstream, serving

pytestmark = pytest.mark.e2e


class Kept(Plane):
    """A control plane that keeps history beside its mesh.yaml."""

    def write(self, mode: str = "enforce", **changes: int) -> None:
        super().write(mode, **changes)
        with self.path.open("a") as mesh:
            mesh.write("history: {path: ./history.duckdb}\n")

    async def history(self, *args: str) -> subprocess.CompletedProcess[str]:
        return await self.ask("history", "search", *args, "--config", self.path)

    async def requests(self) -> dict[str, float]:
        """Requests by provider, as the command says."""
        done = await self.history("--json", "--resolution", "1s")
        assert done.returncode == 0, done.stderr
        series: list[Any] = json.loads(done.stdout)["series"]
        return {s["provider"]: s["total"]["requests"] for s in series}

    async def metric(self, name: str) -> float:
        lines = (await self.text("/metrics")).splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def logs_left(folder: Path) -> list[Path]:
    """Write-ahead logs: there are none of a file that was closed."""
    return list(folder.glob("*.wal"))


class Living:
    def __init__(self, plane: Kept, up: dict[str, Upstream]) -> None:
        self.plane, self.up = plane, up
        self.listener = plane.ports["listen"]


@pytest.fixture
async def living(tmp_path: Path) -> AsyncIterator[Living]:
    async with serving("a", "b") as up:
        up["a"].delay_s = up["b"].delay_s = 0.01
        plane = Kept(tmp_path, ports(up))
        async with served(plane, ("n0", plane.ports["listen"], "delta")):
            yield Living(plane, up)


async def test_history_counts_every_request_and_is_there_without_the_server(
    living: Living, tmp_path: Path
) -> None:
    plane = living.plane

    async def counted() -> bool:
        nodes = (await plane.get("/v1/status"))["nodes"]
        return bool(nodes) and nodes[0]["telemetry_age_s"] is not None

    await eventually("the sidecar reports", counted, within_s=15.0)
    async with Traffic(living.listener, gap_s=0.01) as traffic:
        await traffic.split(200)
        living.up["a"].delay_s = 0.2

        async def decided() -> list[Any]:
            done = await plane.history("--decisions", "--json")
            listed = json.loads(done.stdout)["decisions"] if done.returncode == 0 else []
            return [d for d in listed if d["move"] == "reweight" and d["weights"]["a"] < 5000]

        moves = await eventually("the engine moves away from a", decided, within_s=20.0)
        assert sum(moves[-1]["weights"].values()) == 10_000
    sent = {n: u.requests for n, u in living.up.items()}

    async def all_there() -> bool:
        return await plane.requests() == sent

    await eventually("every request is in history", all_there, within_s=10.0)
    assert traffic.failures == []

    drawn = await plane.history("--since", "10m")
    assert drawn.returncode == 0, drawn.stderr
    assert "95th percentile, ms" in drawn.stdout
    exported = await plane.history("--export", "csv", "--resolution", "1s")
    rows = list(csv.DictReader(exported.stdout.splitlines()))
    assert sum(float(r["requests"]) for r in rows) == sum(sent.values())
    target = tmp_path / "out.parquet"
    done = await plane.history("--export", "parquet", "--output", str(target), "--application",
                               "shop", "--resolution", "1s")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = duckdb.sql(f"SELECT sum(requests) FROM '{target}'").fetchall()
    assert found[0] == sum(sent.values())

    unknown = await plane.history("--provider", "nobody")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "known: a, b" in unknown.stderr

    # Killed: the command reads the file itself, and nothing older than 2 s is missing.
    await plane.end(signal.SIGKILL)
    assert await plane.requests() == sent

    await plane.start()
    assert await plane.requests() == sent
    read = [line for line in plane.logged() if line["event"] == "history.models_read"]
    assert [r["providers"] for r in read] == [0, 2]
    assert await plane.end(signal.SIGTERM) == 0
    assert logs_left(tmp_path) == []


async def test_a_file_that_cannot_be_used_stops_nothing(living: Living, tmp_path: Path) -> None:
    """Another process has the file: this one serves, says so, and goes without history."""
    assert await living.plane.metric("xds_server_history_up") == 1.0
    folder = tmp_path / "second"
    folder.mkdir()
    (folder / "history.duckdb").symlink_to(tmp_path / "history.duckdb")
    second = Kept(folder, ports(living.up))
    try:
        await second.start()
        assert await second.metric("xds_server_history_up") == 0.0
        (off,) = [line for line in second.logged() if line["event"] == "history.off"]
        assert "lock" in off["error"]
        assert "history.path" in off["remedy"]
        answer = await second.history()
        assert answer.returncode == 1
        assert "history.path" in answer.stderr
    finally:
        await second.end(signal.SIGTERM)


async def test_history_begins_and_ends_with_a_reload(living: Living, tmp_path: Path) -> None:
    plane = living.plane
    text = plane.path.read_text()

    async def up() -> float:
        return await plane.metric("xds_server_history_up")

    plane.path.write_text(text.replace("history: {path: ./history.duckdb}", ""))

    async def ended() -> bool:
        return await up() == 0.0

    await eventually("history ends", ended, within_s=10.0)
    plane.path.write_text(text.replace("history.duckdb", "other.duckdb"))

    async def begun() -> bool:
        return await up() == 1.0

    await eventually("history begins in another file", begun, within_s=10.0)
    assert (tmp_path / "other.duckdb").exists()
