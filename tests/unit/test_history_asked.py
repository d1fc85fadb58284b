"""`/v1/history` and `xds-server history`: what is asked, and what is said when it cannot be."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from typer.testing import CliRunner

from tests.unit.history_records import NOON_S, frame, record
from tests.unit.test_history import Process
from xds_server.admin.history import history_routes
from xds_server.cli import app
from xds_server.model.history import Breach

MESH = Path(__file__).parent.parent / "mesh_reference.yaml"
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """An hour of history, a tick every ten seconds; it is one o'clock."""
    process, of = Process(tmp_path), frame(routes=2, providers=2)
    breach = Breach("n0", "app-0", "steady", "call_rate_rps", "search", 9.0, 0.0, 5.0)
    for i in range(0, 360, 60):
        for k in range(60):
            n = i + k
            process.history.put(
                record(
                    of,
                    NOON_S + 10 * n,
                    span_s=10.0,
                    move="reweight" if n == 100 else "hold",
                    breaches=(breach,) if 90 < n < 110 else (),
                )
            )
        process.step()
    process.clock.at_s = 3600.0
    yield process
    process.history.stop()


async def ask(process: Process, path: str, **params: object) -> httpx.Response:
    transport = httpx.ASGITransport(Starlette(routes=history_routes(process.history)))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        return await client.get(path, params={k: str(v) for k, v in params.items()})


async def test_points_are_json_by_provider(process: Process) -> None:
    answer = await ask(process, "/v1/history", service="search", since_s=1800)
    data: dict[str, Any] = answer.json()
    assert (answer.status_code, data["resolution"]) == (200, "1m")
    assert [s["provider"] for s in data["series"]] == ["p0", "p1"]
    first = data["series"][0]
    assert len(first["at_s"]) == 29  # the minute that is not over is not there
    assert first["columns"]["rps"][0] == 2.0
    assert first["total"]["requests"] == 20.0 * 6 * 29


async def test_decisions_and_anomalies_are_listed_oldest_first(process: Process) -> None:
    data = (await ask(process, "/v1/history/decisions", service="search")).json()
    moves = [d["move"] for d in data["decisions"] if d["application"] == "app-0"]
    assert moves == ["hold", "reweight", "hold"]
    assert data["decisions"][-1]["weights"] == {"p0": 5000, "p1": 5000}
    moved = next(d for d in data["decisions"] if d["move"] == "reweight")
    assert moved["gain_terms"] == {"rent": 2.0, "price": -0.5}
    assert sum(moved["gain_terms"].values()) == moved["gain_ms"]
    assert data["decisions"][-1]["gain_terms"] == {}
    data = (await ask(process, "/v1/history/anomalies", service="search")).json()
    assert [a["state"] for a in data["anomalies"]] == ["breach", "ok"]


async def test_an_export_is_streamed_and_leaves_nothing_behind(process: Process) -> None:
    answer = await ask(
        process, "/v1/history/export", service="search", resolution="1s", application="app-1"
    )
    lines = answer.text.splitlines()
    assert answer.headers["content-type"].startswith("text/csv")
    assert len(lines) == 1 + 2 * 360
    assert lines[0].startswith("at_utc,service,provider,application,phase,region")
    folder = process.history._folder
    assert sorted(p.name for p in folder.glob("*export*")) == []


@pytest.mark.parametrize(
    ("path", "params", "status", "detail"),
    [
        ("", {}, 400, "add ?service=NAME"),
        ("", {"service": "search", "since_s": "2h"}, 400, "write seconds"),
        ("", {"service": "search", "since_s": "nan"}, 400, "write seconds"),
        ("", {"service": "search", "since": "5"}, 400, "no parameter 'since'"),
        ("", {"service": "search", "resolution": "5s"}, 400, "one of auto, 1s, 1m, 1h"),
        ("", {"service": "serach"}, 404, "known: search"),
        ("", {"service": "search'; DROP TABLE series --"}, 404, "known: search"),
        ("/nothing", {"service": "search"}, 404, "points, decisions, anomalies"),
        ("/export", {"service": "search", "format": "xml"}, 400, "csv or parquet"),
    ],
)
async def test_what_cannot_be_answered_is_a_problem_with_the_remedy(
    process: Process, path: str, params: dict[str, str], status: int, detail: str
) -> None:
    answer = await ask(process, f"/v1/history{path}", **params)
    assert answer.status_code == status
    assert detail in answer.json()["detail"]


async def test_without_a_file_the_answer_says_why(process: Process) -> None:
    process.history.configure(None)
    process.step()
    answer = await ask(process, "/v1/history", service="search")
    assert answer.status_code == 503
    assert "not configured" in answer.json()["detail"]


# -- the command -----------------------------------------------------------------------


def run(*args: object) -> Any:
    return CliRunner().invoke(app, ["history", *map(str, args), "--admin", NOBODY])


def mesh_at(folder: Path) -> Path:
    """A mesh whose history is the file of these tests."""
    text = MESH.read_text().replace("./history.duckdb", "./h.duckdb")
    path = folder / "mesh.yaml"
    path.write_text(text)
    return path


def test_without_a_server_the_command_reads_the_file_of_the_mesh(
    process: Process, tmp_path: Path
) -> None:
    process.history.stop()
    mesh = mesh_at(tmp_path)
    ever = ("search", "--since", "9999d", "-c", mesh)
    done = run(*ever, "--json", "--resolution", "1s")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["series"][0]["total"]["requests"] == 20.0 * 360
    drawn = run(*ever)
    assert "requests per second" in drawn.stdout
    assert "A p0   B p1" in drawn.stdout
    assert "reweight" in run(*ever, "--decisions").stdout
    assert "rent +2.00, price -0.50" in run(*ever, "--decisions").stdout
    assert "call_rate_rps of search" in run(*ever, "--anomalies").stdout
    lines = run(*ever, "--export", "csv").stdout.splitlines()
    assert len(lines) == 1 + 2 * 59  # by the minute: no hour is over
    done = run(*ever, "--export", "parquet", "--output", tmp_path / "out.parquet")
    assert (done.exit_code, (tmp_path / "out.parquet").read_bytes()[:4]) == (0, b"PAR1")
    done = run("nothing", "--since", "9999d", "-c", mesh)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "known: search" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("search", "--since", "2"), "write it like 90s"),
        (("search", "--decisions", "--anomalies"), "choose one"),
        (("search", "--export", "parquet", "--decisions"), "choose one"),
        (("search", "--export", "parquet"), "add --output FILE"),
    ],
)
def test_a_mistake_is_one_line(args: tuple[str, ...], message: str) -> None:
    done = run(*args, "-c", MESH)
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_neither_a_server_nor_a_file_is_a_failure_that_says_both(tmp_path: Path) -> None:
    done = run("search", "-c", tmp_path / "mesh.yaml")
    assert done.exit_code == 1
    assert f"{NOBODY} does not answer" in done.stderr
    done = run("search", "-c", mesh_at(tmp_path))
    assert done.exit_code == 1
    assert "h.duckdb" in done.stderr


def test_an_export_that_fails_leaves_no_file(tmp_path: Path) -> None:
    done = run("search", "-c", tmp_path / "mesh.yaml", "--export", "csv", "--output",
               tmp_path / "out.csv")  # fmt: skip
    assert done.exit_code == 1
    assert list(tmp_path.iterdir()) == []


# -- what decisions were made from ----------------------------------------------------------


def test_steps_have_all_that_a_decision_is_made_from_by_tick_and_by_minute(
    process: Process,
) -> None:
    with process.history.reader() as reader:
        by_tick, by_minute = reader.steps(900.0, "auto"), reader.steps(1800.0, "auto")
    assert (by_tick[0], len(by_tick[1])) == ("1s", 91)
    assert (by_minute[0], len(by_minute[1])) == ("1m", 29)  # the last is not over
    for step in (by_tick[1][-1], by_minute[1][-1]):
        assert sorted(step.seeds.providers) == ["p0", "p1"]
        assert {k.group.application for k in step.routes} == {"app-0", "app-1"}
        assert step.price_usd == {"p0": 1e-6, "p1": 1e-6}
        assert step.capacity_rps == {"p0": 400.0, "p1": 400.0}
        for key, seed in step.seeds.routes.items():
            assert (seed.demand_rps, seed.shares) == (20.0, {"p0": 0.5, "p1": 0.5})
            assert step.routes[key].observed_latency_s == pytest.approx(0.02)
    assert (by_tick[1][-1].span_s, by_minute[1][-1].span_s) == (10.0, 60.0)


@pytest.mark.parametrize("limit", ["STEPS_MAX", "ROWS_MAX"])
def test_more_steps_than_are_answered_are_refused_with_the_remedy(
    process: Process, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(f"xds_server.history.steps.{limit}", 10)
    with (
        process.history.reader() as reader,
        pytest.raises(ValueError, match="ask for less time or a coarser resolution"),
    ):
        reader.steps(900.0, "1s")
