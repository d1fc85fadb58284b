"""Stories: moves that may overload what they go to, if the models are wrong."""

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from tests.scenario.harm import get_cheap_and_break, settled
from tests.scenario.world import Plane, Station
from xds_server.admin.encode import dumps
from xds_server.admin.render_explain import render_explanation
from xds_server.engine.explain import explain
from xds_server.engine.foresee import Foresight
from xds_server.engine.report import record_turn
from xds_server.engine.runner import Turn
from xds_server.model.decision import HoldReason
from xds_server.model.template import Profile
from xds_server.observability import Metrics

SURE, UNSURE = 0.02, 0.3
"""Standard deviations of the logarithm of a capacity."""


def believe(plane: Plane, sigma: float) -> None:
    """Let the engine be so sure of every capacity; nobody reports any utilisation."""
    models = plane.state.models
    capacity = replace(models.capacity, variance=np.full_like(models.capacity.variance, sigma**2))
    plane.state.models = replace(models, capacity=capacity)


def foreseen(plane: Plane) -> Foresight | None:
    assert plane.last is not None
    return plane.last.foresight


def shares(plane: Plane, sigma: float, ticks: int) -> list[dict[str, float]]:
    """Believe that while the world goes on."""
    path = []
    for _ in range(ticks):
        believe(plane, sigma)
        plane.step()
        path.append(plane.shares)
    return path


def tempting() -> Plane:
    """West has become cheap, but it cannot carry everything."""
    profile = Profile("steady", latency_p95_s=0.3, performance_weight=0.4, cost_weight=0.6)
    stations = {"east": Station(0.020, 12, 1.0), "west": Station(0.020, 6, 1.0)}
    plane = Plane(stations, 400.0, profiles=(profile,))
    plane.step(20)
    stations["west"].price_usd_per_million = 0.1
    return plane


def test_what_may_tip_a_provider_into_overload_goes_less_far() -> None:
    """Unsure of the capacity it goes on in small steps, each of which shows that more is there."""
    told: dict[float, set[HoldReason]] = {}
    short: dict[float, int] = {}
    west: dict[float, list[float]] = {}
    for sigma in (SURE, UNSURE):
        plane, told[sigma], short[sigma], west[sigma] = tempting(), set(), 0, []
        before = plane.shares["west"]
        for _ in range(6):
            west[sigma].append(shares(plane, sigma, 1)[0]["west"] - before)
            seen = foreseen(plane)
            short[sigma] += 0 if seen is None else seen.shortened
            assert plane.last is not None
            told[sigma].update(plane.last.decision.hold_reason)
    assert HoldReason.RISKY not in told[SURE]
    assert short[SURE] == 0
    assert HoldReason.RISKY in told[UNSURE]
    assert short[UNSURE] > 0
    assert west[UNSURE][0] == pytest.approx(0.5 * west[SURE][0], abs=0.01)
    assert max(west[UNSURE]) < west[SURE][-1]


def test_an_explanation_tells_what_was_simulated() -> None:
    plane = tempting()
    for _ in range(12):
        shares(plane, UNSURE, 1)
        last, problem = plane.last, plane.state.problem
        assert last is not None
        told = explain(problem, last, problem.routes[0], plane.mesh)
        assert (told.outlook is None) == (last.foresight is None)
        if told.outlook is not None and told.outlook.part < 1.0:
            break
    seen = told.outlook
    assert seen is not None
    assert seen.part < 1.0
    assert seen.worse_ms > told.gain_ms
    assert seen.plan.worst_ms > seen.plan.mean_ms
    assert seen.made.worst_ms < seen.plan.worst_ms
    if seen.part == 0.0:
        assert told.hold_reason is HoldReason.RISKY
        assert seen.made == seen.hold


def test_operators_see_it_and_metrics_count_it() -> None:
    plane, metrics = tempting(), Metrics()
    held = shortened = 0
    said = set()
    for _ in range(8):
        shares(plane, UNSURE, 1)
        last, problem, seen = plane.last, plane.state.problem, foreseen(plane)
        assert last is not None
        record_turn(metrics, problem, Turn(last, (), {}, 0.01))
        if seen is None:
            continue
        held, shortened = held + seen.held, shortened + seen.shortened
        told = explain(problem, last, problem.routes[0], plane.mesh)
        console = Console(width=220, file=StringIO())
        console.print(render_explanation(json.loads(dumps([told]))))
        (line,) = [x for x in printed(console) if x.startswith("simulated: ")]
        assert " (worst tenth " in line
        ends = {1.0: "", 0.5: "; shortened to 50.0%: ", 0.25: "; shortened to 25.0%: "}
        assert ends.get(seen.part[0], "; not made") in line
        said.add(seen.part[0])
    assert said >= {0.0, 0.5}
    counted = metrics.registry.get_sample_value
    name = "xds_server_foreseen_total"
    assert counted(name, {"result": "held"}) == held > 0
    assert counted(name, {"result": "shortened"}) == shortened > 0


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_where_nothing_moves_nothing_is_simulated() -> None:
    plane = tempting()
    plane.silent = True
    plane.step(6)
    assert foreseen(plane) is None
    last, problem = plane.last, plane.state.problem
    assert last is not None
    assert explain(problem, last, problem.routes[0], plane.mesh).outlook is None


def three(rps: float) -> Plane:
    """Two of three have little to spare for the third's traffic."""
    stations = {name: Station(0.020, 6) for name in ("one", "two", "three")}
    plane = Plane(stations, rps)
    plane.step(20)
    return plane


@pytest.mark.parametrize("rps", [450.0, 560.0])
def test_a_dead_provider_is_left_as_fast_however_unsure_its_heirs(rps: float) -> None:
    paths = []
    for sigma in (SURE, UNSURE):
        plane = three(rps)
        plane.stations["one"].error_ratio = 1.0
        paths.append(shares(plane, sigma, 6))
    assert paths[0][3]["one"] < 0.05
    assert paths[1] == paths[0]


def test_a_browned_out_provider_is_left_as_fast_however_unsure_its_heirs() -> None:
    paths = []
    for sigma in (SURE, UNSURE):
        plane = three(450.0)
        plane.stations["one"].service_s *= 3.0
        paths.append([share["one"] for share in shares(plane, sigma, 10)])
    assert paths[0][-1] < 0.2
    np.testing.assert_allclose(paths[1], paths[0], atol=0.01)


def test_who_would_not_survive_a_loss_still_is_refused_for_that() -> None:
    profile = Profile(
        "steady", latency_p95_s=0.08, performance_weight=0.3, cost_weight=0.7, survive_loss=True
    )
    stations = {
        "dear": Station(0.020, 2, 4.0),
        "fair": Station(0.020, 3, 1.0),
        "cheap": Station(0.020, 10, 0.1),
    }
    plane = Plane(stations, 200.0, profiles=(profile,))
    reasons: set[HoldReason] = set()
    for _ in range(25):
        shares(plane, UNSURE, 1)
        assert plane.last is not None
        assert not plane.last.decision.fragile.any()
        reasons.update(plane.last.decision.hold_reason)
    assert HoldReason.FRAGILE in reasons


def test_a_move_that_did_harm_still_is_taken_back() -> None:
    """Its capacity was as it was said to be, so that no simulation could know."""
    plane = settled(seed=1)
    get_cheap_and_break(plane)
    reverted = []
    for _ in range(8):
        shares(plane, SURE, 1)
        last, problem = plane.last, plane.state.problem
        assert last is not None
        reverted += last.reverted
        if last.reverted:
            # What was simulated is not what was done.
            assert explain(problem, last, problem.routes[0], plane.mesh).outlook is None
    assert reverted
