"""From what every (node, provider) pair reported to routes and providers."""

import numpy as np

from xds_server.core.histogram import quantile_s
from xds_server.core.tables import Floats, Ints
from xds_server.engine.types import Observation, Problem
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, PairWindow

_BOUNDS_S = np.array(LATENCY_BUCKETS_MS) / 1e3
_P95 = 0.95


def observe(problem: Problem, window: PairWindow) -> Observation:
    """Aggregate a window. Rows of nodes without a group count for their provider alone.

    Rates divide by the time that reports cover, so a lost report lowers the confidence
    of a rate, not the rate.
    """
    pair, provider = _rows(problem, window)
    pairs = problem.pairs
    rps = window.requests / np.maximum(window.covered_s, 1e-9)
    mine, known = pair >= 0, provider >= 0

    def to_pairs(values: Floats) -> Floats:
        return _bincount(pair[mine], values[mine], len(pairs.route))

    def to_providers(values: Floats) -> Floats:
        return _bincount(provider[known], values[known], pairs.providers)

    def histogram(rows: Ints, chosen: np.ndarray, size: int) -> Floats:
        merged = np.zeros((size, window.latency_hist.shape[1]))
        np.add.at(merged, rows[chosen], window.latency_hist[chosen])
        return merged

    pair_hist = histogram(pair, mine, len(pairs.route))
    route_hist = np.zeros((pairs.routes, pair_hist.shape[1]))
    np.add.at(route_hist, pairs.route, pair_hist)
    pair_rps, pair_sum = to_pairs(rps), to_pairs(window.latency_sum_s)
    pair_count, pair_bytes = to_pairs(window.latency_count), to_pairs(window.rx_bytes)
    route_count = pairs.sum_by_route(pair_count)
    provider_count = to_providers(window.latency_count)
    age = np.full(pairs.routes, np.inf)
    np.minimum.at(age, pairs.route[pair[mine]], window.age_s[mine])
    return Observation(
        pair_rps=pair_rps,
        pair_latency_s=_ratio(pair_sum, pair_count),
        pair_p95_s=quantile_s(pair_hist, _BOUNDS_S, _P95),
        pair_responses=pair_count,
        route_rps=pairs.sum_by_route(pair_rps),
        route_latency_s=_ratio(pairs.sum_by_route(pair_sum), route_count),
        route_p95_s=quantile_s(route_hist, _BOUNDS_S, _P95),
        route_responses=route_count,
        route_bytes=_ratio(pairs.sum_by_route(pair_bytes), route_count),
        route_age_s=age,
        provider_rps=to_providers(rps),
        provider_latency_s=_ratio(to_providers(window.latency_sum_s), provider_count),
        provider_p95_s=quantile_s(histogram(provider, known, pairs.providers), _BOUNDS_S, _P95),
        provider_responses=provider_count,
        provider_errors=to_providers(window.errors),
        provider_attempts=to_providers(window.requests),
    )


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


def _bincount(rows: Ints, values: Floats, size: int) -> Floats:
    total: Floats = np.bincount(rows, values, size).astype(np.float64, copy=False)
    return total


def _ratio(total: Floats, count: Floats) -> Floats:
    """Mean, NaN where nothing was counted."""
    return np.where(count > 0.0, total / np.maximum(count, 1e-12), np.nan)
