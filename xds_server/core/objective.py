"""What a request costs a route, in milliseconds-equivalent, and what a plan costs in all.

The profile's performance and cost weights set one exchange rate against the
application's own baseline: at equal weights, one per cent of the baseline's price is
worth one per cent of its latency.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xds_server.core import latency
from xds_server.core.latency import Stations
from xds_server.core.tables import Floats, Pairs

MIN_SUCCESS_RATIO = 0.02
"""Below this success a provider is as bad as it gets; keeps the penalty finite."""
PREFER_RATIO = 0.5
"""What a request outside the preferred regions costs, in baseline latencies."""
SLO_SLOPE = 4.0
"""Milliseconds-equivalent per millisecond by which the predicted p95 exceeds the SLO."""
SLO_KNEE_RATIO = 0.05
"""Width of the softplus knee, as a share of the objective."""


@dataclass(frozen=True)
class PairCosts:
    """The load-independent part of a request's cost, per pair, ms-equivalent; axis 0 (P)."""

    distance: Floats  # network time that is this pair's own
    backlog: Floats  # wait for a queue that an overload left behind
    error: Floats
    price: Floats
    egress: Floats
    geography: Floats
    slo: Floats

    @cached_property
    def total(self) -> Floats:
        """(P,); added up once, since every stage asks for it."""
        total = self.distance + self.backlog
        for part in (self.error, self.price, self.egress, self.geography, self.slo):
            total += part
        total.flags.writeable = False
        return total


def exchange_ms_per_usd(
    performance_weight: Floats,
    cost_weight: Floats,
    baseline_ms: Floats,
    baseline_usd: Floats,
) -> Floats:
    """(R,) milliseconds that one dollar per request is worth; 0 where nothing costs anything.

    Parameters
    ----------
    performance_weight, cost_weight : (R,) of the profile, 0..1
    baseline_ms : (R,) mean latency of the baseline split, uncongested
    baseline_usd : (R,) price of a request at the baseline split and declared prices
    """
    ratio = cost_weight / np.maximum(performance_weight, 0.01)
    return np.where(baseline_usd > 0.0, ratio * baseline_ms / np.maximum(baseline_usd, 1e-15), 0.0)


def error_ms(error_ratio: Floats, failure_ms: Floats) -> Floats:
    """Expected cost of failing: ``failure_ms`` per failed attempt until one succeeds."""
    success = np.maximum(1.0 - error_ratio, MIN_SUCCESS_RATIO)
    return failure_ms * (1.0 / success - 1.0)


def slo_ms(p95_s: Floats, slo_s: Floats) -> Floats:
    """Softplus penalty on a predicted p95; 0 where ``slo_s`` is inf (no objective)."""
    asked = np.isfinite(slo_s)
    every = bool(asked.all())
    bounded = slo_s if every else np.where(asked, slo_s, 1.0)
    knee = SLO_KNEE_RATIO * bounded
    excess = p95_s - bounded
    excess /= knee
    np.minimum(excess, 1e4, out=excess)
    # The logarithm of 1 + e^x, which numpy's own takes five times as long for.
    soft = np.abs(excess)
    np.negative(soft, out=soft)
    np.log1p(np.exp(soft, out=soft), out=soft)
    soft += np.maximum(excess, 0.0, out=excess)
    knee *= SLO_SLOPE * 1e3
    soft *= knee
    return soft if every else soft * asked


def total_ms(
    pairs: Pairs, shares: Floats, demand_rps: Floats, fixed_ms: Floats, stations: Stations
) -> float:
    """Cost of a plan per second: sum of d <C, w> plus sum of x T(x), ms-equivalent."""
    fixed, rps = cost_and_loads(pairs, shares, demand_rps, fixed_ms)
    return fixed + queueing_ms(stations, rps)


def cost_and_loads(
    pairs: Pairs, shares: Floats, demand_rps: Floats, fixed_ms: Floats
) -> tuple[float, Floats]:
    """Sum of d <C, w>, and (J,) the loads: both are linear in the shares."""
    (cost_ms,) = pairs.weigh_by_route(shares, fixed_ms)
    # A sum, not a dot product, which would wake BLAS's threads for nothing.
    return float(np.einsum("r,r->", demand_rps, cost_ms)), pairs.loads(shares, demand_rps)


def queueing_ms(stations: Stations, rps: Floats) -> float:
    """Sum of x T(x), ms per second."""
    return float(1e3 * np.sum(rps * latency.mean_s(stations, rps)))
