"""Stories: who is on standby comes when the others saturate, and goes when they do not."""

from collections.abc import Callable

from tests.scenario.world import Plane, Station
from xds_server.engine.adopt import adopt
from xds_server.engine.slow import SlowLoop
from xds_server.engine.substitutes import ENTER_TICKS, LEAVE_S
from xds_server.model.slow import SlowDecision
from xds_server.model.topology import EngineSettings, Mode

SLOW_S = 5.0
SETTINGS = EngineSettings(min_share_ratio=0.02, max_shift_ratio=0.25, slow_tick_s=SLOW_S)


def stations() -> dict[str, Station]:
    """East and west serve 670 requests/s; managed as fast, and dearer."""
    return {
        "east": Station(0.020, 8, 0.6),
        "west": Station(0.030, 8, 0.6),
        "managed": Station(0.025, 8, 1.5),
    }


class SlowPlane(Plane):
    """The world with slow ticks, as ``engine.runner`` runs them."""

    def __init__(self, rps: float, *, seed: int = 1, **options: object) -> None:
        self.slow = SlowLoop()
        self.decisions: list[tuple[float, SlowDecision]] = []
        super().__init__(
            stations(), rps, seed=seed, settings=SETTINGS, standby=frozenset({"managed"}), **options
        )
        self.slow.set_mesh(self.mesh)

    def step(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            super().step()
            assert self.last is not None
            found = self.slow.run(self.mesh, self.state.problem, self.last, {}, self.now_s)
            self.decisions += [(self.now_s, decision) for decision in found]
            if found:
                self.state = adopt(self.state, self._problem(None))

    def _substitutes(self) -> frozenset[str]:
        return self.slow.substitutes.active

    @property
    def actions(self) -> list[tuple[str, str]]:
        return [(d.target, d.action) for _, d in self.decisions]


def test_a_standby_enters_when_the_others_saturate_and_leaves_when_they_do_not() -> None:
    plane = SlowPlane(250.0)
    plane.step(40)
    assert plane.actions == []
    assert plane.shares["managed"] == 0.0

    plane.rps = 640.0
    plane.step(int(SLOW_S * (ENTER_TICKS + 1)))
    assert plane.actions == [("managed", "enter")]
    plane.step(20)
    assert plane.shares["managed"] > 0.1

    plane.rps = 250.0
    plane.step(int(LEAVE_S))
    assert plane.actions == [("managed", "enter")]  # held: demand may come back
    plane.step(60)
    assert plane.actions == [("managed", "enter"), ("managed", "leave")]
    plane.step(5)
    assert plane.shares["managed"] == 0.0


def test_silence_is_no_reason_to_leave() -> None:
    plane = SlowPlane(640.0)
    plane.step(40)
    assert plane.actions == [("managed", "enter")]
    (before,) = plane.slow.status(plane.now_s)
    plane.silent = True
    plane.step(int(LEAVE_S) + 60)
    assert plane.actions == [("managed", "enter")]
    (now,) = plane.slow.status(plane.now_s)
    assert (now.state, now.because, now.pending) == ("in", before.because, "")
    plane.silent = False
    plane.rps = 250.0
    plane.step(int(LEAVE_S))
    assert plane.actions == [("managed", "enter")]  # from now on it is idle, not from the silence


def test_traffic_comes_and_goes_in_steps_no_larger_than_the_largest() -> None:
    plane = SlowPlane(640.0)
    before, largest = plane.shares["managed"], 0.0

    def watch(until: Callable[[], bool]) -> None:
        nonlocal before, largest
        for _ in range(60):
            plane.step()
            largest = max(largest, abs(plane.shares["managed"] - before))
            before = plane.shares["managed"]
            if until():
                return
        raise AssertionError(plane.shares)

    watch(lambda: plane.shares["managed"] > 0.28)
    plane.slow.substitutes.release()  # as a reload that takes it out would
    plane.state = adopt(plane.state, plane._problem(None))
    watch(lambda: plane.shares["managed"] == 0.0)
    assert largest <= SETTINGS.max_shift_ratio + 0.001


def test_who_has_nobody_left_does_not_wait_for_a_slow_tick() -> None:
    plane = SlowPlane(100.0)
    plane.step(2)
    plane.without = frozenset({"east", "west"})
    plane.state = adopt(plane.state, plane._problem(None))
    plane.step(2)
    assert plane.actions == [("managed", "enter")]
    assert plane.shares["managed"] == 1.0


def test_noise_near_saturation_makes_nobody_flap() -> None:
    for seed in range(3):
        plane = SlowPlane(520.0, seed=seed)
        for second in range(900):
            plane.rps = 520.0 + (60.0 if second % 40 < 20 else -60.0)
            plane.step()
        assert len(plane.actions) <= 2, plane.decisions


def test_a_mesh_that_only_recommends_says_so_and_changes_nothing() -> None:
    plane = SlowPlane(640.0, mode=Mode.RECOMMEND)
    plane.step(25)
    assert plane.actions == [("managed", "enter")]
    assert not plane.decisions[0][1].enforced
    assert plane.shares["managed"] == 0.0
    (row,) = plane.slow.status(plane.now_s)
    assert (row.state, row.recommended) == ("standby", "enter")


def test_a_mesh_that_observes_decides_nothing() -> None:
    plane = SlowPlane(640.0, mode=Mode.OBSERVE)
    plane.step(60)
    assert plane.actions == []


def test_a_dear_standby_stays_out() -> None:
    plane = SlowPlane(400.0)
    plane.stations["managed"].price_usd_per_million = 60.0
    plane.step(60)
    assert plane.actions == []
