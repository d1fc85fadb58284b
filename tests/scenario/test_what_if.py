"""Suppositions about a mesh that runs: what it would do, and that asking changes nothing."""

import pickle
from collections.abc import Callable
from dataclasses import astuple, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from tests.scenario.world import Plane, Station
from xds_server.app.what_if import ask_engine
from xds_server.engine.changes import parse_changes
from xds_server.engine.offline import look
from xds_server.engine.problem import build_problem
from xds_server.engine.settle import at_shares, settle
from xds_server.engine.simulate import forecast
from xds_server.engine.state import initial_state
from xds_server.engine.what_if import what_if
from xds_server.model.template import Profile
from xds_server.model.topology import Address, Application, EngineSettings
from xds_server.model.what_if import RouteProspect, WhatIf

LOAD_RPS = 300.0


def three() -> dict[str, Station]:
    return {
        "fast": Station(0.020, 8, 2.0),
        "middle": Station(0.030, 8, 1.0),
        "cheap": Station(0.050, 16, 0.5),
    }


@pytest.fixture(scope="module")
def settled() -> Plane:
    """A mesh that found its shares; tests only ask it."""
    plane = Plane(three(), LOAD_RPS, settings=EngineSettings(max_shift_ratio=0.35))
    plane.step(40)
    return plane


def ask(plane: Plane, *changes: str, service: str = "search", **endpoints: int) -> WhatIf:
    assert plane.last is not None
    return what_if(
        plane.state,
        plane.last,
        plane.mesh.engine,
        "shop",
        service,
        parse_changes(changes),
        endpoints=endpoints,
        source="test",
    )


def route(plane: Plane, *changes: str, **endpoints: int) -> RouteProspect:
    (found,) = ask(plane, *changes, **endpoints).routes
    return found


def shares(found: RouteProspect, plan: str = "then") -> dict[str, float]:
    return {p.provider: getattr(p, f"share_{plan}") for p in found.providers}


def test_a_dearer_provider_would_get_less_and_a_cheaper_one_more(settled: Plane) -> None:
    now = shares(route(settled, "demand=x1"))
    assert shares(route(settled, "middle.price=3"))["middle"] < now["middle"] - 0.1
    assert shares(route(settled, "middle.price=x0.2"))["middle"] > now["middle"] + 0.1


def test_a_mesh_at_rest_gains_nothing_from_a_change_that_is_none(settled: Plane) -> None:
    found = route(settled, "demand=x1", "fast.price=x1")
    assert found.gain_ms == pytest.approx(0.0, abs=0.01 * found.held.cost_ms)
    assert found.moved_ratio < 0.05
    assert not found.would_move
    assert route(settled, "middle.price=3").would_move
    assert found.now == found.held


def test_until_it_is_planned_anew_calls_to_a_provider_that_is_down_fail(settled: Plane) -> None:
    found = route(settled, "middle.down")
    assert found.now.failed_ratio < 0.01
    assert found.held.failed_ratio == pytest.approx(shares(found, "now")["middle"], abs=0.01)
    assert found.optimum.failed_ratio < 0.01
    assert shares(found)["middle"] == 0.0
    assert sum(shares(found).values()) == pytest.approx(1.0)
    (down,) = [p for p in found.providers if p.provider == "middle"]
    assert down.excluded_because == "down"
    # Those that are answered take as long as before: nobody else has more to do.
    rest = {"fast": shares(found, "now")["fast"], "cheap": shares(found, "now")["cheap"]}
    assert found.held.usd_per_million == pytest.approx(2.0 * rest["fast"] + 0.5 * rest["cheap"])


def test_halved_capacity_delays_and_is_avoided(settled: Plane) -> None:
    answer = ask(settled, "middle.capacity=x0.5")
    (found,) = answer.routes
    assert found.held.latency_ms > found.optimum.latency_ms > found.now.latency_ms
    assert shares(found)["middle"] < shares(found, "now")["middle"]
    (middle,) = [p for p in answer.providers if p.provider == "middle"]
    assert middle.utilisation_held == pytest.approx(2.0 * middle.utilisation_now)
    assert middle.utilisation_optimum < middle.utilisation_held
    rents = [
        [b.rent_ms_per_s for b in found]
        for found in (answer.bottlenecks_now, answer.bottlenecks_then)
    ]
    assert sum(rents[1]) > sum(rents[0])
    assert rents[1] == sorted(rents[1], reverse=True)


def test_capacity_can_be_said_in_requests_per_second(settled: Plane) -> None:
    answer = ask(settled, "middle.capacity=160")
    (middle,) = [p for p in answer.providers if p.provider == "middle"]
    assert middle.capacity_rps == pytest.approx(160.0)


def test_a_slower_provider_keeps_its_capacity(settled: Plane) -> None:
    before, after = ask(settled, "demand=x1"), ask(settled, "middle.latency=x1.5")
    assert [p.capacity_rps for p in after.providers] == pytest.approx(
        [p.capacity_rps for p in before.providers]
    )
    assert after.routes[0].held.latency_ms > before.routes[0].held.latency_ms
    assert after.routes[0].moved_ratio > before.routes[0].moved_ratio


def test_endpoints_carry_in_proportion(settled: Plane) -> None:
    before = ask(settled, "demand=x1").providers
    after = ask(settled, "middle.endpoints=3", fast=1, middle=2, cheap=1).providers
    ratio = [a.capacity_rps / b.capacity_rps for a, b in zip(after, before, strict=True)]
    assert ratio == pytest.approx([1.0, 1.0, 1.5])
    assert shares(route(settled, "middle.endpoints=0", middle=2))["middle"] == 0.0


def test_more_demand_goes_to_who_has_room(settled: Plane) -> None:
    found = route(settled, "demand=x1.6")
    assert found.demand_rps == pytest.approx(1.6 * found.demand_now_rps)
    assert found.held.usd_per_h == pytest.approx(1.6 * found.now.usd_per_h)
    assert found.optimum.latency_ms < found.held.latency_ms
    assert shares(found)["fast"] > shares(found, "now")["fast"]
    assert route(settled, "demand=500").demand_rps == pytest.approx(500.0)


def test_an_slo_that_would_be_breached_is_said_and_bought_off() -> None:
    profiles = (Profile("steady", latency_p95_s=0.1, performance_weight=0.3, cost_weight=0.7),)
    plane = Plane(three(), LOAD_RPS, profiles=profiles)
    plane.step(40)
    found = route(plane, "cheap.latency=x3")
    assert (found.now.slo_breached, found.held.slo_breached) == (False, True)
    assert found.optimum.latency_p95_ms < found.held.latency_p95_ms
    assert found.slo_p95_ms == 100.0


@pytest.mark.parametrize(
    "changes", [("middle.price=3",), ("middle.down",), ("demand=x2", "fast.capacity=x0.7")]
)
def test_terms_add_up_to_the_gain_and_to_each_providers_total(
    settled: Plane, changes: tuple[str, ...]
) -> None:
    found = route(settled, *changes)
    assert sum(found.gain_terms_ms.values()) == pytest.approx(found.gain_ms, rel=1e-6)
    assert found.held.cost_ms - found.optimum.cost_ms == pytest.approx(found.gain_ms)
    for provider in found.providers:
        assert sum(provider.terms_ms.values()) == pytest.approx(provider.total_ms)
    weighed = sum(p.share_then * p.total_ms for p in found.providers)
    assert weighed == pytest.approx(found.optimum.cost_ms)


@pytest.mark.parametrize("slo_s", [np.inf, 0.08])
@pytest.mark.parametrize("demand", [0.5, 1.0, 1.7])
def test_where_it_comes_to_rest_is_the_optimum_whatever_it_starts_from(
    settled: Plane, demand: float, slo_s: float
) -> None:
    """Oracle: SLSQP over shares, on the forecast of the objective itself."""
    assert settled.last is not None
    problem, settings = settled.state.problem, settled.mesh.engine
    now = settled.last.evaluation
    evaluation = replace(
        now, demand_rps=demand * now.demand_rps, slo_s=np.full_like(now.slo_s, slo_s)
    )

    def cost(plan: np.ndarray) -> float:
        return forecast(problem, at_shares(problem, evaluation, plan), plan).total

    def least(start: np.ndarray) -> float:
        return float(
            minimize(
                cost, start, method="SLSQP", bounds=[(settings.min_share_ratio, 1.0)] * 3,
                constraints={"type": "eq", "fun": lambda plan: plan.sum() - 1.0},
            ).fun
        )  # fmt: skip

    starts = [np.array([0.8, 0.1, 0.1]), np.array([0.1, 0.1, 0.8]), np.full(3, 1.0 / 3.0)]
    best = min(least(start) for start in starts)
    for start in starts:
        found = settle(problem, evaluation, start, settings)
        assert found.done
        assert found.forecast.total == pytest.approx(best, rel=5e-3)


def test_asking_changes_nothing_bit_for_bit() -> None:
    asked, left_alone = (Plane(three(), LOAD_RPS) for _ in range(2))
    asked.step(15)
    left_alone.step(15)
    before, published = pickle.dumps((asked.state, asked.last)), len(asked.actuator.overlays)
    ask(asked, "middle.down", "fast.price=9", "cheap.capacity=x0.4", "demand=x2", fast=1)
    assert pickle.dumps((asked.state, asked.last)) == before
    assert len(asked.actuator.overlays) == published
    asked.step(5)
    left_alone.step(5)
    assert asked.state.shares.tobytes() == left_alone.state.shares.tobytes()


def test_names_that_do_not_exist_are_answered_with_those_that_do(settled: Plane) -> None:
    with pytest.raises(ValueError, match="west does not provide search; its providers: cheap, f"):
        ask(settled, "west.price=1")
    with pytest.raises(KeyError, match="no route shop/orders; known: shop/search"):
        ask(settled, "demand=x2", service="orders")


def test_without_any_provider_it_says_so(settled: Plane) -> None:
    answer = ask(settled, "fast.down", "middle.down", "cheap.down")
    assert any("no provider would be left" in note for note in answer.notes)
    (found,) = answer.routes
    assert found.held.failed_ratio == pytest.approx(1.0)
    assert found.optimum.failed_ratio == pytest.approx(1.0)
    assert found.optimum.cost_ms == pytest.approx(found.held.cost_ms)
    assert (found.gain_ms, found.moved_ratio, found.would_move) == (0.0, 0.0, False)
    assert np.isnan(found.optimum.latency_ms)
    assert shares(found) == shares(found, "now")


def test_values_at_their_bounds_are_answered_with_numbers(settled: Plane) -> None:
    for changes in (
        ("middle.price=1e12", "demand=1e9"),
        ("middle.price=x1e6", "demand=x1e6", "fast.capacity=x1e-6"),
        ("middle.capacity=1e-6", "fast.capacity=1e9", "cheap.latency=x1e6"),
        ("middle.latency=x1e-6", "fast.endpoints=100000", "cheap.capacity=x1e6"),
    ):
        with np.errstate(all="raise", under="ignore"):
            found = route(settled, *changes)
        for plan in (found.held, found.optimum):
            assert np.all(np.isfinite(astuple(plan))), changes


@pytest.mark.parametrize("change", ["demand=0", "demand=x0"])
def test_no_demand_is_said_to_leave_nothing_to_plan_for(settled: Plane, change: str) -> None:
    answer = ask(settled, change)
    assert answer.notes == (
        f"{change} leaves no calls to plan for: figures are those of one call alone",
    )
    assert answer.routes[0].demand_rps == 0.0


def test_a_change_to_a_standby_is_said_to_have_no_effect() -> None:
    plane = Plane(three(), LOAD_RPS, standby=frozenset({"cheap"}))
    plane.step(5)
    notes = ask(plane, "cheap.price=0.1", "fast.price=3").notes
    assert notes == ("cheap is not used, whatever changes there: standby",)


# -- asked of a running engine, in a thread ------------------------------------------------


def engine_of(plane: Plane) -> Any:
    """What is asked of an engine, as ``Engine`` has it."""
    return SimpleNamespace(state=plane.state, last=SimpleNamespace(tick=plane.last))


def asking(plane: Plane) -> Callable[[], WhatIf]:
    return ask_engine(engine_of(plane), plane.mesh, {}, "shop", "search", ["middle.price=3"])


def test_the_answer_is_of_the_moment_of_asking_while_the_engine_goes_on() -> None:
    plane = Plane(three(), LOAD_RPS)
    plane.step(15)
    at_once, later = asking(plane)(), asking(plane)
    plane.stations["fast"].service_s *= 5.0
    plane.rps *= 1.5
    plane.step(10)
    assert later() == at_once
    assert asking(plane)() != at_once


def test_a_mesh_too_large_is_refused_with_the_way_out(
    settled: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xds_server.app.what_if.PAIRS_MAX", 2)
    with pytest.raises(ValueError, match=r"3 pairs .* up to 2: ask offline, with --config"):
        asking(settled)


def test_before_the_first_tick_nothing_is_known() -> None:
    plane = Plane(three(), LOAD_RPS)
    engine = SimpleNamespace(state=plane.state, last=None)
    with pytest.raises(KeyError, match="nothing was decided yet"):
        ask_engine(engine, plane.mesh, {}, "shop", "search", ["fast.down"])  # type: ignore[arg-type]


# -- two applications that share providers -----------------------------------------------


def two_callers(rps: tuple[float, float]) -> WhatIf:
    """``shop`` and ``desk`` call the same; only ``shop`` is asked about."""
    plane = Plane(three(), LOAD_RPS)
    mesh = replace(
        plane.mesh,
        applications={
            name: Application(name, plane.mesh.templates["web"]) for name in ("shop", "desk")
        },
    )
    (group,) = plane.state.problem.groups.values()
    groups = [
        replace(group, key=replace(group.key, application=name), nodes=frozenset({name}))
        for name in ("shop", "desk")
    ]
    endpoints = {name: (Address("127.0.0.1", 1),) for name in mesh.providers}
    state = initial_state(build_problem(mesh, endpoints, groups))
    last = look(state, mesh.engine, {}, 0.0)
    demand = np.array([rps[("shop", "desk").index(r.group.application)]
                       for r in state.problem.routes])  # fmt: skip
    last = replace(last, evaluation=replace(last.evaluation, demand_rps=demand))
    changes = parse_changes(["demand=x3"])
    return what_if(state, last, mesh.engine, "shop", "search", changes, endpoints={}, source="test")


def test_others_who_share_providers_are_shown_after_those_asked_about() -> None:
    answer = two_callers((200.0, 100.0))
    assert [(r.application, r.asked) for r in answer.routes] == [("shop", True), ("desk", False)]
    shop, desk = answer.routes
    assert shop.demand_rps == pytest.approx(600.0)
    assert desk.demand_rps == desk.demand_now_rps
    assert desk.held.latency_ms > desk.now.latency_ms


def test_others_who_would_not_notice_are_not_shown() -> None:
    assert [r.application for r in two_callers((0.0, 0.0)).routes] == ["shop"]
