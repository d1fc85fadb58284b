"""Stories: what a plan would be without its largest provider."""

import pytest

from tests.scenario.world import Plane, Station
from xds_server.model.decision import HoldReason
from xds_server.model.template import Profile


def two(big: int) -> dict[str, Station]:
    """One provider is cheap and carries everything; the other has ``big`` servers."""
    return {"cheap": Station(0.020, 12, 0.1), "spare": Station(0.020, big, 1.0)}


def plane(big: int, *, careful: bool) -> Plane:
    profile = Profile("steady", latency_p95_s=0.15, survive_loss=careful)
    return Plane(two(big), 200.0, profiles=(profile,))


@pytest.mark.parametrize(("big", "fragile"), [(3, True), (12, False)])
def test_a_route_whose_others_cannot_carry_it_is_fragile(big: int, fragile: bool) -> None:
    p = plane(big, careful=False)
    p.step(20)
    assert p.last is not None
    assert bool(p.last.decision.fragile[0]) == fragile


def test_a_move_that_a_careful_route_would_not_survive_is_refused() -> None:
    """Without the cheap one the other two do not carry 200 requests/s."""
    fragile: dict[bool, list[bool]] = {False: [], True: []}
    reasons: set[HoldReason] = set()
    cheap = {}
    for careful in fragile:
        profile = Profile(
            "steady",
            latency_p95_s=0.08,
            performance_weight=0.3,
            cost_weight=0.7,
            survive_loss=careful,
        )
        stations = {
            "dear": Station(0.020, 2, 4.0),
            "fair": Station(0.020, 3, 1.0),
            "cheap": Station(0.020, 10, 0.1),
        }
        p = Plane(stations, 200.0, profiles=(profile,))
        for _ in range(25):
            p.step()
            assert p.last is not None
            fragile[careful].append(bool(p.last.decision.fragile[0]))
            reasons.update(p.last.decision.hold_reason if careful else ())
        cheap[careful] = p.shares["cheap"]
    assert all(fragile[False])
    assert not any(fragile[True])
    assert HoldReason.FRAGILE in reasons
    assert cheap[True] < cheap[False] - 0.1
