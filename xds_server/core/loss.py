"""What is left of a plan when each route loses the provider that it uses most (N-1)."""

import numpy as np
from scipy.sparse import csr_array

from xds_server.core import latency
from xds_server.core.latency import Stations
from xds_server.core.tables import Bools, Floats, Ints, Pairs

NOTABLE_SHARE = 0.05
"""Routes that lose less of their traffic with a provider do not count for the others' load."""


def p95_after_loss(
    pairs: Pairs, shares: Floats, demand_rps: Floats, stations: Stations, rtt_s: Floats, of: Bools
) -> Floats:
    """Return the p95 of each route after the loss of its largest provider, in closed form.

    All routes lose that provider at once; each spreads what it sent there over its others, pro
    rata, as sidecars do before any controller reacts. So provider k gets, beside its x_k,

        M[j, k] = sum over routes of d_r w_rj w_rk / (1 - w_rj)

    when j is lost: one product of two sparse matrices answers for all j.

    Parameters
    ----------
    shares : (P,) the plan
    rtt_s : (P,) network time
    of : (R,) routes to answer for

    Returns
    -------
    (R,) s; inf where nothing would be left, NaN where not asked or without demand
    """
    out = np.full(pairs.routes, np.nan)
    asked = of & (demand_rps > 0.0)
    if not asked.any():
        return out
    flow = demand_rps[pairs.route] * shares
    rows = np.flatnonzero(asked[pairs.route])
    largest = _largest(pairs, shares, rows)
    left = 1.0 - shares
    lost = np.zeros(pairs.providers, dtype=bool)
    lost[pairs.provider[largest[asked]]] = True
    feeds = np.flatnonzero(lost[pairs.provider] & (shares > NOTABLE_SHARE) & (left > 1e-9))
    shape = (pairs.routes, pairs.providers)
    away = csr_array(
        (flow[feeds] / left[feeds], (pairs.route[feeds], pairs.provider[feeds])), shape=shape
    )
    kept = pairs.matrix(shares)
    more = (away.T @ kept).tocsr()
    gone = largest[pairs.route[rows]]
    rest = np.where(rows == gone, 0.0, shares[rows])
    rows, gone, rest = rows[rest > 0.0], gone[rest > 0.0], rest[rest > 0.0]
    provider = pairs.provider[rows]
    extra = np.asarray(more[pairs.provider[gone], provider]).ravel() if len(rows) else rest
    rps = pairs.sum_by_provider(flow)[provider] + extra
    p95 = latency.p95_s(stations.rows(provider), rps) + rtt_s[rows]
    route = pairs.route[rows]
    total = np.bincount(route, rest, pairs.routes)
    mean = np.bincount(route, rest * p95, pairs.routes) / np.maximum(total, 1e-12)
    return np.where(asked, np.where(total > 0.0, mean, np.inf), np.nan)


def _largest(pairs: Pairs, shares: Floats, rows: Ints) -> Ints:
    """(R,) the pair with each route's largest share, the first of equals, among whole routes."""
    mine, route = shares[rows], pairs.route[rows]
    starts = np.flatnonzero(np.diff(route, prepend=-1))
    top = np.repeat(np.maximum.reduceat(mine, starts), np.diff(starts, append=len(rows)))
    largest = np.flatnonzero(mine >= top)[::-1]
    first = np.full(pairs.routes, len(shares), dtype=np.int64)
    first[route[largest]] = rows[largest]  # of equals, the first is written last
    return first
