"""Service times of stations, learned from response times.

An extended Kalman filter per provider on log s, measured by log T(x; s) of ``core.latency``: the
error is counted where it is measured, in response times, so a queue that is longer than its model
says moves the service time by what that is worth, and not by what would explain it. The steeper T
is in the load, the less a response says of the service time: an error of the load counts as noise.
The filter is fast when surprised, like the scalar filters of ``core.estimate``, and returns to its
prior when nothing is heard.
"""

from dataclasses import replace

import numpy as np

from xds_server.core import estimate, latency
from xds_server.core.estimate import LogFilter
from xds_server.core.tables import Floats

LOAD_ERROR = 0.03**2
"""Relative variance of a load that has been counted."""
MODEL_FLOOR = 0.03**2
"""Relative variance of a response time that no number of samples removes."""
_STEP = 1e-3
_ITERATIONS = 2
_LONGEST_STEP = 2.5


def update(
    service: LogFilter,
    observed_s: Floats,
    rps: Floats,
    capacity_rps: Floats,
    servers: Floats,
    variability: Floats,
    samples: Floats,
    cv2: Floats,
    load_variance: Floats,
    elapsed_s: float,
) -> LogFilter:
    """Advance by ``elapsed_s`` and take in one mean response time where there are samples.

    Parameters
    ----------
    service : its mean is finite wherever there are ``samples``
    observed_s : (J,) mean response time, s; ignored where ``samples`` (J,) is 0
    rps : (J,) rate at which it was observed
    capacity_rps, servers, variability : (J,) as in ``latency.station_of``
    cv2 : (J,) squared coefficient of variation of one response time
    load_variance : (J,) relative variance of ``rps``, beside ``LOAD_ERROR``
    """
    seen = (samples > 0.0) & np.isfinite(observed_s) & (observed_s > 0.0)
    log_t = np.log(np.where(seen, observed_s, 1.0))
    mean = np.where(np.isfinite(service.mean), service.mean, 0.0)
    variance = service.variance + estimate.DRIFT_PER_S * elapsed_s
    expected, slope, by_load = _linear(mean, rps, capacity_rps, servers, variability)
    noise = cv2 / np.maximum(samples, 1.0) + MODEL_FLOOR + (LOAD_ERROR + load_variance) * by_load**2
    innovation = np.where(seen, log_t - expected, 0.0)
    scattered = estimate.scatter(service, innovation, slope**2 * variance + noise, seen)
    noise = noise * service.scatter
    z = innovation / np.sqrt(slope**2 * variance + noise)
    slower, faster, surprised = estimate.cusum(service, z, seen)
    variance = np.where(
        surprised, np.maximum(variance, (innovation / slope) ** 2 + noise), variance
    )
    found = mean
    for _ in range(_ITERATIONS):
        # Iterated: a big step is taken again from where it led, where the curve is another.
        gain = slope * variance / (slope**2 * variance + noise)
        step = gain * (log_t - expected - slope * (mean - found))
        found = np.where(seen, mean + np.clip(step, -_LONGEST_STEP, _LONGEST_STEP), mean)
        expected, slope, _ = _linear(found, rps, capacity_rps, servers, variability)
    left = noise / (slope**2 * variance + noise)
    quiet = seen | np.isnan(service.prior)
    back = np.where(quiet, 0.0, 1.0 - np.exp(-elapsed_s / estimate.EXPIRE_S))
    prior = np.where(np.isnan(service.prior), found, service.prior)
    return replace(
        service,
        mean=np.where(np.isfinite(service.mean), found + back * (prior - found), np.nan),
        variance=np.where(seen, left * variance, np.minimum(variance, 1.0)),
        slower=slower,
        faster=faster,
        scatter=scattered,
    )


def _linear(
    log_s: Floats, rps: Floats, capacity_rps: Floats, servers: Floats, variability: Floats
) -> tuple[Floats, Floats, Floats]:
    """Log T, and its derivatives by log s and by log x; (J,) each."""
    ones, s = np.ones_like(log_s), np.exp(log_s)
    here = latency.station_of(s, capacity_rps, servers, ones, variability=variability)
    mean, marginal, _ = latency.mean_and_marginal_s(here, rps)
    longer = s * (1.0 + _STEP)
    more = latency.station_of(longer, capacity_rps, servers, ones, variability=variability)
    by_service = np.log(latency.mean_s(more, rps) / mean) / np.log1p(_STEP)
    return (
        np.log(mean),
        np.clip(by_service, 0.2, 30.0),
        np.clip((marginal - mean) / mean, 0.0, 100.0),
    )
