"""From what every (node, provider) pair reported to routes, places and providers."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array, csr_array

from xds_server.core.histogram import quantile_s, squared_variation
from xds_server.core.tables import Floats, Ints
from xds_server.engine.types import Observation, Problem
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, PairWindow

_BOUNDS_S = np.array(LATENCY_BUCKETS_MS) / 1e3
_P95 = 0.95


@dataclass(frozen=True, slots=True)
class RowMap:
    """Where each of a window's W rows belongs; kept while neither side changes."""

    problem: Problem
    nodes: tuple[str, ...]
    node_row: Ints
    provider_row: Ints
    own: Ints | None  # (V,) rows that have a pair, by route; None: pair p has row p alone
    starts: Ints  # (R',) where in ``own`` each route that has any rows begins, and
    heard: Ints  # (R',) which route that is
    to_pairs: csr_array  # (P, W)
    to_providers: csr_array  # (J, W)
    to_both: csc_array  # (R + J, W) by row of the window, so that each is read once for both

    def fits(self, problem: Problem, window: PairWindow) -> bool:
        """Whether this is the map of that window; windows share their index arrays."""
        return (
            self.problem is problem
            and self.nodes is window.nodes
            and self.node_row is window.node_row
            and self.provider_row is window.provider_row
        )


def map_rows(problem: Problem, window: PairWindow) -> RowMap:
    """Find the pair and the provider of every row."""
    pair, provider = _rows(problem, window)
    pairs, count = problem.pairs, len(pair)
    mine = np.flatnonzero(pair >= 0)
    known = np.flatnonzero(provider >= 0)
    route = pairs.route[pair[mine]]
    order = np.argsort(route, kind="stable")
    heard, starts = np.unique(route[order], return_index=True)

    def sums(row: Ints, columns: Ints, rows: int) -> csr_array:
        return csr_array((np.ones(len(row)), (row, columns)), shape=(rows, count))

    return RowMap(
        problem,
        window.nodes,
        window.node_row,
        window.provider_row,
        None if np.array_equal(pair, np.arange(len(pairs.route))) else mine[order],
        starts,
        heard,
        sums(pair[mine], mine, len(pairs.route)),
        sums(provider[known], known, pairs.providers),
        csc_array(
            (
                np.ones(len(mine) + len(known)),
                (
                    np.concatenate([route, pairs.routes + provider[known]]),
                    np.concatenate([mine, known]),
                ),
            ),
            shape=(pairs.routes + pairs.providers, count),
        ),
    )


def observe(problem: Problem, window: PairWindow, rows: RowMap) -> Observation:
    """Aggregate a window. Rows of nodes without a group count for their provider alone.

    Rates divide by the time that reports cover, so a lost report lowers the confidence
    of a rate, not the rate.
    """
    pairs = problem.pairs
    rps = window.requests / np.maximum(window.covered_s, 1e-9)
    recent = _recent_rps(window, rps)

    def by_pair(values: Floats) -> Floats:
        """(W,) -> (P,)."""
        return values if rows.own is None else rows.to_pairs @ values

    pair_rps = by_pair(rps)
    pair_recent = pair_rps if recent is rps else by_pair(recent)
    pair_sum, pair_count = by_pair(window.latency_sum_s), by_pair(window.latency_count)
    route_count = pairs.sum_by_route(pair_count)
    route_rps = pairs.sum_by_route(pair_rps)
    provider_rps, provider_sum, provider_count, errors, attempts, active = (
        rows.to_providers @ values
        for values in (
            rps,
            window.latency_sum_s,
            window.latency_count,
            window.errors,
            window.requests,
            window.active,
        )
    )
    hist = rows.to_both @ window.latency_hist
    p95_s, cv2 = quantile_s(hist, _BOUNDS_S, _P95), squared_variation(hist, _BOUNDS_S)
    places = len(problem.place_provider)
    # An empty bincount is one of integers.
    place_count, place_sum = (
        np.bincount(problem.place, values, places).astype(np.float64, copy=False)
        for values in (pair_count, pair_sum)
    )
    age = np.full(pairs.routes, np.inf)
    if len(rows.heard):
        ages = window.age_s if rows.own is None else window.age_s[rows.own]
        age[rows.heard] = np.minimum.reduceat(ages, rows.starts)
    return Observation(
        pair_rps=pair_rps,
        pair_responses=pair_count,
        route_rps=route_rps,
        route_recent_rps=route_rps if recent is rps else pairs.sum_by_route(pair_recent),
        route_latency_s=_ratio(pairs.sum_by_route(pair_sum), route_count),
        route_p95_s=p95_s[: pairs.routes],
        route_cv2=cv2[: pairs.routes],
        route_responses=route_count,
        route_bytes=_ratio(pairs.sum_by_route(by_pair(window.rx_bytes)), route_count),
        route_age_s=age,
        place_latency_s=_ratio(place_sum, place_count),
        place_responses=place_count,
        provider_rps=provider_rps,
        provider_latency_s=_ratio(provider_sum, provider_count),
        provider_p95_s=p95_s[pairs.routes :],
        provider_cv2=cv2[pairs.routes :],
        provider_responses=provider_count,
        provider_errors=errors,
        provider_attempts=attempts,
        provider_active=active,
    )


def _recent_rps(window: PairWindow, rps: Floats) -> Floats:
    """(W,) rate in the newest slot; that of the window where the slot has no report yet."""
    if window.recent_requests is None or window.recent_covered_s is None:
        return rps
    covered = window.recent_covered_s
    return np.where(covered > 0.0, window.recent_requests / np.maximum(covered, 1e-9), rps)


def _rows(problem: Problem, window: PairWindow) -> tuple[Ints, Ints]:
    """Pair row and provider row of each row of the window, -1 where there is none."""
    index = {name: i for i, name in enumerate(problem.providers)}
    provider_map = np.array([index.get(name, -1) for name in window.providers], dtype=np.int64)
    group_map = np.array([problem.group_of_node.get(n, -1) for n in window.nodes], dtype=np.int64)
    if len(window.node_row) == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    provider, group = provider_map[window.provider_row], group_map[window.node_row]
    if len(problem.pair_key) == 0:
        return np.full(len(provider), -1), provider
    key = group * problem.pairs.providers + provider
    at = np.minimum(np.searchsorted(problem.pair_key, key), len(problem.pair_key) - 1)
    found = (provider >= 0) & (group >= 0) & (problem.pair_key[at] == key)
    return np.where(found, problem.pair_at[at], -1), provider


def _ratio(total: Floats, count: Floats) -> Floats:
    """Mean; NaN where nothing was counted, since 0 / 0 is: that takes less than to choose."""
    with np.errstate(invalid="ignore"):
        return total / (count / (count > 0.0))
