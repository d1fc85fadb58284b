"""Stories: what the engine does to a mesh that answers."""

import itertools

import numpy as np

from tests.scenario.world import Plane, Station
from xds_server.core import limits
from xds_server.model.decision import HoldReason
from xds_server.model.template import Geography, Profile
from xds_server.model.topology import EngineSettings, Mode


def three() -> dict[str, Station]:
    return {
        "east": Station(0.020, 8, 0.6),
        "west": Station(0.030, 6, 0.3),
        "managed": Station(0.025, 8, 1.5),
    }


BASELINE = {"east": 45, "west": 35, "managed": 20}


def test_a_browned_out_provider_loses_two_thirds_within_six_ticks_and_gets_it_back() -> None:
    stations = three()
    plane = Plane(stations, 150.0, baseline=BASELINE)
    plane.step(20)
    before = plane.shares["east"]
    assert before > 0.1

    stations["east"].service_s *= 6.0
    plane.step(6)
    assert plane.shares["east"] <= before / 3.0

    plane.step(10)
    stations["east"].service_s /= 6.0
    plane.step(20)
    assert plane.shares["east"] >= before / 2.0


def test_a_provider_that_gets_dearer_loses_share() -> None:
    stations = three()
    plane = Plane(stations, 150.0, baseline=BASELINE)
    plane.step(20)
    before = plane.shares["west"]

    stations["west"].price_usd_per_million *= 8.0
    plane.step(8)
    assert plane.shares["west"] < before / 3.0


def test_a_dead_provider_is_left_within_four_ticks() -> None:
    stations = three()
    plane = Plane(stations, 150.0, baseline=BASELINE)
    plane.step(20)

    stations["east"].error_ratio = 1.0
    plane.step(4)
    assert plane.shares["east"] < 0.05


def test_a_steady_mesh_is_left_alone() -> None:
    plane = Plane(three(), 150.0, baseline=BASELINE)
    plane.step(30)
    pushed = len(plane.actuator.overlays)
    before = plane.shares
    plane.step(60)
    assert len(plane.actuator.overlays) - pushed <= 12
    assert max(abs(plane.shares[n] - before[n]) for n in before) < 0.12


def test_every_tick_renews_what_is_published() -> None:
    plane = Plane(three(), 150.0, baseline=BASELINE)
    plane.step(5)
    assert plane.actuator.renewals == 5


def test_weights_move_at_most_the_allowed_shift_in_one_tick() -> None:
    stations = three()
    plane = Plane(stations, 150.0, baseline=BASELINE)
    shares = [plane.shares]
    for tick in range(30):
        if tick == 15:
            stations["west"].error_ratio = 1.0
        plane.step()
        shares.append(plane.shares)
    moved = [0.5 * sum(abs(b[n] - a[n]) for n in a) for a, b in itertools.pairwise(shares)]
    assert max(moved) <= plane.mesh.engine.max_shift_ratio + 3 / limits.WEIGHT_TOTAL


def test_without_telemetry_every_route_holds() -> None:
    plane = Plane(three(), 150.0, baseline=BASELINE)
    plane.step(10)
    plane.silent = True
    before, pushed = plane.shares, len(plane.actuator.overlays)
    plane.step(5)
    assert plane.shares == before
    assert len(plane.actuator.overlays) == pushed
    assert plane.last is not None
    assert plane.last.decision.hold_reason == (HoldReason.NO_TELEMETRY,)


def test_modes_that_do_not_enforce_publish_nothing_but_still_decide() -> None:
    plane = Plane(three(), 150.0, baseline=BASELINE, mode=Mode.RECOMMEND)
    plane.step(5)
    assert plane.actuator.overlays == []
    assert plane.actuator.renewals == 0
    assert plane.last is not None
    assert not np.allclose(plane.last.decision.shares, plane.state.shares)


def test_mode_observe_measures_and_decides_nothing() -> None:
    plane = Plane(three(), 150.0, baseline=BASELINE, mode=Mode.OBSERVE)
    plane.step(5)
    assert plane.last is not None
    assert plane.last.decision.hold_reason == (HoldReason.OBSERVING,)
    assert plane.last.evaluation.observation.route_rps[0] > 100.0
    assert plane.actuator.overlays == []


def test_a_provider_that_failed_is_tried_again_when_it_is_well() -> None:
    """At the floor it gets a request or two in a second, and still comes back."""
    stations = three()
    plane = Plane(stations, 150.0, baseline=BASELINE)
    plane.step(20)
    before = plane.shares["east"]
    stations["east"].service_s *= 6.0
    stations["east"].error_ratio = 0.5
    plane.step(12)
    assert plane.shares["east"] < before / 3.0
    stations["east"].service_s /= 6.0
    stations["east"].error_ratio = 0.0
    plane.step(20)
    assert plane.shares["east"] >= before / 2.0


def test_a_dead_provider_that_is_hardly_probed_is_not_believed_well() -> None:
    """20 requests a second and a floor of 0.2 %: most ticks bring no evidence."""
    stations = three()
    settings = EngineSettings(min_share_ratio=0.002, max_shift_ratio=0.35)
    plane = Plane(stations, 20.0, baseline=BASELINE, settings=settings)
    plane.step(20)
    stations["east"].error_ratio = 1.0
    plane.step(6)
    shares = []
    for _ in range(60):
        plane.step()
        shares.append(plane.shares["east"])
    assert max(shares) < 0.01


def test_a_change_of_phase_moves_no_traffic_by_itself() -> None:
    profiles = (
        Profile("early", when="instance.age_s < 30.0", latency_p95_s=0.3),
        Profile("steady", latency_p95_s=0.3),
    )
    plane = Plane(three(), 150.0, baseline=BASELINE, profiles=profiles)
    plane.step(20)
    before = plane.shares
    plane.enter("early")
    plane.step()
    assert [g.phase for g in plane.actuator.overlays[-1].weights] == ["early"]
    assert max(abs(plane.shares[n] - before[n]) for n in before) < 0.05


def test_a_required_region_masks_all_others() -> None:
    profiles = (Profile("steady", geography=Geography(require=("there",))),)
    plane = Plane(three(), 60.0, profiles=profiles, region={"west": "there"})
    plane.step(3)
    assert plane.shares == {"east": 0.0, "west": 1.0, "managed": 0.0}


def test_cost_counts_as_the_profile_says() -> None:
    """The same mesh, once for performance and once for money."""
    spent = {}
    for name, performance, cost in (("fast", 1.0, 0.0), ("cheap", 0.1, 0.9)):
        profile = Profile("steady", performance_weight=performance, cost_weight=cost)
        plane = Plane(three(), 80.0, baseline=BASELINE, profiles=(profile,))
        plane.step(40)
        price = {n: s.price_usd_per_million for n, s in plane.stations.items()}
        spent[name] = sum(share * price[n] for n, share in plane.shares.items())
    assert spent["cheap"] < 0.75 * spent["fast"]


def test_a_new_provider_is_probed_even_if_nothing_speaks_for_it() -> None:
    stations = three()
    stations["managed"].price_usd_per_million = 500.0
    plane = Plane(stations, 100.0, baseline={"east": 50, "west": 50, "managed": 0})
    plane.step(5)
    assert 0.01 <= plane.shares["managed"] <= 0.05


def test_a_standby_provider_gets_nothing() -> None:
    plane = Plane(three(), 100.0, standby=frozenset({"managed"}))
    plane.step(10)
    assert plane.shares["managed"] == 0.0


def test_capacity_is_learned_where_none_was_declared() -> None:
    plane = Plane(three(), 150.0, baseline=BASELINE, capacity=False)
    plane.step(30)
    assert plane.last is not None
    observed = plane.last.evaluation.observation.route_p95_s[0]
    assert observed < 0.1
