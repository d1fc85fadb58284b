"""The inner loop of the truth, compiled: one tick's requests through the stations."""

from typing import Final

import numpy as np
from numba import njit

DETAIL_BASE_S: Final = 1e-4
DETAIL_STEP: Final = float(np.log(1.05))
FAST_FAIL_S: Final = 0.001
"""How long a refusal takes, beside the round trip."""
BUCKET_S: Final = 0.004
WHEEL: Final = 1024
"""Departures are counted in buckets of 4 ms, 4 s ahead."""


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
def serve(  # type: ignore[no-untyped-def]
    at_s,
    route,
    pick,
    work,
    luck,
    attempt,
    starts,
    cumulative,
    provider,
    rtt_s,
    service_s,
    servers,
    endpoints,
    error_ratio,
    price_usd,
    egress_usd,
    usd_rate,
    free,
    shared_of,
    shared_free,
    shared_s,
    timeout_s,
    retries,
    least,
    wheel,
    seen,
    inflight,
    bounds_s,
    sent,
    errors,
    sum_s,
    count,
    hist,
    busy_s,
    ended,
    cell,
    scalars,
    detail,
    slo_s,
    retry_at,
    retry_route,
    retry_attempt,
):
    """Serve requests in order of time; all state is changed in place. Returns retries made."""
    made = 0
    for i in range(len(at_s)):
        now, r = at_s[i], route[i]
        p = _choose(
            starts[r],
            starts[r + 1],
            now,
            pick[i],
            cumulative,
            provider,
            endpoints,
            least,
            wheel,
            seen,
            inflight,
        )
        j = provider[p]
        tick = int(now)
        failed, answered = False, True
        if luck[i] < error_ratio[j]:
            failed = True
            taken = rtt_s[p] + FAST_FAIL_S
        else:
            ready = now
            g = shared_of[j]
            if g >= 0:
                k = _first_free(shared_free[g], shared_free.shape[1])
                begun = max(ready, shared_free[g, k])
                if begun - now <= timeout_s:
                    ready = begun + shared_s[g] * work[i]
                    shared_free[g, k] = ready
                else:
                    ready = begun
            k = _first_free(free[j], servers[j])
            begun = max(ready, free[j, k])
            if begun - now > timeout_s:
                failed, answered, taken = True, False, timeout_s
            else:
                done = begun + service_s[j] * work[i]
                free[j, k] = done
                at = begun
                while at < done:
                    t = int(at)
                    until = min(done, t + 1.0)
                    if t < tick + len(sent):
                        busy_s[t % len(sent), j] += until - at
                    at = until
                taken = done - now + rtt_s[p]
                if taken > timeout_s:
                    failed, answered, taken = True, False, timeout_s
                if least:
                    inflight[j] += 1
                    ahead = min(int(done / BUCKET_S), seen[j] + WHEEL - 1)
                    wheel[j, ahead % WHEEL] += 1
        row = min(int(now + taken), tick + len(sent) - 1) % len(sent)
        sent[tick % len(sent), p] += 1.0
        ended[row, p] += 1.0
        if failed:
            errors[row, p] += 1.0
        if answered:
            sum_s[row, p] += taken
            count[row, p] += 1.0
            hist[row, p, np.searchsorted(bounds_s, taken)] += 1.0
        again = failed and attempt[i] < retries
        # A refusal is free; work that came too late is not, but nothing crosses regions.
        usd = 0.0 if failed and answered else price_usd[j]
        usd += 0.0 if failed else egress_usd[p]
        c = cell[r]
        scalars[c, 0] += 1.0 if attempt[i] == 0 else 0.0
        scalars[c, 1] += 0.0 if failed and not again else taken
        scalars[c, 2] += 1.0 if failed and not again else 0.0
        scalars[c, 3] += usd
        scalars[c, 4] += usd * usd_rate[r]
        scalars[c, 6] += 1.0 if again else 0.0
        if again:
            retry_at[made] = max(now + taken, tick + 1.0)
            retry_route[made] = r
            retry_attempt[made] = attempt[i] + 1
            made += 1
        else:
            scalars[c, 5] += 1.0 if failed or attempt[i] > 0 or taken > slo_s[r] else 0.0
            spent = timeout_s if failed else taken
            bin_ = int(np.log(spent / DETAIL_BASE_S) / DETAIL_STEP)
            detail[min(max(bin_, 0), len(detail) - 1)] += 1
    return made
