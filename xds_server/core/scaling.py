"""What capacity, and the want of it, is worth per hour. Pure formulas."""

import numpy as np

from xds_server.core.tables import Floats

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
