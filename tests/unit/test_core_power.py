"""Power curves: what is learned of a provider from its response times alone."""

from dataclasses import replace

import numpy as np
import pytest

from xds_server.core import latency, power
from xds_server.core.latency import Stations
from xds_server.core.power import PowerFits

BASE_S, RISE_S, SCALE_RPS, EXPONENT = 0.028, 0.030, 400.0, 4.0
ALONE = np.array([-1, -1])
KIN = np.array([0, 0])


def truth_s(rps: np.ndarray) -> np.ndarray:
    """A chain of services: nothing that one station could be."""
    return BASE_S + RISE_S * (rps / SCALE_RPS) ** EXPONENT


def learn(
    fits: PowerFits, rps: np.ndarray, time_s: np.ndarray, kin: np.ndarray, samples: float = 500.0
) -> PowerFits:
    """Take one measurement of each of the two providers in."""
    ones = np.ones(2)
    stations = Stations(0.9 * time_s, 8.0 * ones, ones, ones, 2.0 * ones)
    none = np.zeros(2, dtype=bool)
    variance = 0.25 / samples * ones
    return power.update(fits, rps, time_s, samples * ones, variance, stations, none, ~none, kin)


def learned(loads: list[tuple[float, float]], kin: np.ndarray, seed: int) -> PowerFits:
    """Both providers at each pair of loads in turn, measured to 2 %."""
    rng = np.random.default_rng(seed)
    fits = power.no_fits(2)
    for pair in loads:
        rps = np.array(pair)
        fits = learn(fits, rps, truth_s(rps) * rng.lognormal(0.0, 0.02, 2), kin)
    return fits


def marginal_s(fits: PowerFits, rps: float) -> float:
    """The first provider's, by its power curve, chosen or not."""
    curves = replace(power.curves(fits), chosen=np.ones(2, dtype=bool))
    ones = np.ones(2)
    stations = Stations(ones, ones, ones, ones, ones, curves)
    return float(latency.marginal_s(stations, np.full(2, rps))[0][0])


def test_a_kins_idle_time_tells_how_steep_a_curve_is_that_was_seen_in_a_narrow_range() -> None:
    # The first is never below 330 requests/s, the second never above 120.
    loads = [(400.0, 90.0), (380.0, 100.0), (360.0, 110.0), (345.0, 120.0), (330.0, 105.0)] * 2
    true = BASE_S + (EXPONENT + 1.0) * RISE_S * (350.0 / SCALE_RPS) ** EXPONENT

    def error(kin: np.ndarray) -> float:
        off = [marginal_s(learned(loads, kin, seed), 350.0) / true - 1.0 for seed in range(20)]
        return float(np.sqrt(np.mean(np.square(off))))

    assert error(KIN) < 0.12
    assert error(KIN) < 0.6 * error(ALONE)


@pytest.mark.parametrize(
    ("rps", "factor"),
    [(120.0, 5.0), (400.0, 0.2)],
    ids=["slower at less load", "quicker at more"],
)
def test_who_contradicts_that_response_times_grow_with_load_has_changed(
    rps: float, factor: float
) -> None:
    fits = learned([(200.0, 200.0), (220.0, 220.0), (240.0, 240.0)] * 3, ALONE, 1)
    assert (fits.count > 5.0).all()
    now = np.array([rps, 230.0])
    after = learn(fits, now, truth_s(now) * np.array([factor, 1.0]), ALONE)
    assert after.count[0] <= 1.0
    assert (after.weight[0] > 0.0).sum() == 1
    assert after.count[1] == fits.count[1] + 1.0


@pytest.mark.parametrize("rps", [120.0, 400.0])
def test_another_load_alone_is_no_change(rps: float) -> None:
    fits = learned([(200.0, 200.0), (220.0, 220.0), (240.0, 240.0)] * 3, ALONE, 1)
    now = np.array([rps, rps])
    assert (learn(fits, now, truth_s(now), ALONE).count > fits.count).all()
