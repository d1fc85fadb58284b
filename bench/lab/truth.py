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

from bench.lab.layout import SLO_S
from bench.lab.serve import (
    DETAIL_BASE_S,
    DETAIL_STEP,
    SCALARS,
    WHEEL,
    Counts,
    Queues,
    Requests,
    Retries,
    Scene,
    serve,
)
from bench.lab.worlds import World
from xds_server.core.tables import Floats, Ints
from xds_server.model.telemetry import LATENCY_BUCKETS_MS

RING: Final = 4
"""Ticks within which any request that was sent has been answered or has timed out."""
DETAIL: Final = 240
"""Bins of the latency histogram that figures are read from: logarithmic, 5 % each."""
_BOUNDS_S: Final = np.array(LATENCY_BUCKETS_MS) / 1e3


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
        self._queues = Queues(
            np.zeros((count, int(layout.servers.max()))),
            np.zeros((max(groups, 1), world.shared_servers)),
            np.zeros((count, WHEEL), dtype=np.int32),
            np.zeros(count, dtype=np.int64),
            np.zeros(count, dtype=np.int64),
        )
        self._cell = layout.region * services + layout.service
        sent, errors, sum_s, answers, ended = np.zeros((5, RING, rows))
        hist = np.zeros((RING, rows, len(_BOUNDS_S) + 1), dtype=np.float32)
        busy_s = np.zeros((RING, count))
        self._counts = Counts(sent, errors, sum_s, answers, hist, ended, busy_s)
        self.active = np.zeros(rows)
        self.scalars = np.zeros((int(self._cell.max()) + 1, SCALARS))
        self.detail = np.zeros((world.ticks, DETAIL), dtype=np.int32)
        self._retries = _room(0)

    def run(self, tick: int, arrivals: Arrivals, shares: Floats) -> "Slot":
        """Serve one tick's requests by these shares (P,), and hand out its telemetry."""
        requests = self._due(tick, arrivals)
        for ring in self._counts:
            ring[(tick + RING - 1) % RING] = 0.0  # was handed out RING ticks ago
        self.scalars[:] = 0.0
        made = _room(len(requests.at_s) if self.world.retries else 0)
        kept = serve(
            requests,
            self._scene(tick, shares),
            self._queues,
            self._counts,
            self.scalars,
            self.detail[tick],
            made,
        )
        old = self._retries
        self._retries = Retries._make(
            np.concatenate([a, b[:kept]]) for a, b in zip(old, made, strict=True)
        )
        sent, errors, sum_s, count, hist, ended, busy_s = (c[tick % RING] for c in self._counts)
        self.active += sent - ended
        return Slot(
            sent.copy(),
            errors.copy(),
            sum_s.copy(),
            count.copy(),
            hist.copy(),
            self.active.copy(),
            busy_s / self.world.layout.servers,
        )

    def _scene(self, tick: int, shares: Floats) -> Scene:
        """What serves in that tick, by these shares (P,)."""
        world, layout = self.world, self.world.layout
        pairs = layout.problem.pairs
        return Scene(
            self._starts,
            _cumulate(shares, pairs.starts),
            pairs.provider,
            layout.rtt_s,
            layout.egress_usd,
            layout.service_s * world.slowness[tick],
            layout.servers,
            layout.endpoints,
            world.error_ratio[tick],
            world.price_usd[tick],
            world.shared,
            world.shared_service_s(tick),
            layout.ms_per_usd,
            self._cell,
            _BOUNDS_S,
            SLO_S,
            layout.timeout_s,
            world.retries,
            self.least_request,
        )

    def wait_s(self, now_s: float) -> Floats:
        """(J,) how long a request that came now would wait."""
        servers = self.world.layout.servers
        free = self._queues.free
        free = np.where(np.arange(free.shape[1]) < servers[:, None], free, np.inf)
        wait: Floats = np.maximum(free.min(axis=1) - now_s, 0.0)
        return wait

    def _due(self, tick: int, arrivals: Arrivals) -> Requests:
        """Merge this tick's first attempts with the retries that are due in it."""
        first = np.zeros(len(arrivals.at_s), dtype=np.int64)
        mine = Requests(
            arrivals.at_s, arrivals.route, arrivals.pick, arrivals.work, arrivals.luck, first
        )
        due = self._retries.at_s < tick + 1
        if not due.any():
            return mine
        again = Retries._make(a[due] for a in self._retries)
        self._retries = Retries._make(a[~due] for a in self._retries)
        count = len(again.at_s)
        # A retry's luck is its own: a hash of when it happens.
        draws = np.random.default_rng([tick, count]).random((3, count))
        spread = np.log1p(self.world.service_cv2)
        work = np.exp(spread / 2.0 * -1.0 + np.sqrt(spread) * _normal(draws[1]))
        extra = Requests(again.at_s, again.route, draws[0], work, draws[2], again.attempt)
        order = np.argsort(np.concatenate([mine.at_s, extra.at_s]), kind="stable")
        return Requests._make(
            np.concatenate([a, b])[order] for a, b in zip(mine, extra, strict=True)
        )


def _room(count: int) -> Retries:
    """Room for that many retries."""
    return Retries(
        np.empty(count), np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    )


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
    return DETAIL_BASE_S * float(np.exp(DETAIL_STEP * (row + 0.5)))


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
