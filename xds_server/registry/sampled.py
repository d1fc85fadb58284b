"""What the sample of calls says of providers and of nodes, for people."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from xds_server.core.chance import quantile_error_s, ratio_error
from xds_server.core.histogram import quantile_s
from xds_server.model.calls import CALL_BOUNDS_MS, CALL_COLUMNS, FLAGS, CallWindow
from xds_server.model.services import Reading, SampledCalls
from xds_server.model.telemetry import Floats, Ints

ACCESS_LOG: Final = "access log"
_BOUNDS_S: Final = np.array(CALL_BOUNDS_MS) / 1e3

CallRows = Callable[[CallWindow], tuple[tuple[str, ...], Ints]]


def calls_by_provider(window: CallWindow) -> tuple[tuple[str, ...], Ints]:
    """Names of providers, and the one of each pair."""
    return window.providers, window.provider_row


def calls_by_node(window: CallWindow) -> tuple[tuple[str, ...], Ints]:
    """Ids of nodes, and the one of each pair."""
    return window.nodes, window.node_row


def sampled_calls(
    window: CallWindow, rows: CallRows, valid_s: float = math.inf
) -> dict[str, SampledCalls]:
    """Sum pairs by name; without those of which no call was sampled."""
    names, row = rows(window)
    counts = np.zeros((len(names), len(CALL_COLUMNS)))
    np.add.at(counts, row, window.counts)
    hist = np.zeros((len(names), window.latency_hist.shape[1]))
    np.add.at(hist, row, window.latency_hist)
    age_s = np.full(len(names), np.inf)  # as old as the newest call
    np.minimum.at(age_s, row, window.age_s)
    return {
        name: _sampled(window.window_s, counts[i], hist[i], float(age_s[i]), valid_s)
        for i, name in enumerate(names)
        if counts[i, 0] > 0.0
    }


def _sampled(
    window_s: float, counts: Floats, hist: Floats, age_s: float, valid_s: float
) -> SampledCalls:
    column = dict(zip(CALL_COLUMNS, counts.tolist(), strict=True))
    calls, timed = column["calls"], column["timed"]

    def reading(value: float, samples: float, error: float = math.nan) -> Reading:
        if not math.isfinite(value):
            return Reading(None, None, "")
        known = error if math.isfinite(error) else None
        return Reading(value, age_s, ACCESS_LOG, samples, known, stale=age_s > valid_s)

    def ratio(name: str) -> Reading:
        error = float(ratio_error(np.array(column[name]), np.array(calls)))
        return reading(column[name] / calls, calls, error)

    def quantile(q: float) -> Reading:
        error_ms = 1e3 * float(quantile_error_s(hist, _BOUNDS_S, q))
        return reading(1e3 * float(quantile_s(hist, _BOUNDS_S, q)), timed, error_ms)

    return SampledCalls(
        window_s=window_s,
        calls=calls,
        read_ratio=ratio("reads"),
        failed_ratio=ratio("failed"),
        request_bytes=reading(column["request_bytes"] / calls, calls),
        response_bytes=reading(column["response_bytes"] / calls, calls),
        latency_p50_ms=quantile(0.50),
        latency_p99_ms=quantile(0.99),
        latency_mean_ms=reading(1e3 * column["latency_s"] / timed if timed else math.nan, timed),
        duration_mean_ms=reading(1e3 * column["duration_s"] / calls, calls),
        flags={name: int(column[name]) for name in FLAGS if column[name]},
    )
