"""How long a provider takes at a given rate: two families of curves, one chosen per provider.

A *station* has ``servers`` parallel servers, each busy ``service_s`` per request. The mean
response time is Sakasegawa's approximation of the M/M/c queue with Kingman's variability factor
(H. Sakasegawa, "An approximation formula L_q = alpha rho^beta / (1 - rho)", Annals of the
Institute of Statistical Mathematics, 1977):

    T(x) = s + v s rho^(sqrt(2 (c + 1)) - 1) / (c (1 - rho)),   rho = x s / (c kappa)

Beyond ``RHO_LINEAR`` it continues along its tangent, so that an overloaded station is dear but
finite, and the solver keeps a slope to follow. A *power curve* has no notion of capacity and
fits what a station cannot explain, a chain of services say (SLATE, NSDI 2026, uses it):

    T(x) = b + sum of k_n (x / x0)^n

Both are convex in x.
"""

from dataclasses import dataclass

import numpy as np

from xds_server.core.tables import Bools, Floats, Ints

RHO_LINEAR = 0.95
"""Utilisation from which T continues along its tangent."""

WAIT_P95_RATIO = 3.0
"""95th percentile of an exponential wait over its mean: -ln(0.05)."""

WAIT_P99_RATIO = 4.6
"""99th percentile, likewise."""

_BISECTIONS = 24
_LEAST_SERVERS = 1e-9
"""Who has no capacity at all is so slow that it is never asked, but not infinitely."""


@dataclass(frozen=True, slots=True)
class PowerCurves:
    """Curves b + sum of k_n (x / x0)^n; axis 0 (J) is the provider."""

    chosen: Bools  # (J,) whether this family describes the provider
    base_s: Floats  # (J,) b > 0
    rise_s: Floats  # (J, G) k >= 0
    scale_rps: Floats  # (J,) x0 > 0
    exponents: tuple[float, ...]  # (G,) n >= 1

    def rows(self, rows: Ints) -> "PowerCurves":
        """Return some of them."""
        return PowerCurves(
            self.chosen[rows],
            self.base_s[rows],
            self.rise_s[rows],
            self.scale_rps[rows],
            self.exponents,
        )


@dataclass(frozen=True, slots=True)
class Stations:
    """The latency model's parameters; axis 0 (J) is the provider."""

    service_s: Floats  # (J,) mean service time, > 0
    servers: Floats  # (J,) requests served at once, >= 1
    kappa: Floats  # (J,) measured capacity over servers / service_s, > 0
    variability: Floats  # (J,) (squared c.v. of arrivals + of service) / 2
    tail_ratio: Floats  # (J,) p95 of the service time over its mean, >= 1
    power: PowerCurves | None = None  # None: all are stations

    @property
    def capacity_rps(self) -> Floats:
        """(J,) rate at which utilisation is 1."""
        return self.servers * self.kappa / self.service_s

    def rows(self, rows: Ints) -> "Stations":
        """Return some of them."""
        return Stations(
            self.service_s[rows],
            self.servers[rows],
            self.kappa[rows],
            self.variability[rows],
            self.tail_ratio[rows],
            None if self.power is None else self.power.rows(rows),
        )

    @property
    def idle_s(self) -> Floats:
        """(J,) mean response time without load."""
        if self.power is None:
            return self.service_s
        return np.where(self.power.chosen, self.power.base_s, self.service_s)


def _station_wait(stations: Stations, rps: Floats) -> Floats:
    """(J,) wait W of stations; tangent above RHO_LINEAR."""
    c = stations.servers
    rho = rps * (stations.service_s / np.maximum(c * stations.kappa, _LEAST_SERVERS))
    power = np.sqrt(2.0 * (c + 1.0)) - 1.0
    r = np.minimum(np.maximum(rho, 1e-9), RHO_LINEAR)
    spare = 1.0 - r
    base = stations.variability * stations.service_s / c * r**power / spare
    beyond: Floats = np.maximum(rho - RHO_LINEAR, 0.0)
    # W = scale r^n / (1 - r): logarithmic derivative n / r + 1 / (1 - r).
    return base * (1.0 + beyond * (power / r + 1.0 / spare))


def _station(stations: Stations, rps: Floats) -> tuple[Floats, Floats, Floats]:
    """Wait W, dW/dx and d2W/dx2 of stations, each (J,); tangent above RHO_LINEAR."""
    c = stations.servers
    per_rps = stations.service_s / np.maximum(c * stations.kappa, _LEAST_SERVERS)
    rho = rps * per_rps
    power = np.sqrt(2.0 * (c + 1.0)) - 1.0
    r = np.minimum(np.maximum(rho, 1e-9), RHO_LINEAR)
    per_spare = 1.0 / (1.0 - r)
    base = stations.variability * stations.service_s / c * r**power * per_spare
    a = power / r
    log_slope = a + per_spare
    curve = base * (log_slope * log_slope + per_spare * per_spare - a / r)
    beyond = np.maximum(rho - RHO_LINEAR, 0.0)
    first = base * log_slope
    return base + first * beyond, first * per_rps, curve * (beyond == 0.0) * (per_rps * per_rps)


def _wait(stations: Stations, rps: Floats) -> tuple[Floats, Floats, Floats]:
    """What load adds to the idle response time, and its two derivatives by x, each (J,)."""
    wait, first, second = _station(stations, rps)
    power = stations.power
    if power is None or not power.chosen.any():
        return wait, first, second
    n, x, rise = _rise(power, rps)
    return (
        np.where(power.chosen, rise.sum(axis=1), wait),
        np.where(power.chosen, (n * rise).sum(axis=1) / x, first),
        np.where(power.chosen, (n * (n - 1.0) * rise).sum(axis=1) / x**2, second),
    )


def _rise(power: PowerCurves, rps: Floats) -> tuple[Floats, Floats, Floats]:
    """Exponents (G,), loads above 0 (J,), and each term k (x / x0)^n there, (J, G)."""
    n, x = np.array(power.exponents), np.maximum(rps, 1e-9 * power.scale_rps)
    rise: Floats = power.rise_s * (x / power.scale_rps)[:, None] ** n
    return n, x, rise


def utilisation_ratio(stations: Stations, rps: Floats) -> Floats:
    """(J,) offered load over capacity, 0..inf."""
    return rps / stations.capacity_rps


def wait_s(stations: Stations, rps: Floats) -> Floats:
    """(J,) mean time that load adds to a request: queueing, s."""
    wait = _station_wait(stations, rps)
    power = stations.power
    if power is None or not power.chosen.any():
        return wait
    return np.where(power.chosen, _rise(power, rps)[2].sum(axis=1), wait)


def mean_s(stations: Stations, rps: Floats) -> Floats:
    """(J,) mean response time T(x), s."""
    return stations.idle_s + wait_s(stations, rps)


def p95_s(stations: Stations, rps: Floats) -> Floats:
    """(J,) 95th percentile of the response time, s.

    The idle time's own quantile plus that of an exponential wait; adding quantiles
    overstates the sum's a little, on the side of the SLO.
    """
    return mean_and_p95_s(stations, rps)[1]


def mean_and_p95_s(stations: Stations, rps: Floats) -> tuple[Floats, Floats]:
    """Both of the above at once, (J,) each, s."""
    wait = wait_s(stations, rps)
    idle = stations.idle_s
    return idle + wait, idle * stations.tail_ratio + WAIT_P95_RATIO * wait


def p99_s(stations: Stations, rps: Floats) -> Floats:
    """(J,) 99th percentile, s: a lognormal service time of the same p95, and the wait's.

    For a lognormal with mean 1 and p95 ``q``, log q = 1.645 s - s^2 / 2; the p99 has 2.326 s.
    """
    z95, z99 = 1.645, 2.326
    log_tail = np.log(np.maximum(stations.tail_ratio, 1.0))
    spread = z95 - np.sqrt(np.maximum(z95**2 - 2.0 * log_tail, 0.0))
    tail99 = np.exp(z99 * spread - spread**2 / 2.0)
    return stations.idle_s * tail99 + WAIT_P99_RATIO * wait_s(stations, rps)


def mean_and_marginal_s(stations: Stations, rps: Floats) -> tuple[Floats, Floats, Floats]:
    """T, what one more request costs everyone (T + x T'), and the latter's derivative by x.

    Returns
    -------
    (J,) s, (J,) s, and (J,) s per request/s, which is >= 0 since x T(x) is convex.
    """
    wait, first, second = _wait(stations, rps)
    mean = stations.idle_s + wait
    return mean, mean + rps * first, 2.0 * first + rps * second


def marginal_s(stations: Stations, rps: Floats) -> tuple[Floats, Floats]:
    """(J,) s T + x T', and (J,) s per request/s its derivative by x."""
    _, marginal, slope = mean_and_marginal_s(stations, rps)
    return marginal, slope


def infer_service_s(
    observed_s: Floats,
    rps: Floats,
    capacity_rps: Floats,
    servers: Floats,
    variability: Floats,
) -> Floats:
    """Invert a station's T for the service time that explains ``observed_s`` at ``rps``.

    Where the capacity is known, the station has as many servers as that takes (Little's law,
    c = capacity x s), and utilisation does not depend on s. Elsewhere it has ``servers``, and
    its utilisation is part of the answer. T grows with s either way and is never below it, so the
    answer lies in (0, observed_s] and bisection finds it.

    Parameters
    ----------
    observed_s : (J,) mean response time, s, > 0
    rps : (J,) rate at which it was observed, >= 0
    capacity_rps : (J,) rate at which utilisation is 1; NaN where unknown
    servers : (J,) taken where the capacity is unknown
    variability : (J,) as in ``Stations``

    Returns
    -------
    (J,) s
    """
    low, high = np.zeros_like(observed_s), observed_s.copy()
    ones = np.ones_like(observed_s)
    for _ in range(_BISECTIONS):
        middle = np.maximum(0.5 * (low + high), 1e-9)
        guess = station_of(middle, capacity_rps, servers, ones, variability=variability)
        slower = mean_s(guess, rps) > observed_s
        high = np.where(slower, middle, high)
        low = np.where(slower, low, middle)
    return 0.5 * (low + high)


def station_of(
    service_s: Floats,
    capacity_rps: Floats,
    servers: Floats,
    tail_ratio: Floats,
    power: PowerCurves | None = None,
    *,
    variability: Floats | None = None,
) -> Stations:
    """Stations of that capacity where it is known, of that many servers elsewhere; (J,) each."""
    known = np.isfinite(capacity_rps)
    needed = np.where(known, capacity_rps * service_s, servers)
    count = np.maximum(needed, 1.0)
    # Fewer than one server is one that is slower than its own service time says.
    kappa = np.where(known, needed / count, 1.0)
    v = np.ones_like(service_s) if variability is None else variability
    return Stations(service_s, count, kappa, v, tail_ratio, power)
