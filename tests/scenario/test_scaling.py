"""Stories: how many endpoints are recommended, and when."""

from dataclasses import replace

from tests.scenario.world import Plane, Station
from xds_server.engine.scaling import SURPLUS_S
from xds_server.engine.slow import SlowLoop
from xds_server.model.slow import SlowDecision
from xds_server.model.template import Profile
from xds_server.model.topology import EngineSettings, Scale

SLOW_S = 5.0
SETTINGS = EngineSettings(min_share_ratio=0.02, max_shift_ratio=0.25, slow_tick_s=SLOW_S)
COUNT = 4


class ScaledPlane(Plane):
    """The world with slow ticks; east has four endpoints of two servers each, or 400 requests/s."""

    def __init__(
        self,
        rps: float,
        *,
        hourly_usd: float = 0.2,
        price_usd: float = 1.0,
        scale: Scale = Scale("process", 1, 8, 2.0),  # noqa: B008 - frozen
        **options: object,
    ) -> None:
        stations = {"east": Station(0.02, 2 * COUNT, price_usd), "west": Station(0.03, 4, 1.0)}
        super().__init__(stations, rps, settings=SETTINGS, **options)
        service = self.mesh.services["search"]
        east, west = service.providers
        price = replace(east.price, per_endpoint_hour_usd=hourly_usd)
        providers = (replace(east, scale=scale, price=price), west)
        self.mesh = replace(self.mesh, services={"search": replace(service, providers=providers)})
        self.slow = SlowLoop()
        self.slow.set_mesh(self.mesh)
        self.count = COUNT
        self.decisions: list[SlowDecision] = []

    def step(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            super().step()
            assert self.last is not None
            counts = {"east": self.count, "west": 1}
            self.decisions += self.slow.run(
                self.mesh, self.state.problem, self.last, counts, self.now_s
            )

    @property
    def actions(self) -> list[str]:
        return [d.action for d in self.decisions]

    @property
    def recommended(self) -> str:
        (row,) = self.slow.status(self.now_s)
        return row.recommended


def test_a_saturated_provider_gets_a_recommendation_of_more() -> None:
    plane = ScaledPlane(500.0)
    plane.step(30)
    assert plane.actions[:1] == ["out"]
    assert int(plane.recommended) > COUNT
    assert not plane.decisions[0].enforced


def test_an_idle_provider_may_have_fewer_after_the_hold_and_not_before() -> None:
    plane = ScaledPlane(60.0)
    plane.step(int(SURPLUS_S) - 20)
    assert plane.actions == []
    assert plane.slow.status(plane.now_s)[0].pending != ""
    plane.step(60)
    assert plane.actions[:1] == ["in"]
    assert int(plane.recommended) < COUNT


def test_a_provider_at_ease_keeps_what_it_has() -> None:
    plane = ScaledPlane(330.0)
    plane.step(300)
    assert "in" not in plane.actions  # without one more, the others could not bear it
    assert len(plane.actions) <= 1


def test_a_surge_ends_the_hold() -> None:
    plane = ScaledPlane(60.0)
    plane.step(int(SURPLUS_S) - 40)
    plane.rps = 380.0
    plane.step(30)
    plane.rps = 60.0
    plane.step(int(SURPLUS_S) - 20)
    assert "in" not in plane.actions


def test_what_a_profile_expects_is_kept_ready() -> None:
    expected = (Profile("steady", latency_p95_s=0.3, throughput_rps=400.0),)
    plane = ScaledPlane(60.0, profiles=expected)
    plane.step(260)
    assert "in" not in plane.actions


def test_bounds_hold() -> None:
    plane = ScaledPlane(560.0, scale=Scale("process", COUNT, COUNT, 2.0))
    plane.step(60)
    assert plane.actions == []
    idle = ScaledPlane(30.0, scale=Scale("process", COUNT, 8, 2.0))
    idle.step(240)
    assert idle.actions == []


def test_dear_endpoints_are_not_asked_for() -> None:
    plane = ScaledPlane(480.0, hourly_usd=1e5)
    plane.step(40)
    assert "out" not in plane.actions


def test_where_endpoints_have_no_price_an_objective_alone_asks_for_more() -> None:
    plane = ScaledPlane(60.0, hourly_usd=0.0)
    plane.step(240)
    assert plane.actions == []
    plane.rps = 620.0
    plane.step(30)
    assert plane.actions == ["out"]


def test_noise_changes_no_recommendation_for_ever() -> None:
    plane = ScaledPlane(400.0)
    for second in range(600):
        plane.rps = 400.0 + (40.0 if second % 30 < 15 else -40.0)
        plane.step()
    assert set(plane.actions) <= {"out"}, plane.decisions
    assert len(plane.actions) <= 3, plane.decisions
