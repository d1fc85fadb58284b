"""Stories: a feature goes off while its calls cost more than it is worth, and comes back."""

from dataclasses import replace

import numpy as np
import pytest

from tests.scenario.world import Plane, Station
from xds_server.core.scaling import usd_per_h
from xds_server.engine.slow import SlowLoop
from xds_server.engine.switches import ON_S
from xds_server.engine.work import STEP_PAIRS
from xds_server.model.slow import SlowDecision
from xds_server.model.template import Flag
from xds_server.model.topology import Application, EngineSettings, Mesh, Mode, Scale

SLOW_S = 5.0
SETTINGS = EngineSettings(min_share_ratio=0.02, max_shift_ratio=0.25, slow_tick_s=SLOW_S)
FLAG = Flag("recommendations", default=True, saves={"search": 0.4}, worth_usd_per_h=4.0)
CALM_RPS, OVERLOAD_RPS = 200.0, 700.0


def with_flag(mesh: Mesh, flag: Flag) -> Mesh:
    template = replace(mesh.templates["web"], flags=(flag,))
    return replace(
        mesh, templates={"web": template}, applications={"shop": Application("shop", template)}
    )


class FlagPlane(Plane):
    """The world with slow ticks and an application that makes fewer calls without its feature."""

    def __init__(self, flag: Flag = FLAG, *, price_usd: float = 0.6, **options: object) -> None:
        stations = {"east": Station(0.02, 8, price_usd), "west": Station(0.03, 8, price_usd)}
        super().__init__(stations, CALM_RPS, settings=SETTINGS, **options)
        self.mesh = with_flag(self.mesh, flag)
        self.slow = SlowLoop()
        self.slow.set_mesh(self.mesh)
        self.asked_rps = CALM_RPS
        self.decisions: list[SlowDecision] = []

    def step(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            self.rps = self.asked_rps * (1.0 if self.on else 0.6)
            super().step()
            assert self.last is not None
            found = self.slow.run(self.mesh, self.state.problem, self.last, {}, self.now_s)
            self.decisions += found

    @property
    def on(self) -> bool:
        states = self.slow.switches.states.get(("shop", "web"), {})
        return states.get("recommendations", True)

    @property
    def actions(self) -> list[str]:
        return [d.action for d in self.decisions]


def test_a_feature_goes_off_under_overload_and_is_on_again_after_the_hold() -> None:
    plane = FlagPlane()
    plane.step(30)
    assert plane.on

    plane.asked_rps = OVERLOAD_RPS
    plane.step(20)
    assert plane.actions == ["off"]
    plane.step(100)
    # Demand is low now because it is off: it would be too high if it were on.
    assert plane.actions == ["off"]

    plane.asked_rps = CALM_RPS
    plane.step(int(ON_S) - 20)
    assert plane.actions == ["off"]
    plane.step(60)
    assert plane.actions == ["off", "on"]


def test_a_feature_that_is_worth_a_lot_stays_on() -> None:
    plane = FlagPlane(replace(FLAG, worth_usd_per_h=1e6))
    plane.asked_rps = 560.0
    plane.step(60)
    assert plane.actions == []


def test_a_feature_whose_calls_cost_more_than_it_is_worth_goes_off_without_any_overload() -> None:
    # 40 % of 200 requests/s at 100 dollars per million are 28.8 dollars an hour.
    plane = FlagPlane(replace(FLAG, worth_usd_per_h=10.0), price_usd=100.0)
    plane.step(20)
    assert plane.actions == ["off"]


def test_an_operators_feature_is_never_touched() -> None:
    plane = FlagPlane(replace(FLAG, owner="operator"))
    plane.asked_rps = OVERLOAD_RPS
    plane.step(60)
    assert plane.actions == []
    assert plane.slow.status(plane.now_s) == ()


def test_where_nothing_has_a_price_only_a_breached_objective_switches() -> None:
    plane = FlagPlane(price_usd=0.0)
    plane.step(60)
    assert plane.actions == []
    plane.asked_rps = OVERLOAD_RPS
    plane.step(30)
    assert plane.actions == ["off"]


def test_noise_at_the_margin_makes_no_feature_flap() -> None:
    plane = FlagPlane()
    for second in range(900):
        plane.asked_rps = 600.0 + (60.0 if second % 30 < 15 else -60.0)
        plane.step()
    assert len(plane.actions) <= 2


def test_a_mesh_that_recommends_leaves_the_feature_on() -> None:
    plane = FlagPlane(mode=Mode.RECOMMEND)
    plane.asked_rps = OVERLOAD_RPS
    plane.step(20)
    assert plane.actions == ["off"]
    assert plane.on
    (row,) = plane.slow.status(plane.now_s)
    assert (row.state, row.recommended) == ("on", "off")


def test_silence_switches_nothing() -> None:
    plane = FlagPlane()
    plane.asked_rps = OVERLOAD_RPS
    plane.silent = True
    plane.step(40)
    assert plane.actions == []


def test_time_has_a_price_only_where_money_is_part_of_the_objective() -> None:
    one = np.array([100.0])
    # 100 requests/s, 20 ms shorter, 1000 ms a dollar: 2 dollars a second.
    assert usd_per_h(one, np.array([20.0]), np.array([1e3])) == 7200.0
    assert usd_per_h(one, np.array([20.0]), np.array([0.0])) == 0.0


def test_features_that_there_was_no_time_for_have_their_turn_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plane = FlagPlane()
    names = ("a", "b", "c")
    template = plane.mesh.templates["web"]
    flags = tuple(replace(FLAG, name=name) for name in names)
    mesh = replace(plane.mesh, templates={"web": replace(template, flags=flags)})
    plane.step(20)
    assert plane.last is not None
    monkeypatch.setattr("xds_server.engine.slow.SLICE_PAIRS", STEP_PAIRS)  # about a step a tick
    slow, seen = SlowLoop(), [[]]
    for second in range(200):
        slow.run(mesh, plane.state.problem, plane.last, {}, float(second))
        shown = [row.target for row in slow.status(float(second))]
        if shown != seen[-1]:
            seen.append(shown)
    assert seen == [[f"shop/{name}" for name in names[:count]] for count in range(len(names) + 1)]


def test_a_kind_that_there_was_no_time_for_begins_next(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = FlagPlane()
    service = plane.mesh.services["search"]
    east, west = service.providers
    scaled = replace(east, scale=Scale("process", 1, 8, ready_s=0.0))
    providers = (scaled, replace(west, standby=True))
    mesh = replace(plane.mesh, services={"search": replace(service, providers=providers)})
    plane.step(20)
    assert plane.last is not None
    asked = {"search": "substitute", "shop": "flag", "east": "scale"}

    def begun(slice_pairs: int, ticks: int) -> list[tuple[float, str]]:
        monkeypatch.setattr("xds_server.engine.slow.SLICE_PAIRS", slice_pairs)
        slow, found = SlowLoop(), []
        assert plane.last is not None
        for second in range(ticks):
            slow.run(mesh, plane.state.problem, plane.last, {"east": 2}, float(second))
            found += [
                (second, asked[target])
                for (_, target), looked_s in slow.agenda.looked_s.items()
                if looked_s == second
            ]
        return found

    order = ["substitute", "flag", "scale"]
    whole = begun(10**9, 15)
    assert whole == [(5, kind) for kind in order] + [(10, kind) for kind in order]
    sliced = begun(STEP_PAIRS, 200)
    assert [kind for _, kind in sliced][:6] == 2 * order
    assert len({second for second, _ in sliced}) == len(sliced)  # each at a tick of its own
