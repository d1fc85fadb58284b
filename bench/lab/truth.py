"""T2, the truth: every request on its own, through first-come-first-served stations.

Deliberately not the engine's family of models: a station is a queue of c servers in which each
request takes the server that is free first (J. Kiefer and J. Wolfowitz, "On the theory of queues
with many servers", Transactions of the AMS, 1955). Inside a provider Envoy picks the least
loaded endpoint, so that one queue stands for all of its endpoints.

A request whose turn comes after its timeout is dropped unserved; one that is being served
when it times out keeps its server until the end, for nothing. Requests are queued in the order
in which they were sent: half a round trip more or less shifts a stream, not its law.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit

from bench.lab.layout import SLO_S
from bench.lab.worlds import World
from xds_server.core.tables import Floats, Ints
from xds_server.model.telemetry import LATENCY_BUCKETS_MS

RING: Final = 4
"""Ticks within which any request that was sent has been answered or has timed out."""
DETAIL: Final = 240
"""Bins of the latency histogram that figures are read from: logarithmic, 5 % each."""
DETAIL_BASE_S: Final = 1e-4
_DETAIL_STEP: Final = float(np.log(1.05))
FAST_FAIL_S: Final = 0.001
"""How long a refusal takes, beside the round trip."""
_BUCKET_S: Final = 0.004
_WHEEL: Final = 1024
"""Departures are counted in buckets of 4 ms, 4 s ahead."""
_BOUNDS_S: Final = np.array(LATENCY_BUCKETS_MS) / 1e3
_SCALARS: Final = 7
REQUESTS, LATENCY_S, FAILED, USD, PRICE_MS, SLOW, RETRIED = range(_SCALARS)
"""Columns of ``Truth.scalars``: sums over the requests sent in one tick, by cell."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The requests of one tick, in order of time; axis 0 (N). The same for every policy."""

    at_s: Floats
    route: Ints
    pick: Floats  # uniform: which provider
    work: Floats  # service time over its mean
    luck: Floats  # uniform: whether it fails


def draw_arrivals(world: World, seed: int, tick: int) -> Arrivals:
    """Draw one tick; depends on nothing but its arguments."""
    rng = np.random.default_rng([seed, 3, tick])
    demand = world.demand_rps[tick]
    if world.burst_cv > 0.0:
        shape = 1.0 / world.burst_cv**2
        demand = demand * rng.gamma(shape, 1.0 / shape, len(demand))
    counts = rng.poisson(demand)
    total = int(counts.sum())
    at_s = tick + rng.random(total)
    order = np.argsort(at_s)
    if world.bimodal:
        work = np.where(rng.random(total) < 0.1, 5.5, 0.5)
    else:
        spread = np.log1p(world.service_cv2)
        work = np.exp(rng.normal(-spread / 2.0, np.sqrt(spread), total))
    route = np.repeat(np.arange(len(demand)), counts)
    return Arrivals(at_s[order], route[order], rng.random(total), work, rng.random(total))


class Truth:
    """One policy's copy of the world: its queues, and what was counted."""

    def __init__(self, world: World, *, least_request: bool = False) -> None:
        layout = world.layout
        self.world, self.least_request = world, least_request
        pairs = layout.problem.pairs
        count, rows = len(layout.servers), len(pairs.route)
        shared = world.shared
        groups = int(shared.max()) + 1
        services = int(layout.provider_service.max()) + 1
        self._starts = np.append(pairs.starts, rows)
        self._free = np.zeros((count, int(layout.servers.max())))
        self._shared_free = np.zeros((max(groups, 1), world.shared_servers))
        self._wheel = np.zeros((count, _WHEEL), dtype=np.int32)
        self._seen = np.zeros(count, dtype=np.int64)  # bucket up to which departures are counted
        self.inflight = np.zeros(count, dtype=np.int64)
        self._cell = layout.region * services + layout.service
        self._usd_rate = layout.ms_per_usd
        self.cells = int(self._cell.max()) + 1
        # Telemetry in the tick in which it is complete, in a ring of ticks.
        self._sent = np.zeros((RING, rows))
        self._errors = np.zeros((RING, rows))
        self._sum_s = np.zeros((RING, rows))
        self._count = np.zeros((RING, rows))
        self._hist = np.zeros((RING, rows, len(_BOUNDS_S) + 1), dtype=np.float32)
        self._busy_s = np.zeros((RING, count))
        self._ended = np.zeros((RING, rows))
        self.active = np.zeros(rows)
        self.scalars = np.zeros((self.cells, _SCALARS))
        self.detail = np.zeros((world.ticks, DETAIL), dtype=np.int32)
        self.provider_sent = np.zeros(count)
        self._retry: tuple[Floats, Ints, Ints] = (
            np.empty(0),
            np.empty(0, dtype=np.int64),
            np.empty(0, dtype=np.int64),
        )

    def run(self, tick: int, arrivals: Arrivals, shares: Floats) -> "Slot":
        """Serve one tick's requests by these shares (P,), and hand out its telemetry."""
        world, layout = self.world, self.world.layout
        pairs = layout.problem.pairs
        at_s, route, pick, work, luck, attempt = self._due(tick, arrivals)
        # Columns of this ring row were handed out RING ticks ago.
        last = (tick + RING - 1) % RING
        for ring in (self._sent, self._errors, self._sum_s, self._count, self._busy_s, self._ended):
            ring[last] = 0.0
        self._hist[last] = 0.0
        self.scalars[:] = 0.0
        shared_s = world.shared_s[tick] if world.shared_s is not None else np.zeros(1)
        room = len(at_s) if world.retries else 0
        retry_at, retry_route = np.empty(room), np.empty(room, dtype=np.int64)
        retry_attempt = np.empty(room, dtype=np.int64)
        kept = _serve(
            at_s,
            route,
            pick,
            work,
            luck,
            attempt,
            self._starts,
            _cumulate(shares, pairs.starts),
            pairs.provider,
            layout.rtt_s,
            layout.service_s * world.slowness[tick],
            layout.servers,
            layout.endpoints,
            world.error_ratio[tick],
            world.price_usd[tick],
            layout.egress_usd,
            self._usd_rate,
            self._free,
            world.shared,
            self._shared_free,
            shared_s,
            layout.timeout_s,
            world.retries,
            self.least_request,
            self._wheel,
            self._seen,
            self.inflight,
            _BOUNDS_S,
            self._sent,
            self._errors,
            self._sum_s,
            self._count,
            self._hist,
            self._busy_s,
            self._ended,
            self._cell,
            self.scalars,
            self.detail[tick],
            np.full(pairs.routes, SLO_S),
            retry_at,
            retry_route,
            retry_attempt,
        )
        when, which, attempts = self._retry
        self._retry = (
            np.concatenate([when, retry_at[:kept]]),
            np.concatenate([which, retry_route[:kept]]),
            np.concatenate([attempts, retry_attempt[:kept]]),
        )
        row = tick % RING
        self.active += self._sent[row] - self._ended[row]
        self.provider_sent = pairs.sum_by_provider(self._sent[row])
        return Slot(
            self._sent[row].copy(),
            self._errors[row].copy(),
            self._sum_s[row].copy(),
            self._count[row].copy(),
            self._hist[row].copy(),
            self.active.copy(),
            self._busy_s[row] / layout.servers,
        )

    def wait_s(self, now_s: float) -> Floats:
        """(J,) how long a request that came now would wait."""
        servers = self.world.layout.servers
        column = np.arange(self._free.shape[1])
        free = np.where(column < servers[:, None], self._free, np.inf)
        wait: Floats = np.maximum(free.min(axis=1) - now_s, 0.0)
        return wait

    def _due(self, tick: int, arrivals: Arrivals) -> tuple[np.ndarray, ...]:
        """Merge this tick's first attempts with the retries that are due in it."""
        first = np.zeros(len(arrivals.at_s), dtype=np.int64)
        mine = (arrivals.at_s, arrivals.route, arrivals.pick, arrivals.work, arrivals.luck, first)
        when, route, attempt = self._retry
        due = when < tick + 1
        if not due.any():
            return mine
        self._retry = (when[~due], route[~due], attempt[~due])
        # A retry's luck is its own: a hash of when it happens.
        draws = np.random.default_rng([tick, int(due.sum())]).random((3, int(due.sum())))
        spread = np.log1p(self.world.service_cv2)
        work = np.exp(spread / 2.0 * -1.0 + np.sqrt(spread) * _normal(draws[1]))
        extra = (when[due], route[due], draws[0], work, draws[2], attempt[due])
        at_s = np.concatenate([mine[0], extra[0]])
        order = np.argsort(at_s, kind="stable")
        return tuple(np.concatenate([a, b])[order] for a, b in zip(mine, extra, strict=True))


@dataclass(frozen=True, slots=True)
class Slot:
    """What sidecars and providers could report of one tick, without noise."""

    requests: Floats  # (P,) sent
    errors: Floats  # (P,)
    latency_sum_s: Floats  # (P,)
    latency_count: Floats  # (P,) timeouts have no response time
    latency_hist: Floats  # (P, B + 1)
    active: Floats  # (P,) in flight at the end
    utilisation_ratio: Floats  # (J,) busy servers over servers, mean


def quantile_s(detail: Floats, q: float) -> float:
    """Quantile of a histogram in ``DETAIL`` bins, s; NaN when it is empty."""
    total = detail.sum()
    if total == 0:
        return float("nan")
    row = int(np.searchsorted(np.cumsum(detail), q * total))
    return DETAIL_BASE_S * float(np.exp(_DETAIL_STEP * (row + 0.5)))


def _cumulate(shares: Floats, starts: Ints) -> Floats:
    """(P,) running sum of shares within each route."""
    total = np.cumsum(shares)
    before = np.where(starts > 0, total[starts - 1], 0.0)
    found: Floats = total - np.repeat(before, np.diff(np.append(starts, len(shares))))
    return found


def _normal(uniform: Floats) -> Floats:
    """Quantile of the standard normal: Tukey's lambda, good to 1 % where it matters."""
    u = np.clip(uniform, 1e-6, 1.0 - 1e-6)
    found: Floats = (u**0.135 - (1.0 - u) ** 0.135) / 0.1975
    return found


@njit(cache=True)
def _settle(j, now_s, wheel, seen, inflight):  # type: ignore[no-untyped-def]
    """Count the departures of provider ``j`` up to now."""
    bucket = int(now_s / _BUCKET_S)
    if bucket - seen[j] > _WHEEL:
        inflight[j] = 0
        wheel[j, :] = 0
    else:
        for b in range(seen[j], bucket):
            at = b % _WHEEL
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
def _serve(  # type: ignore[no-untyped-def]
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
                    ahead = min(int(done / _BUCKET_S), seen[j] + _WHEEL - 1)
                    wheel[j, ahead % _WHEEL] += 1
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
            bin_ = int(np.log(spent / DETAIL_BASE_S) / _DETAIL_STEP)
            detail[min(max(bin_, 0), len(detail) - 1)] += 1
    return made
