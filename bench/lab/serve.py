"""The inner loop of the truth, compiled: one tick's requests through the stations."""

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xds_server.core.tables import Floats, Ints

DETAIL_BASE_S: Final = 1e-4
DETAIL_STEP: Final = float(np.log(1.05))
FAST_FAIL_S: Final = 0.001
"""How long a refusal takes, beside the round trip."""
BUCKET_S: Final = 0.004
WHEEL: Final = 1024
"""Departures are counted in buckets of 4 ms, 4 s ahead."""
SCALARS: Final = 6
REQUESTS, LATENCY_S, FAILED, USD, PRICE_MS, SLOW = range(SCALARS)
"""Columns of sums over the requests sent in one tick, by cell."""


class Requests(NamedTuple):
    """What comes in one tick, in order of time; axis 0 (N)."""

    at_s: Floats
    route: Ints
    pick: Floats  # uniform: which provider
    work: Floats  # service time over its mean
    luck: Floats  # uniform: whether it fails
    attempt: Ints  # 0 for the first


class Retries(NamedTuple):
    """Attempts that are made anew; axis 0 (N)."""

    at_s: Floats
    route: Ints
    attempt: Ints


class Scene(NamedTuple):
    """How one tick is: who serves whom, how fast, at what price. R routes, P pairs, J providers."""

    starts: Ints  # (R + 1,)
    cumulative: Floats  # (P,) running sum of shares within each route
    provider: Ints  # (P,)
    rtt_s: Floats  # (P,)
    egress_usd: Floats  # (P,)
    service_s: Floats  # (J,)
    servers: Ints  # (J,)
    endpoints: Ints  # (J,)
    error_ratio: Floats  # (J,)
    price_usd: Floats  # (J,)
    shared_of: Ints  # (J,) row of the station behind it, -1: none
    shared_s: Floats  # (G,)
    usd_rate: Floats  # (R,)
    cell: Ints  # (R,)
    bounds_s: Floats  # (B,) of the latency histograms
    slo_s: float
    timeout_s: float
    retries: int
    least: bool  # the endpoint with the least in flight is taken, whatever the shares


class Queues(NamedTuple):
    """When servers are free, and what is in flight; goes on from tick to tick."""

    free: Floats  # (J, C)
    shared_free: Floats  # (G, C)
    wheel: Ints  # (J, WHEEL) departures by bucket
    seen: Ints  # (J,) bucket up to which departures are counted
    inflight: Ints  # (J,)


class Counts(NamedTuple):
    """Telemetry in the tick in which it is complete, in a ring of ticks; axis 0 (RING)."""

    sent: Floats  # (., P)
    errors: Floats  # (., P)
    sum_s: Floats  # (., P)
    answers: Floats  # (., P)
    hist: NDArray[np.float32]  # (., P, B + 1)
    ended: Floats  # (., P)
    busy_s: Floats  # (., J)


@njit(cache=True)
def _settle(j, now_s, wheel, seen, inflight):  # type: ignore[no-untyped-def]
    """Count the departures of provider ``j`` up to now."""
    bucket = int(now_s / BUCKET_S)
    if bucket - seen[j] > WHEEL:
        inflight[j] = 0
        wheel[j, :] = 0
    else:
        for b in range(seen[j], bucket):
            at = b % WHEEL
            inflight[j] -= wheel[j, at]
            wheel[j, at] = 0
    seen[j] = bucket


@njit(cache=True)
def _first_free(free, servers):  # type: ignore[no-untyped-def]
    """Server of that station that is free first."""
    best = 0
    for k in range(1, servers):
        if free[k] < free[best]:
            best = k
    return best


@njit(cache=True)
def _choose(  # type: ignore[no-untyped-def]
    begin, end, now_s, pick, cumulative, provider, endpoints, least, wheel, seen, inflight
):
    """Pair that serves the request: by share, or the endpoint with the least in flight."""
    if not least:
        total = cumulative[end - 1]
        for p in range(begin, end - 1):
            if pick * total < cumulative[p]:
                return p
        return end - 1
    best, fewest, ties = begin, 1e18, 1.0
    for p in range(begin, end):
        j = provider[p]
        _settle(j, now_s, wheel, seen, inflight)
        # Whole requests of the emptiest endpoint; ties are broken at random.
        queued = float(inflight[j] // endpoints[j])
        if queued < fewest:
            best, fewest, ties = p, queued, 1.0
        elif queued == fewest:
            ties += 1.0
            if (pick * 7919.0 * (p - begin + 1)) % 1.0 < 1.0 / ties:
                best = p
    return best


@njit(cache=True)
def _take(free, servers, ready_s, sent_s, timeout_s, work_s):  # type: ignore[no-untyped-def]
    """Begin and end at a station; nothing is done there where the turn comes too late."""
    k = _first_free(free, servers)
    begun = max(ready_s, free[k])
    if begun - sent_s > timeout_s:
        return begun, begun
    free[k] = begun + work_s
    return begun, free[k]


@njit(cache=True)
def _work(j, begun, done, tick, busy_s):  # type: ignore[no-untyped-def]
    """Count the time for which a server is busy, by tick."""
    at = begun
    while at < done:
        t = int(at)
        until = min(done, t + 1.0)
        if t < tick + len(busy_s):
            busy_s[t % len(busy_s), j] += until - at
        at = until


@njit(cache=True)
def _depart(j, done, wheel, seen, inflight):  # type: ignore[no-untyped-def]
    """Count a request in flight, and when it will depart."""
    inflight[j] += 1
    ahead = min(int(done / BUCKET_S), seen[j] + WHEEL - 1)
    wheel[j, ahead % WHEEL] += 1


@njit(cache=True)
def _account(  # type: ignore[no-untyped-def]
    cells, c, first, failed, again, taken, usd, usd_rate, slo_s
):
    """Add one attempt to the sums of its cell."""
    lost = failed and not again
    cells[c, REQUESTS] += 1.0 if first else 0.0
    cells[c, LATENCY_S] += 0.0 if lost else taken
    cells[c, FAILED] += 1.0 if lost else 0.0
    cells[c, USD] += usd
    cells[c, PRICE_MS] += usd * usd_rate
    if not again:
        cells[c, SLOW] += 1.0 if failed or not first or taken > slo_s else 0.0


@njit(cache=True)
def _bin(spent_s, bins):  # type: ignore[no-untyped-def]
    """Bin of the logarithmic histogram."""
    return min(max(int(np.log(spent_s / DETAIL_BASE_S) / DETAIL_STEP), 0), bins - 1)


@njit(cache=True)
def serve(requests, scene, queues, counts, cells, detail, retries):  # type: ignore[no-untyped-def]
    """Serve requests in order of time; all state is changed in place. Returns retries made."""
    # Helpers get arrays: to hand on a tuple of them costs more than their work, in references.
    at_s, route, pick, work, luck, attempt = requests
    starts, cumulative, provider, rtt_s, egress_usd = scene[:5]
    service_s, servers, endpoints, error_ratio, price_usd, shared_of, shared_s = scene[5:12]
    usd_rate, cell, bounds_s, slo_s, timeout_s, most_retries, least = scene[12:]
    free, shared_free, wheel, seen, inflight = queues
    sent, errors, sum_s, count, hist, ended, busy_s = counts
    made, ring = 0, len(sent)
    for i in range(len(at_s)):
        now, r = at_s[i], route[i]
        tick, begin, end = int(now), starts[r], starts[r + 1]
        p = _choose(
            begin, end, now, pick[i], cumulative, provider, endpoints, least, wheel, seen, inflight
        )
        j, g = provider[p], shared_of[provider[p]]
        failed, answered, taken = True, True, rtt_s[p] + FAST_FAIL_S
        if luck[i] >= error_ratio[j]:
            ready = now
            if g >= 0:
                each, work_s = shared_free[g], shared_s[g] * work[i]
                _, ready = _take(each, len(each), now, now, timeout_s, work_s)
            begun, done = _take(free[j], servers[j], ready, now, timeout_s, service_s[j] * work[i])
            served, taken = begun - now <= timeout_s, done - now + rtt_s[p]
            if served:
                _work(j, begun, done, tick, busy_s)
                if least:
                    _depart(j, done, wheel, seen, inflight)
            answered = served and taken <= timeout_s
            failed, taken = not answered, taken if answered else timeout_s
        # All but what was sent is of the tick in which the request ends.
        row = min(int(now + taken), tick + ring - 1) % ring
        sent[tick % ring, p] += 1.0
        ended[row, p] += 1.0
        if failed:
            errors[row, p] += 1.0
        if answered:
            sum_s[row, p] += taken
            count[row, p] += 1.0
            hist[row, p, np.searchsorted(bounds_s, taken)] += 1.0
        again, first = failed and attempt[i] < most_retries, attempt[i] == 0
        # A refusal is free; work that came too late is not, but nothing crosses regions.
        usd = 0.0 if failed and answered else price_usd[j]
        usd += 0.0 if failed else egress_usd[p]
        _account(cells, cell[r], first, failed, again, taken, usd, usd_rate[r], slo_s)
        if again:
            retries.at_s[made] = max(now + taken, tick + 1.0)
            retries.route[made] = r
            retries.attempt[made] = attempt[i] + 1
            made += 1
        else:
            detail[_bin(timeout_s if failed else taken, len(detail))] += 1
    return made
