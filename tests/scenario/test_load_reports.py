"""What providers say of their load arrives seconds late, and is of another load than now's."""

import numpy as np
import pytest

from tests.scenario.test_loop import BASELINE, three
from tests.scenario.world import Plane


def capacities(plane: Plane) -> dict[str, float]:
    found = plane.state.models.capacity_rps
    return dict(zip(plane.state.problem.providers, found.tolist(), strict=True))


@pytest.mark.parametrize("report_s", [2, 10])
def test_a_load_that_has_changed_since_the_report_makes_no_other_capacity(report_s: int) -> None:
    plane = Plane(three(), 60.0, baseline=BASELINE, capacity=False)
    plane.report_s = report_s
    plane.step(40)
    used = {name for name, share in plane.shares.items() if share > 0.1}
    before = {name: cap for name, cap in capacities(plane).items() if name in used}
    truth = {name: plane.stations[name].servers / plane.stations[name].service_s for name in used}
    assert before == pytest.approx(truth, rel=0.15)

    plane.rps *= 3.0
    found = []
    for _ in range(2 * report_s):
        plane.step()
        found.append([capacities(plane)[name] / truth[name] for name in used])
    assert np.max(found) < 1.25
    assert np.min(found) > 0.8


@pytest.mark.parametrize(("report_s", "ticks"), [(2, 12), (10, 25)])
@pytest.mark.parametrize("seed", range(5))
def test_a_provider_whose_brown_out_ends_is_believed_soon_after_the_next_report(
    report_s: int, ticks: int, seed: int
) -> None:
    stations = three()
    plane = Plane(stations, 150.0, baseline=BASELINE, seed=seed, capacity=False)
    plane.report_s = report_s
    plane.step(20)
    before = plane.shares["east"]
    assert before > 0.1

    stations["east"].service_s *= 6.0
    plane.step(12)
    assert plane.shares["east"] < before / 3.0
    assert capacities(plane)["east"] < 200.0  # it was 400, and is 67

    stations["east"].service_s /= 6.0
    plane.step(ticks)
    assert plane.shares["east"] >= before / 2.0
    assert capacities(plane)["east"] > 200.0
