"""How far away a provider is: what its responses take longer from one place than from nearest by.

A place is a (locality of callers, provider). Network time and service time cannot be told
apart from one place alone; from two they can, up to a constant that belongs to the service time
and does not move the optimum. The nearest place, its own region if somebody calls from there,
is 0. The difference is filtered like any other measurement (one scalar Kalman filter per place).
"""

from dataclasses import dataclass

import numpy as np

from xds_server.core.tables import Bools, Floats, Ints

DRIFT_S2_PER_S = 0.0005**2
"""Variance that a distance gains in a second: routes in the network do change."""
LEAST_SAMPLES = 2.0
_FIRST_VARIANCE_S2 = 1.0


@dataclass(frozen=True, slots=True)
class Distances:
    """Extra response time of each place; axis 0 (Q) is the place."""

    rtt_s: Floats  # (Q,) >= 0
    variance_s2: Floats  # (Q,)


def no_distances(places: int) -> Distances:
    """Nothing is known: all are near."""
    return Distances(np.zeros(places), np.full(places, _FIRST_VARIANCE_S2))


def update(
    before: Distances,
    provider: Ints,
    home: Bools,
    providers: int,
    latency_s: Floats,
    samples: Floats,
    cv2: float,
    elapsed_s: float,
) -> Distances:
    """Compare what each place saw with what the provider's reference places saw.

    Parameters
    ----------
    provider : (Q,) row of the provider
    home : (Q,) whether the callers are in the provider's own region
    latency_s : (Q,) mean response time; ignored where there are too few ``samples`` (Q,)
    cv2 : squared coefficient of variation of one response time
    """
    if len(provider) == 0:
        return before
    seen = (samples >= LEAST_SAMPLES) & np.isfinite(latency_s)
    latency = np.where(seen, latency_s, 0.0)

    def total(values: Floats) -> Floats:
        summed: Floats = np.bincount(provider, values, providers).astype(np.float64, copy=False)
        return summed

    at_home = total((seen & home).astype(np.float64)) > 0.0
    reference = seen & (home | ~at_home[provider])
    weight = np.where(reference, samples, 0.0)
    count = total(weight)
    near = total(weight * (latency - before.rtt_s)) / np.maximum(count, 1.0)
    several = total(seen.astype(np.float64)) > 1.0
    usable = seen & several[provider] & (count > 0.0)[provider] & ~(home & at_home[provider])
    difference = latency - near[provider]
    noise = cv2 * (
        latency**2 / np.maximum(samples, 1.0) + (near**2 / np.maximum(count, 1.0))[provider]
    )
    variance = np.minimum(before.variance_s2 + DRIFT_S2_PER_S * elapsed_s, _FIRST_VARIANCE_S2)
    gain = np.where(usable, variance / (variance + noise + 1e-12), 0.0)
    rtt = np.maximum(before.rtt_s + gain * (difference - before.rtt_s), 0.0)
    # Without a home the nearest is the zero that all others are measured from.
    least = np.full(providers, np.inf)
    np.minimum.at(least, provider, np.where(usable | home, rtt, np.inf))
    least = np.where(np.isfinite(least), least, 0.0)
    return Distances(
        np.where(usable, np.maximum(rtt - least[provider], 0.0), rtt), (1.0 - gain) * variance
    )
