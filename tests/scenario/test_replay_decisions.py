"""The past once more, with the objectives of another profile."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.scenario.test_restart import BEGAN_S, live
from tests.scenario.world import Plane, Station
from xds_server.engine.replay_decisions import replay_decisions
from xds_server.history.files import connect
from xds_server.history.steps import newest_s, read_steps, recent_steps
from xds_server.model.decision_replay import DecisionReplay, PastRoute, PastStep
from xds_server.model.history import ProviderSeed, RouteSeed, Seeds
from xds_server.model.ids import GroupKey, Locality, RouteKey
from xds_server.model.template import Profile, Template
from xds_server.model.topology import Application, Mesh, Price

FRUGAL = Profile("frugal", when="false", latency_p95_s=2.0, performance_weight=0.1, cost_weight=0.9)
STEADY = Profile("steady", latency_p95_s=0.3)
LOAD_RPS = 300.0
TICKS = 100
SETTLED = 40


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plane, Path]:
    """A plane that was steady, and the history that it wrote."""
    stations = {
        "fast": Station(0.020, 8, 2.0),
        "middle": Station(0.030, 8, 1.0),
        "cheap": Station(0.050, 16, 0.5),
    }
    path = tmp_path_factory.mktemp("past") / "history.duckdb"
    plane = Plane(stations, LOAD_RPS, profiles=(FRUGAL, STEADY))
    live(plane, TICKS, path)
    return plane, path


def steps_of(path: Path, resolution: str = "1s") -> tuple[PastStep, ...]:
    connection = connect(path, read_only=True)
    try:
        return read_steps(
            path, connection, since_s=BEGAN_S, until_s=BEGAN_S + 1e4, resolution=resolution
        )
    finally:
        connection.close()


def replayed(past: tuple[Plane, Path], profile: str) -> DecisionReplay:
    plane, path = past
    return replay_decisions(plane.mesh, steps_of(path)[SETTLED:], profile, "", "1s")


def test_its_own_profile_would_have_decided_the_same(past: tuple[Plane, Path]) -> None:
    answer, other = replayed(past, "steady"), replayed(past, "frugal")
    (route,) = answer.routes
    assert (answer.steps, answer.routes_changed, route.changed) == (TICKS - SETTLED, 0, False)
    assert route.moved_ratio < 0.01
    assert route.moved_ratio < 0.2 * other.routes[0].moved_ratio
    assert answer.replayed.latency_ms == pytest.approx(answer.chosen.latency_ms, rel=0.01)
    assert answer.replayed.usd == pytest.approx(answer.chosen.usd, rel=0.01)


def test_what_was_chosen_is_forecast_as_it_was_then(past: tuple[Plane, Path]) -> None:
    plane, _ = past
    (route,) = replayed(past, "steady").routes
    assert plane.last is not None
    plan = plane.last.deployment.forecast
    assert route.points[-1].chosen_p95_ms == pytest.approx(1e3 * plan.latency_p95_s[0], rel=0.02)
    assert route.points[-1].chosen_usd_per_million == pytest.approx(plan.usd_per_million[0])
    assert route.observed_latency_ms == pytest.approx(route.chosen.latency_ms, rel=0.1)
    assert route.calls == pytest.approx(LOAD_RPS * (TICKS - SETTLED), rel=0.05)


def test_a_frugal_profile_would_have_been_slower_and_cheaper(past: tuple[Plane, Path]) -> None:
    answer = replayed(past, "frugal")
    (route,) = answer.routes
    assert answer.replayed.usd < 0.85 * answer.chosen.usd
    assert answer.replayed.latency_ms > answer.chosen.latency_ms
    assert (answer.routes_changed, route.changed) == (1, True)
    assert route.shares_replayed["cheap"] > route.shares_chosen["cheap"] + 0.2
    assert sum(route.shares_replayed.values()) == pytest.approx(1.0)
    assert route.slo_p95_ms == 2000.0
    assert any("demand would have been the same" in note for note in answer.notes)


def test_it_moves_no_faster_than_the_engine_may(past: tuple[Plane, Path]) -> None:
    plane, _ = past
    points = replayed(past, "frugal").routes[0].points
    before = points[0].shares_chosen
    for point in points:
        moved = 0.5 * sum(abs(point.shares_replayed[p] - before[p]) for p in before)
        assert moved <= plane.mesh.engine.max_shift_ratio + 1e-9
        before = point.shares_replayed


def test_the_file_is_only_read(past: tuple[Plane, Path]) -> None:
    _, path = past
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    replayed(past, "frugal")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert list(path.parent.iterdir()) == [path]


def test_time_is_counted_back_from_the_newest_row(past: tuple[Plane, Path]) -> None:
    _, path = past
    connection = connect(path, read_only=True)
    try:
        assert newest_s(path, connection) == pytest.approx(BEGAN_S + TICKS, abs=1.0)
        resolution, steps = recent_steps(path, connection, 20.0, "auto")
        assert (resolution, len(steps)) == ("1s", 21)
        with pytest.raises(ValueError, match="one of auto, 1s, 1m, 1h"):
            recent_steps(path, connection, 20.0, "5s")
        with pytest.raises(ValueError, match="no rows by 1h in this time"):
            recent_steps(path, connection, 20.0, "1h")
    finally:
        connection.close()


# -- pasts made by hand ------------------------------------------------------------------


def mesh(*applications: str, **prices: float) -> Mesh:
    """``plain`` has no profile but steady."""
    base = Plane({name: Station(0.02, 8, usd) for name, usd in prices.items()}, 1.0).mesh
    call = base.templates["web"].calls
    templates = {
        "web": Template("web", call, (FRUGAL, STEADY)),
        "plain": Template("plain", call, (STEADY,)),
    }
    of = {name: templates["plain" if name == "plain" else "web"] for name in applications}
    return replace(
        base,
        templates=templates,
        applications={name: Application(name, template) for name, template in of.items()},
    )


def key(application: str, *, region: str = "here", phase: str = "steady") -> RouteKey:
    return RouteKey(GroupKey(application, phase, Locality(region)), "search")


def step(
    at_s: float,
    shares: dict[RouteKey, dict[str, float]],
    *,
    usd_per_million: float = 1.0,
    providers: Sequence[str] = ("a", "b"),
    capacity_rps: float = 400.0,
    **price: float,
) -> PastStep:
    seed = ProviderSeed(0.0, 0.02, 0.1, 1.0, 2.0, 0.25, 0.0, 200.0)
    return PastStep(
        at_s=at_s,
        span_s=60.0,
        seeds=Seeds(
            0.0,
            dict.fromkeys(providers, seed),
            {route: RouteSeed(0.0, 50.0, 1.0, 1.0, split) for route, split in shares.items()},
        ),
        price_usd={name: price.get(name, 1.0) / 1e6 for name in providers},
        capacity_rps=dict.fromkeys(providers, capacity_rps),
        routes={route: PastRoute(usd_per_million, 0.03) for route in shares},
    )


EVEN = {"a": 0.5, "b": 0.5}


def test_applications_without_the_profile_keep_their_shares_and_are_named() -> None:
    past = [step(60.0 * i, {key("shop"): EVEN, key("plain"): EVEN}, a=9.0) for i in range(3)]
    answer = replay_decisions(mesh("shop", "plain", a=9.0, b=1.0), past, "frugal", "", "1m")
    (route,) = answer.routes
    assert route.application == "shop"
    assert route.shares_replayed["b"] > 0.8
    assert any("shares stay: plain" in note for note in answer.notes)


def test_one_application_can_be_asked_about_while_others_load_the_same_providers() -> None:
    past = [step(0.0, {key("shop"): EVEN, key("desk"): {"a": 0.0, "b": 1.0}}, capacity_rps=60.0)]
    answer = replay_decisions(mesh("shop", "desk", a=1.0, b=1.0), past, "frugal", "shop", "1m")
    (route,) = answer.routes
    assert route.application == "shop"
    # b is nearly full of what desk sends there, and stays so.
    assert route.shares_replayed["a"] > 0.7


def test_prices_are_those_of_the_time() -> None:
    past = [step(0.0, {key("shop"): EVEN}, a=9.0), step(60.0, {key("shop"): EVEN}, b=9.0)]
    answer = replay_decisions(mesh("shop", a=1.0, b=1.0), past, "frugal", "", "1m")
    first, second = answer.routes[0].points
    assert first.shares_replayed["b"] > 0.8
    assert second.shares_replayed["a"] > 0.8
    assert first.chosen_usd_per_million == pytest.approx(5.0)


def test_a_provider_that_was_not_there_gets_nothing_until_it_is() -> None:
    alone = step(0.0, {key("shop"): {"a": 1.0}}, providers=("a",), a=9.0)
    both = step(60.0, {key("shop"): EVEN}, a=9.0)
    answer = replay_decisions(mesh("shop", a=9.0, b=1.0), [alone, both], "frugal", "", "1m")
    first, second = answer.routes[0].points
    assert first.shares_replayed == pytest.approx({"a": 1.0, "b": 0.0})
    assert second.shares_replayed["b"] > 0.8


def test_bytes_between_regions_are_told_from_what_was_spent() -> None:
    here = mesh("shop", a=1.0, b=1.0)
    (service,) = here.services.values()
    away = replace(
        service.providers[1], locality=Locality("away"), price=Price(1.0, egress_per_gib_usd=1.0)
    )
    there = replace(service, providers=(service.providers[0], away))
    past = [step(0.0, {key("shop"): EVEN}, usd_per_million=1.5)]
    answer = replay_decisions(replace(here, services={"search": there}), past, "frugal", "", "1m")
    (point,) = answer.routes[0].points
    assert point.chosen_usd_per_million == pytest.approx(1.5)
    assert point.replayed_usd_per_million < 1.2  # less goes where bytes cost
    assert point.shares_replayed["a"] > 0.7


def test_phases_that_mesh_yaml_has_no_longer_are_replayed_all_the_same() -> None:
    past = [step(0.0, {key("shop", phase="gone"): EVEN, key("shop"): EVEN}, a=9.0)]
    answer = replay_decisions(mesh("shop", a=9.0, b=1.0), past, "frugal", "", "1m")
    assert [r.phase for r in answer.routes] == ["gone", "steady"]
    assert answer.chosen.usd == pytest.approx(sum(r.chosen.usd for r in answer.routes))
    assert answer.routes_changed == 2


@pytest.mark.parametrize(
    ("profile", "application", "says"),
    [
        ("frugal", "nobody", "no application nobody; known: plain, shop"),
        ("fast", "", "no profile fast; known: frugal, steady"),
        ("frugal", "plain", "no profile frugal; known: steady"),
        ("frugal", "", "no decisions about shop in this time"),
    ],
)
def test_what_cannot_be_replayed_is_answered_with_what_can(
    profile: str, application: str, says: str
) -> None:
    past = [step(0.0, {key("plain"): EVEN})]
    with pytest.raises(ValueError, match=says):
        replay_decisions(mesh("shop", "plain", a=1.0, b=1.0), past, profile, application, "1m")
