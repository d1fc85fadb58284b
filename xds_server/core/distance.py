"""How far away a provider is: what its responses take longer from one place than from nearest by.

A place is a (locality of callers, provider). Network time and service time cannot be told
apart from one place alone; from two they can, up to a constant that belongs to the service time
and does not move the optimum. The nearest place, its own region if somebody calls from there,
is 0. The difference is filtered like any other measurement (one scalar Kalman filter per place).

Few requests go to a provider that is far away, so a place alone is slow to be known. What it has in
common with the others between the same two regions, the link, is learned from all of them, and a
place is believed to be like its link until it has been measured (an empirical-Bayes shrinkage
with a deviation of ``PLACE_SIGMA_S``).
"""

from dataclasses import dataclass

import numpy as np

from xds_server.core.tables import Bools, Floats, Ints

DRIFT_S2_PER_S = 0.0003**2
"""Variance that a distance gains in a second: routes in the network do change."""
LEAST_SAMPLES = 1.0
PLACE_SIGMA_S = 0.003
"""How far a place is from its link, as a standard deviation."""
_FIRST_VARIANCE_S2 = 1.0


@dataclass(frozen=True, slots=True)
class Distances:
    """Extra response time of each place (Q) and of each link (K)."""

    rtt_s: Floats  # (Q,) >= 0, what is believed
    own_s: Floats  # (Q,) as the place's own requests say
    variance_s2: Floats  # (Q,) of that
    link_s: Floats  # (K,)
    link_variance_s2: Floats  # (K,)


def no_distances(places: int, links: int) -> Distances:
    """Nothing is known: all are near."""
    return Distances(
        np.zeros(places),
        np.zeros(places),
        np.full(places, _FIRST_VARIANCE_S2),
        np.zeros(links),
        np.full(links, _FIRST_VARIANCE_S2),
    )


def update(
    before: Distances,
    provider: Ints,
    link: Ints,
    home: Bools,
    providers: int,
    latency_s: Floats,
    samples: Floats,
    cv2: Floats,
    elapsed_s: float,
) -> Distances:
    """Compare what each place saw with what the provider's reference places saw.

    Parameters
    ----------
    provider, link : (Q,) row of the provider, and of the link
    home : (Q,) whether the callers are in the provider's own region
    latency_s : (Q,) mean response time; ignored where there are too few ``samples`` (Q,)
    cv2 : (Q,) squared coefficient of variation of one response time
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
    # By what is expected, not by what was seen: slow samples must not weigh less for being slow.
    expected = near[provider] + before.rtt_s
    noise = cv2 * (
        expected**2 / np.maximum(samples, 1.0) + (near**2 / np.maximum(count, 1.0))[provider]
    )
    noise = np.maximum(noise, 1e-12)
    variance = np.minimum(before.variance_s2 + DRIFT_S2_PER_S * elapsed_s, _FIRST_VARIANCE_S2)
    gain = np.where(usable, variance / (variance + noise), 0.0)
    own = np.maximum(before.own_s + gain * (difference - before.own_s), 0.0)
    variance = (1.0 - gain) * variance
    link_s, link_variance = _links(before, link, usable, difference, noise, elapsed_s)
    # Its own word and its link's, each by what it is worth.
    prior = PLACE_SIGMA_S**2 + link_variance[link]
    trust = prior / (prior + variance)
    rtt = np.maximum(link_s[link] + trust * (own - link_s[link]), 0.0)
    rtt = np.where(home, 0.0, rtt)
    # Without a home the nearest is the zero that all others are measured from.
    least = np.full(providers, np.inf)
    np.minimum.at(least, provider, np.where(usable | home, rtt, np.inf))
    least = np.where(np.isfinite(least), least, 0.0)
    return Distances(np.maximum(rtt - least[provider], 0.0), own, variance, link_s, link_variance)


def _links(
    before: Distances,
    link: Ints,
    usable: Bools,
    difference: Floats,
    noise: Floats,
    elapsed_s: float,
) -> tuple[Floats, Floats]:
    """Mean and variance of each link, with this tick's places taken in."""
    count = len(before.link_s)
    weight = np.where(usable, 1.0 / (noise + PLACE_SIGMA_S**2), 0.0)
    total = np.bincount(link, weight, count)
    summed = np.bincount(link, weight * np.where(usable, difference, 0.0), count)
    mean = summed / np.maximum(total, 1e-12)
    variance = np.minimum(before.link_variance_s2 + DRIFT_S2_PER_S * elapsed_s, _FIRST_VARIANCE_S2)
    gain = np.where(total > 0.0, variance / (variance + 1.0 / np.maximum(total, 1e-12)), 0.0)
    return np.maximum(before.link_s + gain * (mean - before.link_s), 0.0), (1.0 - gain) * variance
