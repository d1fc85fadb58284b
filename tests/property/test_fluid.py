"""The fluid queue against what is known in closed form, and over whatever may come."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xds_server.core import latency
from xds_server.core.fluid import LONGEST_S, Grid, queues, simulate
from xds_server.core.latency import PowerCurves, Stations

GRID = Grid(step_s=0.25, steps=80, delay_steps=8, warm_s=10.0)
AFTER = slice(GRID.delay_steps, None)
TIMES_S = GRID.step_s * np.arange(GRID.steps + 1)


def stations(capacity_rps: np.ndarray, service_s: float = 0.02) -> Stations:
    ones = np.ones(len(capacity_rps))
    return latency.station_of(service_s * ones, capacity_rps, 4.0 * ones, 2.0 * ones)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


@given(st.floats(10.0, 1e4), st.floats(1.01, 5.0))
def test_beyond_the_capacity_the_queue_grows_by_the_excess(capacity: float, over: float) -> None:
    rps = over * capacity
    path = queues(array(0.0), array(0.0), array(rps), array(capacity)[None], GRID)[:, 0]
    since_s = np.maximum(TIMES_S - GRID.step_s * GRID.delay_steps, 0.0)
    np.testing.assert_allclose(path, (rps - capacity) * since_s, rtol=1e-9)


@given(st.floats(10.0, 1e4), st.floats(0.0, 0.95), st.floats(0.5, 15.0))
def test_a_queue_is_drained_by_what_the_load_leaves_over(
    capacity: float, busy: float, drain_s: float
) -> None:
    """It takes q / (c - x)."""
    rps = busy * capacity
    queued = drain_s * (capacity - rps)
    path = queues(array(queued), array(rps), array(rps), array(capacity)[None], GRID)[:, 0]
    left = np.maximum(queued - (capacity - rps) * TIMES_S, 0.0)
    np.testing.assert_allclose(path, left, rtol=1e-6, atol=1e-6 * queued)


@given(st.floats(10.0, 1e4), st.floats(0.0, 1.0), st.floats(0.0, 0.999))
def test_below_the_capacity_it_answers_as_it_does_when_settled(
    capacity: float, before: float, after: float
) -> None:
    some = stations(array(capacity))
    rps = array(after * capacity)
    found = simulate(some, array(0.0), array(before * capacity), rps, array(1.0), GRID)
    np.testing.assert_allclose(found.mean_s, latency.mean_s(some, rps))
    np.testing.assert_allclose(found.p95_s, latency.p95_s(some, rps))


def test_an_overload_costs_its_mean_backlog_beside_the_curve() -> None:
    some, capacity, rps = stations(array(200.0)), 200.0, 250.0
    found = simulate(some, array(0.0), array(100.0), array(rps), array(1.0), GRID)
    lasts_s = GRID.step_s * (GRID.steps - GRID.delay_steps)
    backlog = (rps - capacity) * lasts_s / 2.0 / capacity
    settled = latency.mean_s(some, array(capacity))
    np.testing.assert_allclose(found.mean_s, settled + backlog)


def test_a_cold_provider_is_as_fast_while_it_has_little_to_do() -> None:
    some, rps = stations(array(200.0)), array(20.0)
    warmth = GRID.warmth(array(0.5))[AFTER]
    assert warmth[0] == 0.5
    assert warmth[-1] == 1.0
    cold = simulate(some, array(0.0), rps, rps, array(0.5), GRID)
    np.testing.assert_allclose(cold.mean_s, latency.mean_s(some, rps))


def test_a_cold_provider_that_gets_all_at_once_has_a_queue_that_passes() -> None:
    some = stations(array(200.0))
    path = queues(array(0.0), array(0.0), array(150.0), 200.0 * GRID.warmth(array(0.5)), GRID)[:, 0]
    # Short by 50/s at first, by nothing after half of the 10 s: 125 requests, by a ramp.
    assert path.max() == pytest.approx(125.0, rel=0.06)
    assert path[-1] == 0.0
    found = simulate(some, array(0.0), array(0.0), array(150.0), array(0.5), GRID)
    assert found.mean_s[0] > 2.0 * latency.mean_s(some, array(150.0))[0]


def test_a_power_curve_has_no_queue() -> None:
    curve = PowerCurves(np.array([True]), array(0.03), np.array([[0.1]]), array(100.0), (2.0,))
    some = replace(stations(array(10.0)), power=curve)
    found = simulate(some, array(0.0), array(50.0), array(50.0), array(1.0), GRID)
    np.testing.assert_allclose(found.mean_s, latency.mean_s(some, array(50.0)))


loads = st.floats(0.0, 1e6)


@given(st.floats(1.0, 1e5), loads, loads, st.floats(0.0, 1e6), st.floats(0.0, 1.0), loads)
def test_more_load_is_never_faster(
    capacity: float, before: float, after: float, queued: float, warm: float, more: float
) -> None:
    some = stations(array(capacity, capacity))
    pair = np.ones(2)
    found = simulate(
        some, queued * pair, array(before, before), array(after, after + more), warm * pair, GRID
    )
    for times in (found.mean_s, found.p95_s):
        assert times[1] >= times[0] * (1.0 - 1e-12)


@settings(max_examples=200)
@given(
    st.one_of(st.floats(0.0, 1e9), st.just(float("nan")), st.just(float("inf"))),
    loads, loads, st.floats(0.0, 1e9), st.floats(0.0, 1.0),
)  # fmt: skip
def test_whatever_comes_is_finite_and_never_negative(
    capacity: float, before: float, after: float, queued: float, warm: float
) -> None:
    ones = np.ones(1)
    some = Stations(0.02 * ones, ones, 0.02 * capacity * ones, ones, 2.0 * ones)
    found = simulate(some, queued * ones, before * ones, after * ones, warm * ones, GRID)
    for times in (found.mean_s, found.p95_s):
        assert np.isfinite(times).all()
        assert (times > 0.0).all()


def test_what_serves_nothing_makes_everyone_wait() -> None:
    ones = np.ones(1)
    some = Stations(0.02 * ones, ones, 0.0 * ones, ones, 2.0 * ones)
    found = simulate(some, 0.0 * ones, 0.0 * ones, 10.0 * ones, ones, GRID)
    assert found.mean_s[0] > 0.9 * LONGEST_S
