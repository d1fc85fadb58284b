"""`/v1/what-if`, `/v1/replay-decisions` and their commands: what is asked, what is said."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from typer.testing import CliRunner

from tests.scenario.test_restart import live
from tests.scenario.world import Plane, Station
from xds_server.admin.what_if import what_if_routes
from xds_server.app.what_if import ask_offline
from xds_server.cli import app
from xds_server.errors import HistoryError
from xds_server.model.decision_replay import DecisionReplay
from xds_server.model.what_if import WhatIf

REFERENCE = Path(__file__).parent.parent / "mesh_reference.yaml"
NOBODY = "http://127.0.0.1:1"
ASKED = ("--application", "checkout", "--service", "search")


class _View:
    """Answers with what it was asked; ``fails`` instead, where that is set."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.asked: list[Any] = []

    def what_if(
        self, application: str, service: str, changes: Sequence[str]
    ) -> Callable[[], WhatIf]:
        self.asked = [application, service, list(changes)]
        return self._answer

    def replay_decisions(
        self, profile: str, application: str, since_s: float, resolution: str
    ) -> Callable[[], DecisionReplay]:
        self.asked = [profile, application, since_s, resolution]
        return self._answer

    def _answer(self) -> Any:
        if self.fails is not None:
            raise self.fails
        return {"asked": self.asked}


async def get(view: _View, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(Starlette(routes=what_if_routes(view)))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        return await client.get(path)


async def test_every_set_is_a_change() -> None:
    answer = await get(_View(), "/v1/what-if?application=a&service=s&set=p.price%3D2&set=q.down")
    assert answer.json() == {"asked": ["a", "s", ["p.price=2", "q.down"]]}


async def test_a_replay_is_of_an_hour_unless_asked_otherwise() -> None:
    answer = await get(_View(), "/v1/replay-decisions?profile=p")
    assert answer.json() == {"asked": ["p", "", 3600.0, "auto"]}
    path = "/v1/replay-decisions?profile=p&application=a&since_s=60&resolution=1s"
    assert (await get(_View(), path)).json() == {"asked": ["p", "a", 60.0, "1s"]}


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/v1/what-if?service=s", "add application=NAME"),
        ("/v1/what-if?application=a", "add service=NAME"),
        ("/v1/what-if?application=a&service=s&sets=x", "no parameter 'sets'; known: application"),
        ("/v1/replay-decisions", "add profile=NAME"),
        ("/v1/replay-decisions?profile=p&since_s=2h", "write seconds"),
        ("/v1/replay-decisions?profile=p&since=2h", "no parameter 'since'"),
    ],
)
async def test_what_is_not_said_is_asked_for(path: str, detail: str) -> None:
    answer = await get(_View(), path)
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyError("no route a/s; known: b/s"), 404),
        (ValueError("no profile p; known: q"), 400),
        (HistoryError("history", "not configured", "see the docs"), 503),
    ],
)
async def test_what_cannot_be_answered_is_a_problem(error: Exception, status: int) -> None:
    view = _View()
    view.fails = error
    for path in (
        "/v1/what-if?application=a&service=s&set=x.down",
        "/v1/replay-decisions?profile=p",
    ):
        answer = await get(view, path)
        assert answer.status_code == status
        assert str(error.args[0]) in answer.json()["detail"]


# -- without a server --------------------------------------------------------------------


def run(command: str, *args: object) -> Any:
    return CliRunner().invoke(app, [command, *map(str, args)])


def test_a_mesh_alone_answers_by_what_it_declares() -> None:
    done = run("what-if", *ASKED, "-c", REFERENCE, "--set", "demand=200", "--set",
               "search-west.down", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    (route,) = data["routes"]
    by_name = {p["provider"]: p for p in route["providers"]}
    assert by_name["search-east"]["share_then"] == pytest.approx(1.0)
    assert by_name["search-managed"]["excluded_because"] == "standby"
    assert route["held"]["failed_ratio"] == pytest.approx(0.4, abs=0.01)
    assert route["demand_rps"] == pytest.approx(200.0)
    assert any("search-west: endpoints are discovered, taken as 1" in n for n in data["notes"])
    assert any("in phase steady" in note for note in data["notes"])


def test_it_is_drawn_for_people() -> None:
    done = run("what-if", *ASKED, "-c", REFERENCE, "--set", "demand=300", "--set",
               "search-east.capacity=x0.5")  # fmt: skip
    assert done.exit_code == 0, done.output
    for words in ("what if demand=300, search-east.capacity=x0.5", "then, nothing done",
                  "then, re-planned", "re-planning gains", "bottlenecks then:"):  # fmt: skip
        assert words in done.output


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "add --set: PROVIDER.price=USD"),
        (("--set", "search-east.price=1e308"), "search-east.price: 1e+308 is out of bounds; 0 to"),
        (("--set", "search-north.price=1"), "its providers: search-east"),
        (("--set", "search-east.price=1"), "nothing says how often checkout calls search"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(args: tuple[str, ...], says: str) -> None:
    done = run("what-if", *ASKED, "-c", REFERENCE, *args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_route_is_answered_with_those_that_exist() -> None:
    done = run("what-if", "--application", "checkout", "--service", "mail", "-c", REFERENCE,
               "--set", "demand=2")  # fmt: skip
    assert done.exit_code == 2
    assert "known: checkout/payments, checkout/search" in done.stderr


def test_without_a_server_or_a_mesh_it_says_what_to_do() -> None:
    done = run("what-if", *ASKED, "--set", "search-east.down", "--admin", NOBODY)
    assert done.exit_code == 1
    assert "is xds-server running?" in done.stderr
    done = run("replay-decisions", "--profile", "steady", "-c", REFERENCE, "--admin", NOBODY)
    assert done.exit_code == 1
    assert "history" in done.stderr


# -- with history ------------------------------------------------------------------------

MESH = """mesh: test
mode: enforce
services:
  search:
    providers:
      fast:
        locality: {region: here}
        endpoints: [{address: 127.0.0.1, port: 9000}]
        price: {per_million_requests_usd: 2.0}
      cheap:
        locality: {region: here}
        endpoints: [{address: 127.0.0.1, port: 9001}]
        price: {per_million_requests_usd: 0.5}
templates:
  web:
    calls: {search: {listener: "127.0.0.1:15001", timeout_s: 1.0}}
    profiles:
      frugal: {when: "instance.rps < 0.0", weights: {performance: 0.1, cost: 0.9}}
      steady: {latency_p95_s: 0.3}
applications: {shop: {template: web}}
history: {path: ./history.duckdb}
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plane]:
    """A mesh with the history of its providers: what they are is in no mesh.yaml."""
    path = tmp_path_factory.mktemp("kept") / "mesh.yaml"
    path.write_text(MESH)
    stations = {"fast": Station(0.02, 8, 2.0), "cheap": Station(0.05, 16, 0.5)}
    plane = Plane(stations, 200.0, capacity=False)
    live(plane, 60, path.parent / "history.duckdb")
    return path, plane


def test_history_says_what_mesh_yaml_does_not(kept: tuple[Path, Plane]) -> None:
    path, plane = kept
    answer = ask_offline(path, "shop", "search", ["demand=x1"])
    (route,) = answer.routes
    assert answer.source.startswith("history up to 2027-01-15 08:01:00")
    assert route.demand_now_rps == pytest.approx(200.0, rel=0.15)
    found = {p.provider: p.share_now for p in route.providers}
    assert found == pytest.approx(plane.shares, abs=0.01)
    assert plane.last is not None
    assert route.now.latency_ms == pytest.approx(
        1e3 * plane.last.deployment.forecast.latency_s[0], rel=0.1
    )


def test_history_that_cannot_be_read_is_said_and_done_without(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(MESH)
    (tmp_path / "history.duckdb").write_bytes(b"not a database" * 100)
    answer = ask_offline(path, "shop", "search", ["demand=50"])
    assert answer.source == f"what {path} declares"
    assert any(note.startswith("history not read, models as declared") for note in answer.notes)


def test_a_replay_reads_the_file_where_no_server_answers(kept: tuple[Path, Plane]) -> None:
    path, _ = kept
    asked = ("replay-decisions", "--profile", "frugal", "-c", path, "--admin", NOBODY)
    done = run(*asked, "--json", "--since", "30s")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["replayed"]["usd"] < data["chosen"]["usd"]
    assert data["resolution"] == "1s"
    drawn = run(*asked)
    assert "with profile frugal: p95 +" in drawn.output
    assert "1 of 1 route would have changed" in drawn.output
    assert "note: demand would have been the same" in drawn.output
    other = path.parent / "elsewhere.duckdb"
    other.write_bytes((path.parent / "history.duckdb").read_bytes())
    named = run("replay-decisions", "--profile", "frugal", "-c", path, "--history", other, "--json",
                "--since", "30s")  # fmt: skip
    assert json.loads(named.stdout) == data


def test_a_replay_that_cannot_be_is_one_line(kept: tuple[Path, Plane]) -> None:
    path, _ = kept
    asked = ("replay-decisions", "-c", path, "--admin", NOBODY, "--profile")
    done = run(*asked, "lavish")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no profile lavish; known: frugal, steady" in done.stderr
    assert run(*asked, "frugal", "--since", "soon").exit_code == 2
    done = run(*asked, "frugal", "--history", path.parent / "none.duckdb")
    assert done.exit_code == 1
    assert "none.duckdb: no such file; name one that a server has written" in done.stderr
    assert "can be written" not in done.stderr
