"""Standard errors: what many repetitions of a measurement scatter by."""

import numpy as np
import pytest

from xds_server.core.chance import quantile_error_s, rate_error, ratio_error
from xds_server.core.histogram import quantile_s
from xds_server.model.telemetry import LATENCY_BUCKETS_MS

BOUNDS_S = np.array(LATENCY_BUCKETS_MS) / 1e3
TRIALS = 4000


def test_a_rate_scatters_as_it_says() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.poisson(50.0, TRIALS), rng.poisson(8.0, TRIALS)  # over 5 s and over 2 s
    said = rate_error(np.array([50.0 / 25.0 + 8.0 / 4.0]), 5.0)[0]
    assert said == pytest.approx((first / 5.0 + second / 2.0).std(), rel=0.05)


def test_no_event_is_less_than_about_one() -> None:
    assert rate_error(np.array([0.0]), 5.0).tolist() == [0.2]


def test_a_ratio_scatters_as_it_says_and_none_is_not_never() -> None:
    rng = np.random.default_rng(2)
    failed = rng.binomial(400, 0.1, TRIALS)
    said = ratio_error(np.array([40.0, 0.0, 7.0]), np.array([400.0, 10.0, 5.0]))
    assert said[0] == pytest.approx((failed / 400.0).std(), rel=0.05)
    assert 0.05 < said[1] < 0.15
    assert said[2] > 0.0
    assert ratio_error(np.zeros(1), np.zeros(1))[0] == pytest.approx(0.25)


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_a_quantile_is_within_twice_its_error_as_a_rule(q: float) -> None:
    rng = np.random.default_rng(3)
    edges = np.concatenate([[0.0], BOUNDS_S, [np.inf]])
    hists = np.array(
        [np.histogram(rng.lognormal(-3.0, 0.6, 300), edges)[0] for _ in range(500)], dtype=float
    )
    truth = np.quantile(rng.lognormal(-3.0, 0.6, 2_000_000), q)
    off = np.abs(quantile_s(hists, BOUNDS_S, q) - truth)
    said = quantile_error_s(hists, BOUNDS_S, q)
    assert (off <= 2.0 * said).mean() > 0.9
    assert np.median(said) < 0.35 * truth


def test_more_samples_leave_the_width_of_the_bucket() -> None:
    hist = np.zeros((2, len(BOUNDS_S) + 1))
    hist[:, 8] = [1.0, 1e9]  # 14 to 20 ms
    few, many = quantile_error_s(hist, BOUNDS_S, 0.5)
    assert many == pytest.approx(0.006 / np.sqrt(12.0), rel=1e-3)
    assert few > many


def test_without_samples_and_above_all_bounds_nothing_is_known() -> None:
    hist = np.zeros((2, len(BOUNDS_S) + 1))
    hist[1, -1] = 10.0
    assert np.isnan(quantile_error_s(hist, BOUNDS_S, 0.5)).all()
