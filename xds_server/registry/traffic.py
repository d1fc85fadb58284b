"""What was measured, summed by provider or by node."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from xds_server.core.histogram import quantile_s
from xds_server.model.services import UNKNOWN, Reading, Traffic
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, Floats, Ints, PairWindow

SIDECARS: Final = "sidecars"
_BOUNDS_S = np.array(LATENCY_BUCKETS_MS) / 1e3

Rows = Callable[[PairWindow], tuple[tuple[str, ...], Ints]]


def by_provider(window: PairWindow) -> tuple[tuple[str, ...], Ints]:
    """Names of providers, and the one of each pair."""
    return window.providers, window.provider_row


def by_node(window: PairWindow) -> tuple[tuple[str, ...], Ints]:
    """Ids of nodes, and the one of each pair."""
    return window.nodes, window.node_row


def traffic(window: PairWindow, long: PairWindow, rows: Rows) -> dict[str, Traffic]:
    """Sum pairs by name.

    ``window`` gives rates, latency and errors; ``long`` gives availability, since few requests
    say little of it.
    """
    names, row = rows(window)
    count = len(names)

    def total(values: Floats) -> Floats:
        return np.bincount(row, values, count).astype(np.float64)

    hist = np.zeros((count, window.latency_hist.shape[1]))
    np.add.at(hist, row, window.latency_hist)
    # As old as the oldest of what was added up.
    age_s = np.full(count, -np.inf)
    np.maximum.at(age_s, row, window.age_s)
    requests = total(window.requests)
    columns = {
        "rps": total(window.requests / np.maximum(window.covered_s, 1e-9)),
        "in_flight": total(window.active),
        "latency_p50_ms": 1e3 * quantile_s(hist, _BOUNDS_S, 0.50),
        "latency_p95_ms": 1e3 * quantile_s(hist, _BOUNDS_S, 0.95),
        "latency_p99_ms": 1e3 * quantile_s(hist, _BOUNDS_S, 0.99),
        "error_ratio": _ratio(total(window.errors), requests),
    }
    available = _availability(long, rows)
    return {
        name: Traffic(
            window.window_s,
            long.window_s,
            availability_ratio=_reading(available.get(name, math.nan), age_s[i]),
            **{key: _reading(values[i], age_s[i]) for key, values in columns.items()},
        )
        for i, name in enumerate(names)
    }


def no_traffic(window: PairWindow, long: PairWindow) -> Traffic:
    """Return the traffic of what no sidecar has reported."""
    return Traffic(window.window_s, long.window_s, *[UNKNOWN] * 7)


def _availability(window: PairWindow, rows: Rows) -> dict[str, float]:
    names, row = rows(window)
    errors = np.bincount(row, window.errors, len(names)).astype(np.float64)
    attempts = np.bincount(row, window.requests, len(names)).astype(np.float64)
    return dict(zip(names, (1.0 - _ratio(errors, attempts)).tolist(), strict=True))


def _ratio(errors: Floats, attempts: Floats) -> Floats:
    """Failures by attempts; NaN without any.

    A failure is counted when it ends, its attempt when it began: a window can hold more.
    """
    ratio = np.minimum(errors / np.maximum(attempts, 1.0), 1.0)
    return np.where((attempts > 0.0) | (errors > 0.0), ratio, np.nan)


def _reading(value: float, age_s: float) -> Reading:
    if not math.isfinite(value):
        return UNKNOWN
    return Reading(float(value), float(age_s) if math.isfinite(age_s) else None, SIDECARS)
