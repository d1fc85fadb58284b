"""The rivals: what meshes and proxies do today, each by its published rule."""

from typing import Final

import numpy as np

from bench.lab.feed import Seen
from bench.lab.worlds import World
from xds_server.core.histogram import quantile_s
from xds_server.core.tables import Floats, Pairs
from xds_server.model.telemetry import LATENCY_BUCKETS_MS

_BOUNDS_S: Final = np.array(LATENCY_BUCKETS_MS) / 1e3


class Equal:
    """The same share for every provider."""

    name = "equal"
    in_data_plane = False
    least_request = False

    def start(self, world: World) -> Floats:
        """Return equal shares."""
        self.world = world
        self.pairs = world.layout.problem.pairs
        self.shares = world.layout.problem.baseline_shares.copy()
        return self.shares

    def step(self, seen: Seen) -> Floats:
        """Change nothing."""
        return self.shares

    def _normal(self, weights: Floats) -> Floats:
        """(P,) shares in proportion to weights; equal where a route has none."""
        total = self.pairs.sum_by_route(weights)[self.pairs.route]
        equal = self.world.layout.problem.baseline_shares
        return np.where(total > 0.0, weights / np.where(total > 0.0, total, 1.0), equal)


class LeastRequest(Equal):
    """The fewest requests in flight per endpoint, over all providers.

    Idealised: a sidecar counts its own requests only and looks at two endpoints; this one
    knows everybody's and looks at all.
    """

    name = "least_request"
    in_data_plane = True
    least_request = True


class _Smoothed(Equal):
    """Keeps smoothed latencies, rates and utilisations of what was seen."""

    alpha = 0.3

    def start(self, world: World) -> Floats:
        """Know nothing."""
        super().start(world)
        self._memory: dict[str, Floats] = {}
        return self.shares

    def smooth(self, name: str, values: Floats) -> Floats:
        """Exponentially weighted mean; NaN leaves it as it was."""
        before = self._memory.get(name, np.full(len(values), np.nan))
        mixed = np.where(np.isnan(before), values, before + self.alpha * (values - before))
        self._memory[name] = np.where(np.isnan(values), before, mixed)
        return self._memory[name]

    def filled(self, weights: Floats) -> Floats:
        """(P,) weights; where there is none yet, the mean of the route's others."""
        known = np.isfinite(weights)
        mean = _ratio(
            self.pairs.sum_by_route(np.where(known, weights, 0.0)),
            self.pairs.sum_by_route(known.astype(float)),
        )
        return np.where(known, weights, np.nan_to_num(mean, nan=1.0)[self.pairs.route])


def _ratio(a: Floats, b: Floats) -> Floats:
    """Quotient, NaN where there is nothing to divide by."""
    found: Floats = np.where(b > 0.0, a / np.where(b > 0.0, b, 1.0), np.nan)
    return found


class WeightedRoundRobin(_Smoothed):
    """Client-side WRR by ORCA (gRFC A58): rate over utilisation, with the error penalty.

    Every endpoint's weight is qps / (utilisation + eps / qps x penalty); a provider's is the
    sum of its endpoints'. Where there is none yet, the mean of the others.
    """

    name = "wrr_a58"
    in_data_plane = True
    alpha = 1.0

    def step(self, seen: Seen) -> Floats:
        """Weigh providers by what each could do."""
        pairs = self.pairs
        rate = pairs.sum_by_provider(_rate(seen))
        failing = pairs.sum_by_provider(seen.errors) / np.maximum(
            pairs.sum_by_provider(seen.requests), 1.0
        )
        load = np.maximum(seen.utilisation_ratio, 1e-3) + failing
        weight = self.smooth("weight", np.where(rate > 0.0, rate / load, np.nan))
        self.shares = self._normal(self.filled(weight[pairs.provider]))
        return self.shares


def _rate(seen: Seen) -> Floats:
    """(P,) requests/s."""
    found: Floats = seen.requests / np.maximum(seen.covered_s, 1.0)
    return found


class LoadAwareLocality(_Smoothed):
    """Envoy 1.40's load_aware_locality at its defaults; within a locality by endpoints.

    Localities weigh endpoints x (1 - utilisation), smoothed over 5 s. The callers' own takes
    everything while it is at most 0.1 busier than the others, but for a probe of 3 %.
    """

    name = "load_aware_locality"
    in_data_plane = True
    alpha = 1.0 - float(np.exp(-1.0 / 5.0))
    _threshold = 0.1
    _probe = 0.03

    def step(self, seen: Seen) -> Floats:
        """Recompute weights, as every second."""
        pairs, layout = self.pairs, self.world.layout
        busy = self.smooth("busy", np.clip(seen.utilisation_ratio, 0.0, 1.0))
        hosts = layout.endpoints.astype(float)[pairs.provider]
        used = np.nan_to_num(busy, nan=0.0)[pairs.provider]
        local = layout.local
        key = pairs.route * 16 + layout.home[pairs.provider]
        size = pairs.routes * 16

        def by_locality(values: np.ndarray) -> Floats:
            total: Floats = np.bincount(key, values, size).astype(np.float64)
            return total

        count = by_locality(hosts)
        mean = by_locality(hosts * used) / np.maximum(count, 1.0)
        base = count * np.maximum(1.0 - mean, 0.0)
        mine = np.zeros(size, dtype=bool)
        mine[key[local]] = True
        rows = np.arange(size) // 16

        def by_route(values: np.ndarray) -> Floats:
            total: Floats = np.bincount(rows, values, pairs.routes).astype(np.float64)
            return total

        total, away = by_route(base), by_route(np.where(mine, 0.0, count))
        others = by_route(np.where(mine, 0.0, count * mean)) / np.maximum(away, 1.0)
        own = by_route(np.where(mine, mean, 0.0))
        has_own, overloaded = by_route(mine.astype(float)) > 0, total <= 0.0
        keep = has_own & (own <= others + self._threshold) & ~overloaded
        weight = np.where(keep[rows], np.where(mine, total[rows], 0.0), base)
        weight = np.where(overloaded[rows], count, weight)
        summed = by_route(weight)
        probe = np.where(has_own & (away > 0) & ~overloaded, self._probe, 0.0) * summed
        deficit = np.maximum(probe - by_route(np.where(mine, 0.0, weight)), 0.0)
        weight = np.where(
            mine,
            np.maximum(weight - deficit[rows], 0.0),
            weight + deficit[rows] * count / np.maximum(away[rows], 1.0),
        )
        self.shares = self._normal(weight[key] * hosts / count[key])
        return self.shares


class L3(_Smoothed):
    """L3's weights: 100 / ((inflight / rps + 1)^2 x (p99 + penalty for failures)), smoothed."""

    name = "l3"

    def step(self, seen: Seen) -> Floats:
        """Weigh each pair by its own latency."""
        rate = _rate(seen)
        inflight = np.where(rate > 0.0, seen.active / np.maximum(rate, 1e-9), np.nan)
        p99 = quantile_s(seen.latency_hist, _BOUNDS_S, 0.99)
        failing = seen.errors / np.maximum(seen.requests, 1.0)
        penalty = self.world.layout.timeout_s * np.clip(failing, 0.0, 1.0)
        # A failing provider without a response has no p99, but its penalty.
        slow = np.where((failing > 0.5) & np.isnan(p99), self.world.layout.timeout_s, p99)
        inflight = self.smooth("inflight", inflight)
        slow = self.smooth("p99", slow + penalty)
        weight = 100.0 / ((inflight + 1.0) ** 2 * slow)
        self.shares = self._normal(self.filled(weight))
        return self.shares


class Waterfall(Equal):
    """Nearest first, each up to its configured threshold; what is over flows on.

    As Service Router and Traffic Director's waterfall by region do: declared capacity x 0.8
    is filled by the callers in the order of distance.
    """

    name = "waterfall"
    _threshold = 0.8

    def start(self, world: World) -> Floats:
        """Know what was declared."""
        super().start(world)
        self._room = self._threshold * world.layout.declared_rps
        self._demand = world.layout.demand_rps.copy()
        self._order = np.argsort(world.layout.rtt_s, kind="stable")
        return self.shares

    def step(self, seen: Seen) -> Floats:
        """Fill by rings of distance; each ring shares its room among those who come."""
        pairs = self.pairs
        measured = pairs.sum_by_route(_rate(seen))
        fresh = pairs.sum_by_route(seen.covered_s) > 0
        self._demand = np.where(fresh, measured, self._demand)
        left, room = self._demand.copy(), self._room.copy()
        flow = np.zeros(len(pairs.route))
        for rtt in np.unique(self.world.layout.rtt_s):
            ring = self.world.layout.rtt_s == rtt
            # Each route spreads over the ring by room; providers cut what is too much.
            for _ in range(2):
                open_ = np.where(ring, room[pairs.provider], 0.0)
                share = _ratio(open_, pairs.sum_by_route(open_)[pairs.route])
                wanted = np.nan_to_num(share) * left[pairs.route]
                asked = pairs.sum_by_provider(wanted)
                cut = np.minimum(1.0, room / np.maximum(asked, 1e-9))
                given = wanted * cut[pairs.provider]
                flow += given
                left = np.maximum(left - pairs.sum_by_route(given), 0.0)
                room = np.maximum(room - pairs.sum_by_provider(given), 0.0)
        # What fits nowhere goes everywhere by capacity.
        capacity = self._room[pairs.provider]
        rest = capacity / pairs.sum_by_route(capacity)[pairs.route]
        self.shares = self._normal(flow + rest * left[pairs.route])
        return self.shares


class Failover(Equal):
    """Envoy's priorities by locality: all to one's own region while enough of it is healthy.

    Overprovisioning 140 %: the own region takes min(1, 1.4 x healthy part); a provider whose
    requests fail by half is ejected as outlier detection does, for 10 ticks.
    """

    name = "failover_140"
    in_data_plane = True

    def start(self, world: World) -> Floats:
        """Everything is healthy."""
        super().start(world)
        self._ejected_until = np.zeros(self.pairs.providers)
        self.shares = self._split(np.ones(self.pairs.providers, dtype=bool))
        return self.shares

    def step(self, seen: Seen) -> Floats:
        """Eject what fails."""
        asked = self.pairs.sum_by_provider(seen.requests)
        failed = self.pairs.sum_by_provider(seen.errors)
        bad = (asked >= 5.0) & (failed > 0.5 * asked)
        self._ejected_until = np.where(bad, seen.tick + 10.0, self._ejected_until)
        self.shares = self._split(self._ejected_until <= seen.tick)
        return self.shares

    def _split(self, healthy: np.ndarray) -> Floats:
        layout, pairs = self.world.layout, self.pairs
        hosts = layout.endpoints.astype(float)[pairs.provider]
        up = hosts * healthy[pairs.provider]
        own, own_up = np.where(layout.local, hosts, 0.0), np.where(layout.local, up, 0.0)
        part = np.nan_to_num(_ratio(pairs.sum_by_route(own_up), pairs.sum_by_route(own)))
        first = np.minimum(1.0, 1.4 * part)[pairs.route]
        away = np.where(layout.local, 0.0, up)
        near = np.nan_to_num(_ratio(own_up, pairs.sum_by_route(own_up)[pairs.route]))
        far = np.nan_to_num(_ratio(away, pairs.sum_by_route(away)[pairs.route]))
        return self._normal(first * near + (1.0 - first) * far)


class Stepper(_Smoothed):
    """Flagger-like: each tick 5 % of a route's traffic to the better provider.

    Better by smoothed latency and failures, like a canary's analysis; no idea of load or price.
    """

    name = "stepper_5"
    _step = 0.05

    def step(self, seen: Seen) -> Floats:
        """Move from the worst that has traffic to the best."""
        pairs = self.pairs
        cost = _failing_latency(self, seen)
        shares = self.shares.copy()
        known = np.isfinite(cost)
        worst = pairs.max_by_route(np.where(known & (shares > 1e-9), cost, -np.inf))
        best = -pairs.max_by_route(np.where(known, -cost, -np.inf))
        gain = worst > best * 1.05
        gain &= np.isfinite(worst) & np.isfinite(best)
        low = _first(pairs, known & (cost == best[pairs.route]))
        high = _first(pairs, known & (shares > 1e-9) & (cost == worst[pairs.route]))
        rows = np.flatnonzero(gain & (low >= 0) & (high >= 0))
        move = np.minimum(self._step, shares[high[rows]])
        shares[high[rows]] -= move
        shares[low[rows]] += move
        self.shares = shares
        return shares


def _failing_latency(policy: _Smoothed, seen: Seen) -> Floats:
    """(P,) smoothed mean latency, and a timeout for each failure, s."""
    failing = seen.errors / np.maximum(seen.requests, 1.0)
    mean = _ratio(seen.latency_sum_s, seen.latency_count)
    timeout = policy.world.layout.timeout_s
    mean = np.where(np.isnan(mean) & (failing > 0.5), timeout, mean)
    return policy.smooth("cost", mean + timeout * np.clip(failing, 0.0, 1.0))


def _first(pairs: Pairs, flags: np.ndarray) -> np.ndarray:
    """(R,) first flagged pair of each route, -1 where there is none."""
    found = np.full(pairs.routes, -1, dtype=np.int64)
    rows = np.flatnonzero(flags)[::-1]
    found[pairs.route[rows]] = rows
    return found


class GreedyFastest(_Smoothed):
    """Nine tenths to the provider that has been fastest; the rest spread, to keep looking."""

    name = "greedy_fastest"
    _explore = 0.1

    def step(self, seen: Seen) -> Floats:
        """Follow the smoothed latency."""
        cost = self._cost(seen)
        known = np.where(np.isfinite(cost), cost, np.inf)
        best = -self.pairs.max_by_route(-known)
        low = _first(self.pairs, known == best[self.pairs.route])
        shares = self._explore * self.world.layout.problem.baseline_shares
        shares[low] += 1.0 - self._explore
        self.shares = shares
        return shares

    def _cost(self, seen: Seen) -> Floats:
        return _failing_latency(self, seen)


class GreedyCheapest(GreedyFastest):
    """Nine tenths to the cheapest that does not fail."""

    name = "greedy_cheapest"

    def _cost(self, seen: Seen) -> Floats:
        pairs = self.pairs
        failing = pairs.sum_by_provider(seen.errors) > 0.5 * pairs.sum_by_provider(seen.requests)
        usd = seen.price_usd[pairs.provider] + self.world.layout.egress_usd
        return np.where(failing[pairs.provider], np.inf, usd)
