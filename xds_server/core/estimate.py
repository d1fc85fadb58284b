"""Provider models learned online: one scalar Kalman filter per provider, in log space.

A service time is positive and changes by factors, so its logarithm is filtered. The
filter is fast when surprised: by one innovation beyond ``SURPRISE_SIGMA``, or by many small
ones in the same direction, which a two-sided CUSUM adds up (E. S. Page, "Continuous
inspection schemes", Biometrika 41, 1954). Either widens the variance until the measurement
is believed. The second is what finds that a provider with three requests a second has
recovered. Without samples the variance grows and the mean returns to the prior, so that a
provider that was given up is tried again.
"""

from dataclasses import dataclass

import numpy as np

from xds_server.core.tables import Bools, Floats

DRIFT_PER_S = 0.01**2
"""Variance that a quiet provider's log service time gains in a second."""
SURPRISE_SIGMA = 3.0
CUSUM_SLACK = 0.5
CUSUM_LIMIT = 4.0
"""In standard deviations of the innovation: a shift of 1 sigma alarms in about 8 samples,
no shift at all once in about 170 (Siegmund's approximation)."""
SCATTER_GAIN = 0.05
SCATTER_MAX = 9.0
EXPIRE_S = 60.0
"""Time constant with which an unmeasured model returns to its prior."""
ERROR_MEMORY = 200.0
ERROR_MEMORY_SURPRISED = 3.0
ERROR_PRIOR = 2.0
ERROR_FADE_S = 30.0
_UNLIKELY = 2.3  # -log of 10 %
_SMALL_ERROR = 0.02
MODEL_FLOOR = 0.03**2
"""Variance of a measurement that no number of samples removes: model error."""


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Mean and variance of a logarithm; axis 0 (J) is the provider."""

    mean: Floats  # (J,)
    variance: Floats  # (J,)
    prior: Floats  # (J,) where ``mean`` returns to without samples; NaN: nowhere
    slower: Floats  # (J,) CUSUM of innovations above, standard deviations
    faster: Floats  # (J,) and below
    scatter: Floats  # (J,) variance of innovations over what it should be, >= 1


def scatter(state: LogFilter, innovation: Floats, expected: Floats, seen: Bools) -> Floats:
    """(J,) how much more innovations scatter than ``expected`` (J,), their variance, says.

    What is measured may be noisier than its counts: demand comes in bursts, a report in two
    halves. A filter that did not know would take every burst for a change. One innovation counts
    for at most ``SCATTER_MAX``, so that a true change does not pass for noise.
    """
    ratio = np.minimum(innovation**2 / np.maximum(expected, 1e-12), SCATTER_MAX)
    step = np.where(seen, SCATTER_GAIN * (ratio - state.scatter), 0.0)
    return np.maximum(state.scatter + step, 1.0)


def cusum(state: LogFilter, z: Floats, seen: Bools) -> tuple[Floats, Floats, Bools]:
    """Add innovations up, in both directions; (J,) sums, and whether either is a surprise.

    Sums begin anew after a surprise.
    """
    slower = np.where(seen, np.maximum(state.slower + z - CUSUM_SLACK, 0.0), state.slower)
    faster = np.where(seen, np.maximum(state.faster - z - CUSUM_SLACK, 0.0), state.faster)
    surprised = (np.abs(z) > SURPRISE_SIGMA) | (np.maximum(slower, faster) > CUSUM_LIMIT)
    return np.where(surprised, 0.0, slower), np.where(surprised, 0.0, faster), surprised


def update(
    state: LogFilter,
    measured: Floats,
    samples: Floats,
    cv2: Floats,
    elapsed_s: float,
    doubt: Floats | float = 0.0,
) -> tuple[LogFilter, Bools]:
    """Advance by ``elapsed_s`` and take in one measurement where there are samples.

    Parameters
    ----------
    measured : (J,) logarithm of the measured mean; ignored where ``samples`` is 0
    samples : (J,) how many requests the mean is of, >= 0
    cv2 : (J,) squared coefficient of variation of one sample
    doubt : (J,) variance of the measurement that no number of samples removes, beside the floor

    Returns
    -------
    the new state, and (J,) whether the measurement was a surprise
    """
    seen = (samples > 0.0) & np.isfinite(measured)
    drifted = state.variance + DRIFT_PER_S * elapsed_s
    noise = cv2 / np.maximum(samples, 1.0) + MODEL_FLOOR + doubt
    innovation = np.where(seen, measured - state.mean, 0.0)
    scattered = scatter(state, innovation, drifted + noise, seen)
    noise = noise * state.scatter
    z = innovation / np.sqrt(drifted + noise)
    slower, faster, surprised = cusum(state, z, seen)
    # A change of the provider itself: trust the measurement, not the past.
    drifted = np.where(surprised, np.maximum(drifted, innovation**2 + noise), drifted)
    gain = np.where(seen, drifted / (drifted + noise), 0.0)
    back = np.where(seen | np.isnan(state.prior), 0.0, 1.0 - np.exp(-elapsed_s / EXPIRE_S))
    prior = np.where(np.isnan(state.prior), state.mean, state.prior)
    mean = state.mean + gain * innovation + back * (prior - state.mean)
    variance = np.where(seen, (1.0 - gain) * drifted, np.minimum(drifted, 1.0))
    return LogFilter(mean, variance, state.prior, slower, faster, scattered), surprised


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """Attempts that count, and how many of them failed; axis 0 (J) is the provider."""

    failed: Floats  # (J,)
    attempts: Floats  # (J,)
    clean: Floats  # (J,) attempts since the last failure

    @property
    def ratio(self) -> Floats:
        """(J,) share of attempts that fail, as if ``ERROR_PRIOR`` more had succeeded."""
        return self.failed / (self.attempts + ERROR_PRIOR)


def count_errors(
    before: ErrorCounts, failed: Floats, attempts: Floats, elapsed_s: float
) -> ErrorCounts:
    """Add a tick's attempts to what is remembered of those before.

    As long as failures come as often as they did, ``ERROR_MEMORY`` earlier attempts count
    beside the new ones, so a small error ratio is not a noisy one. When too many fail at once
    only ``ERROR_MEMORY_SURPRISED`` do, so a provider that dies is believed dead in one tick.
    When none fails for so long that the old ratio would have it in one case of ten, what
    was before that run is forgotten: half a dozen successes clear one that failed half of
    its attempts. Without attempts the past fades within ``ERROR_FADE_S``: slowly, since one
    that is hardly probed must not be believed well for lack of evidence.
    """
    failed = np.minimum(failed, attempts)
    ratio = before.ratio
    clean = np.where(failed > 0.0, 0.0, before.clean + attempts)
    expected = attempts * ratio
    worse = failed - expected > SURPRISE_SIGMA * np.sqrt(expected * (1.0 - ratio) + 1.0)
    # The chance of so long a run without a failure is (1 - ratio) ** clean.
    well = (ratio > _SMALL_ERROR) & (-clean * np.log1p(-np.minimum(ratio, 0.99)) > _UNLIKELY)
    memory = np.where(worse, ERROR_MEMORY_SURPRISED, ERROR_MEMORY)
    kept = np.exp(-elapsed_s / ERROR_FADE_S) * np.minimum(
        1.0, memory / np.maximum(before.attempts, 1e-9)
    )
    return ErrorCounts(
        np.where(well, 0.0, before.failed * kept + failed),
        np.where(well, clean, before.attempts * kept + attempts),
        clean,
    )
