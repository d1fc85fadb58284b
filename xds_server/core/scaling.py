"""What capacity, and the want of it, is worth per hour. Pure formulas."""

import numpy as np

from xds_server.core.tables import Floats, Ints

SECONDS_PER_HOUR = 3600.0


def usd_per_h(demand_rps: Floats, relief_ms: Floats, ms_per_usd: Floats) -> float:
    """Dollars per hour that shorter requests are worth, sum of d (fall of C + T) / rate.

    Parameters
    ----------
    demand_rps : (R,) requests/s
    relief_ms : (R,) by how much the cost of one request falls, ms-equivalent; may be negative
    ms_per_usd : (R,) what a dollar per request is worth; where it is 0, time has no price
    """
    priced = ms_per_usd > 0.0
    usd = np.where(priced, relief_ms / np.where(priced, ms_per_usd, 1.0), 0.0)
    return SECONDS_PER_HOUR * float(np.sum(demand_rps * usd))


CHANGE_RATIO = 0.10
"""What changing the number of endpoints costs, as a part of what those endpoints cost an hour."""


def counts_to_try(now: int, least: int, most: int) -> Ints:
    """Numbers of endpoints within bounds: now, one more or less, a quarter, and twice as many."""
    quarter = max(1, round(0.25 * now))
    tried = {now, now - 1, now + 1, now - quarter, now + quarter, 2 * now}
    within = {min(max(n, least), most) for n in tried}
    return np.array(sorted(within | {now}), dtype=np.int64)


def best_count(
    now: int, counts: Ints, relief_usd_per_h: Floats, endpoint_usd_per_h: float
) -> tuple[int, float]:
    """Choose how many endpoints are worth their price; never more if they get dearer.

    Parameters
    ----------
    counts : (N,) to choose from; ``now`` is one of them
    relief_usd_per_h : (N,) what routes gain by that many beside what they have; inf: it has to be

    Returns
    -------
    the number, and what it gains net of its price, dollars per hour
    """
    more = (counts - now).astype(np.float64)
    net = relief_usd_per_h - endpoint_usd_per_h * (more + CHANGE_RATIO * np.abs(more))
    net = np.where(counts == now, 0.0, net)
    best = int(np.argmax(net))  # the fewest of equals
    return (int(counts[best]), float(net[best])) if net[best] > 0.0 else (now, 0.0)
