import asyncio
import json
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest
from rich.console import Console

from tests.unit.admin_records import EXPLANATION, ROUTE, STATUS
from xds_server.admin import create_admin, serve_admin
from xds_server.admin.cells import bar
from xds_server.admin.encode import dumps, to_json
from xds_server.admin.render import render_status
from xds_server.admin.render_explain import render_explanation
from xds_server.errors import AdapterError
from xds_server.model.decision import HoldReason, Move
from xds_server.model.explanation import Explanation
from xds_server.model.status import Status
from xds_server.model.topology import Address
from xds_server.observability import Metrics


class _View:
    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self.routes = (ROUTE,)

    def ready(self) -> tuple[bool, Mapping[str, str]]:
        return not self.reasons, self.reasons

    def status(self) -> Status:
        return replace(STATUS, routes=self.routes)

    def explain(self, application: str, service: str) -> Callable[[], tuple[Explanation, ...]]:
        found = {("checkout", "search"): (EXPLANATION,)}[application, service]
        return lambda: found


@pytest.fixture
def view() -> _View:
    return _View()


@pytest.fixture
async def client(view):
    transport = httpx.ASGITransport(create_admin(view, Metrics()))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        yield client


async def test_it_is_alive(client):
    assert (await client.get("/healthz")).json() == {"status": "alive"}


async def test_it_is_ready_or_says_why_not(client, view):
    assert (await client.get("/readyz")).json() == {"ready": True, "reasons": {}}
    view.reasons = {"xds": "not listening yet"}
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == {"xds": "not listening yet"}


async def test_the_index_lists_the_endpoints(client):
    assert "/v1/status" in (await client.get("/")).json()["endpoints"]


async def test_metrics_come_in_the_format_that_was_asked_for(client):
    plain = await client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    assert "# HELP xds_server_ticks_total Ticks begun." in plain.text
    openmetrics = await client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


async def test_status_is_strict_json(client):
    answer = await client.get("/v1/status")
    data = json.loads(answer.content, parse_constant=pytest.fail)
    assert data["nodes"][0]["types"][1]["last_nack"] == "duplicate listener"
    assert data["routes"][0]["predicted_latency_ms"] is None
    assert data["providers"][0]["capacity_rps"] is None


async def test_explain_has_the_terms(client):
    (data,) = (await client.get("/v1/explain/checkout/search")).json()
    assert data["move"] == "reweight"
    assert data["route"]["group"]["locality"] == "us-east-1/a"
    assert data["observed_latency_ms"] is None
    assert [t["provider"] for t in data["terms"]][:2] == ["search-east", "search-far"]
    by_query = await client.get("/v1/explain?application=checkout&service=search")
    assert by_query.json() == [data]
    missing = await client.get("/v1/explain?application=checkout")
    assert (missing.status_code, missing.json()["detail"]) == (400, "no service; add service=NAME")


async def test_an_unknown_route_is_a_problem_that_names_the_known(client, view):
    answer = await client.get("/v1/explain/checkout/orders")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["known"] == ["checkout/search"]
    view.routes = ()
    assert "none before a node connects" in (await client.get("/v1/explain/a/b")).json()["detail"]


async def test_an_unknown_path_and_method_are_problems(client):
    answer = await client.get("/v2/status")
    assert (answer.status_code, answer.json()["title"]) == (404, "Not Found")
    assert (await client.post("/v1/status")).status_code == 405


def test_sets_are_sorted_and_odd_things_are_refused():
    assert to_json(frozenset({"b", "a"})) == ["a", "b"]
    assert dumps({"x": (1, True, None)}) == b'{"x":[1,true,null]}'
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json(object())


async def test_it_serves_on_a_free_port_until_the_context_closes(view):
    before = signal.getsignal(signal.SIGTERM)
    async with serve_admin(create_admin(view, Metrics()), Address("127.0.0.1", 0)) as bound:
        assert bound.port > 0
        assert signal.getsignal(signal.SIGTERM) is before
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://{bound}/healthz")
        assert answer.status_code == 200
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(bound.host, bound.port)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_it_serves_on_a_unix_socket(view, tmp_path):
    path = str(tmp_path / "admin.sock")
    async with serve_admin(create_admin(view, Metrics()), Address(f"unix:{path}")):
        transport = httpx.AsyncHTTPTransport(uds=path)
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.get("http://admin/healthz")).status_code == 200


async def test_a_socket_left_by_a_killed_process_is_replaced(view, tmp_path):
    path = str(tmp_path / "admin.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    async with serve_admin(create_admin(view, Metrics()), Address(f"unix:{path}")):
        _, writer = await asyncio.open_unix_connection(path)
        writer.close()


async def test_an_address_in_use_is_an_error_that_names_the_key(view):
    app = create_admin(view, Metrics())
    async with serve_admin(app, Address("127.0.0.1", 0)) as bound:
        with pytest.raises(AdapterError, match=rf"server\.admin\.address {bound}: .* in use"):
            async with serve_admin(app, bound):
                pass


def _printed(renderable: object) -> str:
    console = Console(width=220, record=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_status_shows_what_was_acked_refused_and_left_unanswered():
    lines = _printed(render_status(json.loads(dumps(STATUS)))).splitlines()
    assert any(line.startswith("checkout-1 ") and "1 of 5 ACK" in line for line in lines)
    assert "checkout-1: LDS NACK (2): duplicate listener" in lines
    assert "checkout-1: RTDS silent for 31 s" in lines
    assert "checkout-1: CDS silent for 7 s: no endpoints for a, b" in lines
    assert "checkout-1: no healthy hosts yet, so no traffic: search-new" in lines
    assert "checkout-1: RDS refused shop.a: no domains" in lines
    assert "checkout-1: call_rate_rps search: 150, not 2 to 120" in lines
    assert "newest change refused: mesh.yaml:3: mode: unknown" in lines


def test_status_shows_what_slow_ticks_did_and_would_do():
    lines = _printed(render_status(json.loads(dumps(STATUS)))).splitlines()
    inside, scaled = (
        next(line for line in lines if line.startswith(kind)) for kind in ("substitute", "scale ")
    )
    assert "in for 1m15s" in inside
    assert "leave, if it stays so" in inside
    assert "recommended: 3" in scaled
    assert scaled.rstrip().endswith("3 instead of 2 gain 1 $/h")


def test_status_shows_what_was_asked_beside_what_is_observed():
    text = _printed(render_status(json.loads(dumps(STATUS))))
    east, managed = (
        next(line for line in text.splitlines() if line.startswith(f"  {provider} "))
        for provider in ("search-east", "search-managed")
    )
    assert "75.0% ███████▌" in east
    assert "74.0% ███████▍" in east
    assert east.rstrip().endswith("60.0%")
    assert managed.rstrip().endswith("standby")
    assert "p95 250 ms (SLO 200 ms)" in text
    assert "hold: gain below switching cost" in text


def test_an_empty_mesh_is_said_to_be_empty():
    empty = replace(STATUS, nodes=(), routes=(), bottlenecks=(), last_tick_age_s=None)
    text = _printed(render_status(json.loads(dumps(empty))))
    assert "no nodes" in text
    assert "no routes" in text


def _explained(why_not: str = "") -> list[str]:
    drawn = _printed(render_explanation(json.loads(dumps([EXPLANATION])), why_not))
    return [line.rstrip() for line in drawn.splitlines()]


def test_an_explanation_tells_gain_runner_up_and_what_each_provider_lacks():
    lines = _explained()
    gain = "gain 3.5 ms per request = latency +2, queueing +1.5, rent +1, price -0.8, switching"
    assert any(line.startswith(gain) for line in lines)
    runner_up = "runner-up: reweight of 15.0% of the traffic, gain 2.5 ms: the mesh would cost"
    assert any(line.startswith(runner_up) for line in lines)
    by_provider = {line.split()[0]: line for line in lines if line.startswith("search-")}
    rows = {line.split()[0]: line for line in lines if line.startswith("search-") and "%" in line}
    assert set(rows) >= {"search-east", "search-west", "search-far", "search-managed"}
    (managed,) = [line for line in lines if line.startswith("search-managed")]
    assert managed.endswith("excluded: standby")
    assert (
        "search-far would have to be 4.2 ms faster or $0.31 per million cheaper to get more than"
        " its floor of 2.0%"
    ) in lines
    assert by_provider["search-mini"] == "search-mini is no candidate: it lacks vectors"
    assert any("rising from 28.0%, its best is 48.0%: about 3 ticks away" in x for x in lines)


def test_a_route_that_moves_with_the_others_says_so():
    moved = replace(EXPLANATION, gain_ms=0.5)
    assert "all routes together gain enough" in _printed(
        render_explanation(json.loads(dumps([moved])))
    )
    none = replace(EXPLANATION, gain_ms=0.0, move=Move.HOLD, options=())
    assert "no plan is better than to hold" in _printed(
        render_explanation(json.loads(dumps([none])))
    )


def _told(**changed: Any) -> str:
    return _printed(render_explanation(json.loads(dumps([replace(EXPLANATION, **changed)]))))


def test_a_route_that_holds_for_another_reason_than_its_gain_says_that_one():
    held = {"move": Move.HOLD, "hold_reason": HoldReason.NO_TELEMETRY}
    silent = _told(**held, gain_ms=0.0, gain_terms={})
    assert "it holds whatever a plan gains: no telemetry" in silent
    assert "better than to hold" not in silent
    gains = _told(**held)
    assert "the best plan would gain 3.5 ms per request = latency +2" in gains
    assert ", but it holds whatever a plan gains: no telemetry" in gains
    assert "worth a move" not in gains
    assert "would" not in _told(**held, gain_ms=-0.039).split("runner-up")[0]
    lesser = _told(move=Move.HOLD, hold_reason=HoldReason.GAIN_BELOW_COST)
    assert "the best plan would gain 3.5 ms" in lesser
    assert "worth a move above 1.2 ms" in lesser


def test_what_gains_nothing_is_said_to_cost():
    terms = {"price": -0.05, "latency": 0.011}
    held = {"move": Move.HOLD, "hold_reason": HoldReason.GAIN_BELOW_COST}
    text = _told(**held, gain_ms=-0.039, gain_terms=terms)
    assert "no plan gains: the best would cost 0.039 ms per request = price +0.05, lat" in text
    assert "would gain" not in text
    text = _told(move=Move.LAST_GOOD, gain_ms=-0.039, gain_terms=terms)
    assert "\ncosts 0.039 ms per request = price +0.05, latency -0.011" in text
    assert "worth a move" not in text
    assert "no plan is better for the mesh than to hold" in _told(move=Move.HOLD, gain_ms=0.0)


def test_what_is_required_says_what_it_does_and_what_that_costs():
    required = {"move": Move.REQUIRED, "hold_reason": HoldReason.GAIN_BELOW_COST}
    text = _told(**required, gain_ms=-0.5, gain_terms={"latency": -0.5})
    assert "\nrequired: floors are fed, and providers that may not be used are left" in text
    assert "no more than that: gain below switching cost" in text
    assert "\nthat costs 0.5 ms per request = latency +0.5" in text
    assert "\nthat gains 3.5 ms per request = latency +2" in _told(**required)


def test_a_runner_up_that_moves_nothing_is_left_out_and_one_that_loses_costs():
    first, second = EXPLANATION.options
    assert "runner-up" not in _told(options=(first, replace(second, moved_ratio=0.0)))
    hold = replace(second, move=Move.HOLD, moved_ratio=0.0, gain_ms=0.0)
    assert "runner-up: hold, gain 0 ms" in _told(options=(first, hold))
    worse = _told(options=(first, replace(second, gain_ms=-2.5)))
    assert "runner-up: reweight of 15.0% of the traffic, cost 2.5 ms" in worse


def test_why_not_is_answered_for_every_kind_of_provider():
    assert _explained("search-managed")[-2:-1] == [
        "search-managed may not serve this route: standby"
    ]
    assert "search-far would have to be" in _explained("search-far")[-2]
    assert "search-east is falling" in _explained("search-east")[-2]
    with pytest.raises(KeyError, match="known: search-east, search-far"):
        render_explanation(json.loads(dumps([EXPLANATION])), "nobody")


def test_the_terms_that_are_shown_add_up_to_the_total():
    (east,) = [line for line in _explained() if line.startswith("search-east  ")]
    numbers = [float(w) for w in east.split() if w.replace(".", "").isdigit()]
    *terms, total, rent, following = numbers
    assert sum(terms) == total
    assert total + rent == following


@pytest.mark.parametrize(
    ("share", "drawn"), [(0.0, ""), (0.05, "▌"), (1.0, "█" * 10), (1.7, "█" * 10), (None, "")]
)
def test_a_bar_is_as_long_as_the_share(share, drawn):
    assert bar(share) == drawn
