"""SQL for quantiles of histogram columns; the same interpolation as ``core.histogram``."""

from xds_server.history.schema import HIST_COLUMNS
from xds_server.model.telemetry import LATENCY_BUCKETS_MS

QUANTILES = {"latency_p50_ms": 0.50, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}


def with_quantiles(source: str) -> str:
    """Return a query for the columns of ``source`` and the quantiles, ms.

    NULL where nothing was counted; a quantile above the last bound is given as that bound.
    """
    below = ", ".join(
        f"({' + '.join(f'{h}::DOUBLE' for h in HIST_COLUMNS[: i + 1])}) AS c_{i}"
        for i in range(len(HIST_COLUMNS))
    )
    computed = ", ".join(f"{_case(q)} AS {name}" for name, q in QUANTILES.items())
    helpers = ", ".join(f"c_{i}" for i in range(len(HIST_COLUMNS)))
    return (
        f"SELECT * EXCLUDE ({helpers}), {computed} FROM (SELECT *, {below} FROM ({source})) counted"
    )


def _case(q: float) -> str:
    """Interpolate log-linearly inside of the first bucket that reaches ``q`` of all."""
    total = f"c_{len(LATENCY_BUCKETS_MS)}"
    parts = []
    for i, upper in enumerate(LATENCY_BUCKETS_MS):
        lower = LATENCY_BUCKETS_MS[i - 1] if i else upper / 2.0
        before = f"c_{i - 1}" if i else "0"
        part = f"({q} * {total} - {before}) / {HIST_COLUMNS[i]}"
        parts.append(f"WHEN c_{i} >= {q} * {total} THEN {lower} * pow({upper / lower!r}, {part})")
    above = float(LATENCY_BUCKETS_MS[-1])
    return f"CASE WHEN {total} = 0 THEN NULL {' '.join(parts)} ELSE {above} END"
