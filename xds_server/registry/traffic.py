"""What was measured, summed by provider or by node."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from xds_server.core.chance import quantile_error_s, rate_error, ratio_error
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


def traffic(
    window: PairWindow, long: PairWindow, rows: Rows, valid_s: float = math.inf
) -> dict[str, Traffic]:
    """Sum pairs by name.

    ``window`` gives rates, latency and errors; ``long`` gives availability, since few requests
    say little of it. Older than ``valid_s`` a value is stale.
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
    covered_s = np.maximum(window.covered_s, 1e-9)
    requests, unknown = total(window.requests), np.full(count, np.nan)
    columns = {
        "rps": _Column(
            total(window.requests / covered_s),
            requests,
            rate_error(total(window.requests / covered_s**2), max(window.window_s, 1e-9)),
        ),
        "in_flight": _Column(total(window.active), unknown, unknown),
        "error_ratio": _ratio(total(window.errors), requests),
    }
    for name, q in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
        columns[f"latency_{name}_ms"] = _Column(
            1e3 * quantile_s(hist, _BOUNDS_S, q),
            hist.sum(axis=1),
            1e3 * quantile_error_s(hist, _BOUNDS_S, q),
        )
    available, long_row = _availability(long, rows), {n: i for i, n in enumerate(rows(long)[0])}
    return {
        name: Traffic(
            window.window_s,
            long.window_s,
            availability_ratio=available.reading(long_row.get(name, -1), age_s[i], valid_s),
            **{key: column.reading(i, age_s[i], valid_s) for key, column in columns.items()},
        )
        for i, name in enumerate(names)
    }


def no_traffic(window: PairWindow, long: PairWindow) -> Traffic:
    """Return the traffic of what no sidecar has reported."""
    return Traffic(window.window_s, long.window_s, *[UNKNOWN] * 7)


@dataclass(frozen=True, slots=True)
class _Column:
    """One kind of value of all names, with what is behind each; NaN where that is not known."""

    values: Floats
    samples: Floats
    errors: Floats

    def reading(self, i: int, age_s: float, valid_s: float) -> Reading:
        """Return the value of that row; unknown where there is none, and for row -1."""
        if i < 0 or not math.isfinite(self.values[i]):
            return UNKNOWN
        return Reading(
            float(self.values[i]),
            _known(age_s),
            SIDECARS,
            _known(self.samples[i]),
            _known(self.errors[i]),
            stale=bool(age_s > valid_s),
        )


def _availability(window: PairWindow, rows: Rows) -> _Column:
    names, row = rows(window)
    errors = np.bincount(row, window.errors, len(names)).astype(np.float64)
    attempts = np.bincount(row, window.requests, len(names)).astype(np.float64)
    failing = _ratio(errors, attempts)
    return _Column(1.0 - failing.values, failing.samples, failing.errors)


def _ratio(errors: Floats, attempts: Floats) -> _Column:
    """Failures by attempts; NaN without any.

    A failure is counted when it ends, its attempt when it began: a window can hold more.
    """
    ratio = np.minimum(errors / np.maximum(attempts, 1.0), 1.0)
    there = (attempts > 0.0) | (errors > 0.0)
    return _Column(np.where(there, ratio, np.nan), attempts, ratio_error(errors, attempts))


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
