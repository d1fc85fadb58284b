"""How long a provider takes at a given rate.

A provider is a station of ``servers`` parallel servers, each busy ``service_s`` per
request. The mean response time is Sakasegawa's approximation of the M/M/c queue with
Kingman's variability factor (H. Sakasegawa, "An approximation formula L_q = alpha
rho^beta / (1 - rho)", Annals of the Institute of Statistical Mathematics, 1977):

    T(x) = s + v s rho^(sqrt(2 (c + 1)) - 1) / (c (1 - rho)),   rho = x s / (c kappa)

It is convex in x. Beyond ``RHO_LINEAR`` it continues along its tangent, so that an
overloaded station is dear but finite, and the solver keeps a slope to follow.
"""

from dataclasses import dataclass

import numpy as np

from xds_server.core.tables import Floats

RHO_LINEAR = 0.95
"""Utilisation from which T continues along its tangent."""

WAIT_P95_RATIO = 3.0
"""95th percentile of an exponential wait over its mean: -ln(0.05)."""

_BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class Stations:
    """The latency model's parameters; axis 0 (J) is the provider."""

    service_s: Floats  # (J,) mean service time, > 0
    servers: Floats  # (J,) requests served at once, >= 1
    kappa: Floats  # (J,) measured capacity over servers / service_s, > 0
    variability: Floats  # (J,) (squared c.v. of arrivals + of service) / 2
    tail_ratio: Floats  # (J,) p95 of the service time over its mean, >= 1

    @property
    def capacity_rps(self) -> Floats:
        """(J,) rate at which utilisation is 1."""
        return self.servers * self.kappa / self.service_s


def _wait(stations: Stations, rho: Floats) -> tuple[Floats, Floats, Floats]:
    """Wait W, dW/drho and d2W/drho2 at ``rho``, each (J,); tangent above RHO_LINEAR."""
    c = stations.servers
    scale = stations.variability * stations.service_s / c
    power = np.sqrt(2.0 * (c + 1.0)) - 1.0
    r = np.clip(rho, 1e-9, RHO_LINEAR)
    spare = 1.0 - r
    base = scale * r**power / spare
    # W = scale r^n / (1 - r): logarithmic derivative n / r + 1 / (1 - r).
    log_slope = power / r + 1.0 / spare
    slope = base * log_slope
    curve = base * (log_slope**2 - power / r**2 + 1.0 / spare**2)
    beyond = np.maximum(rho - RHO_LINEAR, 0.0)
    return base + slope * beyond, slope, np.where(beyond > 0.0, 0.0, curve)


def utilisation_ratio(stations: Stations, rps: Floats) -> Floats:
    """(J,) offered load over capacity, 0..inf."""
    return rps / stations.capacity_rps


def wait_s(stations: Stations, rps: Floats) -> Floats:
    """(J,) mean time a request queues, s."""
    return _wait(stations, utilisation_ratio(stations, rps))[0]


def mean_s(stations: Stations, rps: Floats) -> Floats:
    """(J,) mean response time T(x), s."""
    return stations.service_s + wait_s(stations, rps)


def p95_s(stations: Stations, rps: Floats) -> Floats:
    """(J,) 95th percentile of the response time, s.

    The service time's own quantile plus that of an exponential wait; adding quantiles
    overstates the sum's a little, on the side of the SLO.
    """
    return stations.service_s * stations.tail_ratio + WAIT_P95_RATIO * wait_s(stations, rps)


def marginal_s(stations: Stations, rps: Floats) -> tuple[Floats, Floats]:
    """What one more request costs everyone: T + x T', and its derivative by x.

    Returns
    -------
    (J,) s and (J,) s per request/s; the second is >= 0 since x T(x) is convex.
    """
    per_rps = 1.0 / stations.capacity_rps
    wait, slope, curve = _wait(stations, rps * per_rps)
    first = slope * per_rps
    return (
        stations.service_s + wait + rps * first,
        2.0 * first + rps * curve * per_rps**2,
    )


def infer_service_s(
    observed_s: Floats, rps: Floats, servers: Floats, kappa: Floats, variability: Floats
) -> Floats:
    """Invert T for the service time: which ``service_s`` explains ``observed_s`` at ``rps``.

    T grows with the service time (directly, and through utilisation) and is never below
    it, so the answer lies in (0, observed_s] and bisection finds it.

    Parameters
    ----------
    observed_s : (J,) mean response time, s, > 0
    rps : (J,) rate at which it was observed, >= 0
    servers, kappa, variability : (J,) as in ``Stations``

    Returns
    -------
    (J,) s
    """
    low, high = np.zeros_like(observed_s), observed_s.copy()
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        guess = Stations(np.maximum(middle, 1e-12), servers, kappa, variability, servers)
        slower = mean_s(guess, rps) > observed_s
        high = np.where(slower, middle, high)
        low = np.where(slower, low, middle)
    return 0.5 * (low + high)
