import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xds_server.core.estimate import ErrorCounts, LogFilter, count_errors, update

ZERO = ErrorCounts(np.zeros(1), np.zeros(1), np.zeros(1))


def after(*ticks: tuple[float, float], start: ErrorCounts = ZERO) -> ErrorCounts:
    """Counts after ticks of 1 s, each (failed, attempts)."""
    for failed, attempts in ticks:
        start = count_errors(start, np.array([failed]), np.array([attempts]), 1.0)
    return start


def test_a_provider_that_dies_under_load_is_believed_dead_in_one_tick() -> None:
    healthy = after(*[(0.0, 50.0)] * 20)
    assert after((50.0, 50.0), start=healthy).ratio[0] > 0.85


def test_one_failure_among_many_is_no_death() -> None:
    healthy = after(*[(0.0, 50.0)] * 20)
    assert after((1.0, 50.0), start=healthy).ratio[0] < 0.01


def test_half_a_dozen_successes_clear_what_failed_half_the_time() -> None:
    failing = after(*[(25.0, 50.0)] * 5)
    assert 0.4 < failing.ratio[0] < 0.6
    assert after(*[(0.0, 1.0)] * 2, start=failing).ratio[0] > 0.3
    assert after(*[(0.0, 1.0)] * 6, start=failing).ratio[0] < 0.05


def test_no_evidence_is_not_recovery() -> None:
    dead = after(*[(50.0, 50.0)] * 5)
    assert after(*[(0.0, 0.0)] * 10, start=dead).ratio[0] > 0.8


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=20))
def test_a_ratio_is_always_one(ticks: list[tuple[float, float]]) -> None:
    counts = after(*ticks)
    assert 0.0 <= counts.ratio[0] < 1.0
    assert counts.failed[0] <= counts.attempts[0] + 1e-9


def filtered(values: list[float], samples: float) -> float:
    one = np.ones(1)
    state = LogFilter(np.log(0.1 * one), 0.01 * one, np.log(0.1 * one), 0.0 * one, 0.0 * one, one)
    for value in values:
        state, _ = update(state, np.log(value * one), samples * one, 0.5 * one, 1.0)
    return float(np.exp(state.mean[0]))


def test_a_jump_with_many_samples_is_followed_in_one_tick() -> None:
    assert filtered([0.6], 50.0) > 0.5


def test_a_fall_with_one_sample_a_tick_is_noticed_within_a_few() -> None:
    assert filtered([0.1 / 6.0] * 5, 1.0) < 0.03


def test_noise_moves_the_estimate_little() -> None:
    rng = np.random.default_rng(1)
    noisy = list(0.1 * np.exp(0.1 * rng.standard_normal(50)))
    assert 0.09 < filtered(noisy, 50.0) < 0.11


def test_without_samples_a_model_returns_to_its_prior() -> None:
    one = np.ones(1)
    state = LogFilter(np.log(0.9 * one), 0.01 * one, np.log(0.1 * one), 0.0 * one, 0.0 * one, one)
    for _ in range(300):
        state, surprised = update(state, np.nan * one, 0.0 * one, 0.5 * one, 1.0)
        assert not surprised[0]
    assert abs(np.exp(state.mean[0]) - 0.1) < 0.01
