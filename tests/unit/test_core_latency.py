import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds_server.core import latency
from xds_server.core.latency import Stations


def station(service_s: float = 0.02, servers: float = 8.0, kappa: float = 1.0) -> Stations:
    return Stations(*(np.array([v]) for v in (service_s, servers, kappa, 1.0, 2.0)))


def erlang_c_mean_s(rps: float, service_s: float, servers: int) -> float:
    load, block = rps * service_s, 1.0
    for k in range(1, servers + 1):
        block = load * block / (k + load * block)
    queued = servers * block / (servers - load + load * block)
    return service_s + queued * service_s / (servers - load)


def test_one_server_is_exactly_m_m_1() -> None:
    one = station(0.01, 1.0)
    assert latency.mean_s(one, np.array([50.0]))[0] == pytest.approx(0.01 / (1 - 0.5))


@pytest.mark.parametrize("servers", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("rho", [0.3, 0.5, 0.7, 0.9])
def test_the_approximation_is_within_eight_per_cent_of_erlang_c(servers: int, rho: float) -> None:
    rps = rho * servers / 0.02
    approximate = latency.mean_s(station(0.02, float(servers)), np.array([rps]))[0]
    assert approximate == pytest.approx(erlang_c_mean_s(rps, 0.02, servers), rel=0.08)


def test_beyond_saturation_latency_goes_on_growing_along_the_tangent() -> None:
    s = station()
    at = [latency.mean_s(s, np.array([x]))[0] for x in (400.0, 500.0, 600.0)]
    assert at[2] - at[1] == pytest.approx(at[1] - at[0], rel=1e-9)
    assert at[1] > at[0]


@given(st.floats(1e-3, 0.5), st.floats(1.0, 64.0), st.floats(0.0, 3.0))
def test_marginal_latency_is_the_derivative_of_total_delay(
    service_s: float, servers: float, rho: float
) -> None:
    s = station(service_s, servers)
    rps = np.array([rho * servers / service_s])
    step = 1e-4 * servers / service_s

    def total(x: np.ndarray) -> float:
        return float((x * latency.mean_s(s, x))[0])

    if abs(rho - latency.RHO_LINEAR) < 1e-3:
        return  # the kink of the second derivative
    numeric = (total(rps + step) - total(np.maximum(rps - step, 0.0))) / (step + min(step, rps[0]))
    assert latency.marginal_s(s, rps)[0][0] == pytest.approx(numeric, rel=2e-2)


@given(st.floats(1e-3, 0.5), st.floats(1.0, 64.0), st.floats(0.0, 1.5))
def test_the_service_time_is_recovered_from_what_it_caused(
    service_s: float, servers: float, rho: float
) -> None:
    s = station(service_s, servers)
    rps = rho * s.capacity_rps
    seen = latency.mean_s(s, rps)
    unknown = np.full(1, np.nan)
    assert latency.infer_service_s(seen, rps, unknown, s.servers, s.variability)[
        0
    ] == pytest.approx(service_s, rel=1e-4)
    # The same from the capacity: it has as many servers as that takes.
    assert latency.infer_service_s(seen, rps, s.capacity_rps, s.servers * 3.0, s.variability)[
        0
    ] == pytest.approx(service_s, rel=1e-4)


@given(st.floats(0.0, 5000.0), st.floats(0.0, 5000.0))
def test_more_load_is_never_faster(low: float, high: float) -> None:
    low, high = sorted((low, high))
    s = station()
    for curve in (latency.mean_s, latency.p95_s, lambda q, x: latency.marginal_s(q, x)[0]):
        assert curve(s, np.array([low]))[0] <= curve(s, np.array([high]))[0] + 1e-12
