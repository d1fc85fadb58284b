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
_LONGEST_S = 1e9
"""No response takes so long; stands for none."""


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
    # Places are many, and which of them were seen is as good as random: masks are factors here,
    # since to choose by them (``where``) takes several times as long.
    usable, difference, noise = _compare(before, provider, home, providers, latency_s, samples, cv2)
    variance = np.minimum(before.variance_s2 + DRIFT_S2_PER_S * elapsed_s, _FIRST_VARIANCE_S2)
    gain = variance / (variance + noise)
    gain *= usable
    own = difference - before.own_s
    own *= gain
    own += before.own_s
    np.maximum(own, 0.0, out=own)
    variance *= np.subtract(1.0, gain, out=gain)
    link_s, link_variance = _links(before, link, usable, difference, noise, elapsed_s)
    # Its own word and its link's, each by what it is worth.
    trust = (PLACE_SIGMA_S**2 + link_variance)[link]
    trust /= trust + variance
    by_link = link_s[link]
    rtt = own - by_link
    rtt *= trust
    rtt += by_link
    np.maximum(rtt, 0.0, out=rtt)
    rtt *= ~home
    # Without a home the nearest is the zero that all others are measured from.
    least = np.full(providers, _LONGEST_S)
    np.minimum.at(least, provider, np.maximum(rtt, _LONGEST_S * ~(usable | home)))
    least *= least < _LONGEST_S
    rtt -= least[provider]
    np.maximum(rtt, 0.0, out=rtt)
    return Distances(rtt, own, variance, link_s, link_variance)


def _compare(
    before: Distances,
    provider: Ints,
    home: Bools,
    providers: int,
    latency_s: Floats,
    samples: Floats,
    cv2: Floats,
) -> tuple[Bools, Floats, Floats]:
    """(Q,) each: which places can be compared, how much longer they wait, s, and its variance."""
    seen = (samples >= LEAST_SAMPLES) & np.isfinite(latency_s)
    latency = np.fmin(np.fmax(latency_s, 0.0), _LONGEST_S)

    def total(values: Floats | Bools) -> Floats:
        summed: Floats = np.bincount(provider, values, providers).astype(np.float64, copy=False)
        return summed

    at_home = total(seen & home) > 0.0
    away = ~at_home[provider]
    weight = samples * (seen & (home | away))
    count = total(weight)
    near = total(weight * (latency - before.rtt_s)) / np.maximum(count, 1.0)
    comparable = (total(seen) > 1.0) & (count > 0.0)
    usable = seen & comparable[provider] & (away | ~home)
    here = near[provider]
    # By what is expected, not by what was seen: slow samples must not weigh less for being slow.
    noise = here + before.rtt_s
    noise *= noise
    noise /= np.maximum(samples, 1.0)
    noise += (near**2 / np.maximum(count, 1.0))[provider]
    noise *= cv2
    np.maximum(noise, 1e-12, out=noise)
    return usable, np.subtract(latency, here, out=latency), noise


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
    weight = usable / (noise + PLACE_SIGMA_S**2)
    total = np.bincount(link, weight, count)
    summed = np.bincount(link, weight * difference, count)
    mean = summed / np.maximum(total, 1e-12)
    variance = np.minimum(before.link_variance_s2 + DRIFT_S2_PER_S * elapsed_s, _FIRST_VARIANCE_S2)
    gain = np.where(total > 0.0, variance / (variance + 1.0 / np.maximum(total, 1e-12)), 0.0)
    return np.maximum(before.link_s + gain * (mean - before.link_s), 0.0), (1.0 - gain) * variance
