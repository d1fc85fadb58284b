"""History as the engine saw it: one record per row of time, with all models and demands."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb

from xds_server.core.estimate import ERROR_MEMORY
from xds_server.history.files import explained
from xds_server.history.schema import PAIR, PROVIDER, ROUTE, Kind
from xds_server.history.store import summed
from xds_server.model.decision_replay import PastRoute, PastStep
from xds_server.model.history import RESOLUTION_S, ProviderSeed, RouteSeed, Seeds
from xds_server.model.ids import GroupKey, Locality, RouteKey

STEPS_MAX: Final = 1500
ROWS_MAX: Final = 200_000
"""Rows of pairs that one question may be about."""
_FINEST_UP_TO_S: Final = {"1s": 900.0, "1m": 86_400.0}
_LABELS: Final = "application, phase, region, zone, sub_zone, template, service, provider"
_Row = Mapping[str, Any]


def recent_steps(
    path: Path, connection: duckdb.DuckDBPyConnection, since_s: float, asked: str
) -> tuple[str, tuple[PastStep, ...]]:
    """Return the steps of the last ``since_s`` before the newest row, and their resolution.

    ``auto`` is the finest with few enough steps, of those that have any. Raises HistoryError;
    ValueError for more than is answered, and where there is nothing.
    """
    newest = newest_s(path, connection)
    if newest is None:
        raise ValueError("history is empty: nothing was decided yet")
    for resolution in _resolutions(asked, since_s):
        steps = read_steps(
            path,
            connection,
            since_s=newest - since_s,
            until_s=newest + RESOLUTION_S[resolution],
            resolution=resolution,
        )
        if steps:
            return resolution, steps
    raise ValueError(f"no rows by {asked} in this time; ask for more, or for another resolution")


def _resolutions(asked: str, span_s: float) -> list[str]:
    """Those to try, best first."""
    names = list(RESOLUTION_S)
    if asked in names:
        return [asked]
    if asked != "auto":
        raise ValueError(f"no resolution {asked!r}; one of {', '.join(('auto', *names))}")
    best = next(
        (i for i, r in enumerate(names) if span_s <= _FINEST_UP_TO_S.get(r, 1e99)), len(names) - 1
    )
    return [*names[best::-1], *names[best + 1 :]]


def newest_s(path: Path, connection: duckdb.DuckDBPyConnection) -> float | None:
    """Return when the newest row of any provider ends, since the epoch; None without any."""
    found: list[float] = []
    for resolution, length_s in RESOLUTION_S.items():
        table = PROVIDER.table(resolution)
        row = _fetch(path, connection, f"SELECT epoch_us(max(at_utc)) / 1e6 AS at_s FROM {table}")
        if row[0]["at_s"] is not None:
            found.append(row[0]["at_s"] + (length_s if resolution != "1s" else 0.0))
    return max(found, default=None)


def read_steps(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    *,
    since_s: float,
    until_s: float,
    resolution: str,
) -> tuple[PastStep, ...]:
    """Return every step from ``since_s`` up to ``until_s`` (since the epoch), oldest first.

    Raises HistoryError; ValueError for more than is answered.
    """
    window = {"since": round(since_s * 1e6), "until": round(until_s * 1e6)}

    def rows(kind: Kind) -> dict[float, list[_Row]]:
        merged = ", ".join(summed(name, kind) for name in _asked(kind))
        found = _fetch(
            path,
            connection,
            f"""SELECT epoch_us(at_utc) / 1e6 AS at_s, {_LABELS}, {merged}
            FROM {kind.table(resolution)} d JOIN series s ON s.id = d.series
            WHERE at_utc >= make_timestamp($since) AND at_utc < make_timestamp($until)
            GROUP BY ALL ORDER BY 1 LIMIT {ROWS_MAX + 1}""",
            window,
        )
        if len(found) > ROWS_MAX:
            raise _too_much(f"more than {ROWS_MAX} rows")
        by_time: dict[float, list[_Row]] = {}
        for row in found:
            by_time.setdefault(row["at_s"], []).append(row)
        return by_time

    routes, pairs, providers = rows(ROUTE), rows(PAIR), rows(PROVIDER)
    times = sorted(routes.keys() & pairs.keys() & providers.keys())
    if len(times) > STEPS_MAX:
        raise _too_much(f"{len(times)} steps, at most {STEPS_MAX} are answered")
    return tuple(_step(at_s, routes[at_s], pairs[at_s], providers[at_s]) for at_s in times)


def _asked(kind: Kind) -> tuple[str, ...]:
    """Columns that are read of a kind: histograms are not."""
    return tuple(name for name in kind.values if name not in kind.hist)


def _step(
    at_s: float, routes: Sequence[_Row], pairs: Sequence[_Row], providers: Sequence[_Row]
) -> PastStep:
    shares: dict[RouteKey, dict[str, float]] = {}
    taken: dict[RouteKey, tuple[float, float]] = {}  # response times in all, and responses
    for row in pairs:
        key = _route(row)
        if row["share"] is not None:
            shares.setdefault(key, {})[row["provider"]] = row["share"]
        sum_s, count = taken.get(key, (0.0, 0.0))
        taken[key] = sum_s + (row["latency_sum_s"] or 0.0), count + (row["responses"] or 0.0)
    seeds = {
        _route(row): RouteSeed(
            age_s=0.0,
            demand_rps=row["demand_rps"],
            calibration_ratio=row["calibration_ratio"],
            budget_pressure=row["budget_pressure"],
            shares=shares.get(_route(row), {}),
        )
        for row in routes
        if row["demand_rps"] is not None
    }
    return PastStep(
        at_s=at_s,
        span_s=max(row["span_s"] for row in routes),
        seeds=Seeds(0.0, dict(_providers(providers)), seeds),
        price_usd={
            row["provider"]: row["price_per_million_usd"] / 1e6
            for row in providers
            if row["price_per_million_usd"] is not None
        },
        capacity_rps={
            row["provider"]: row["capacity_rps"]
            for row in providers
            if row["capacity_rps"] is not None
        },
        routes={
            _route(row): PastRoute(_number(row["usd_per_million"]), _mean(taken, _route(row)))
            for row in routes
            if _route(row) in seeds
        },
    )


def _providers(rows: Sequence[_Row]) -> Iterator[tuple[str, ProviderSeed]]:
    for row in rows:
        if row["service_s"] is None:
            continue  # nobody had measured it
        yield (
            row["provider"],
            ProviderSeed(
                age_s=0.0,
                service_s=row["service_s"],
                service_sigma=row["service_sigma"],
                capacity_factor=row["capacity_factor"],
                tail_ratio=row["tail_ratio"],
                response_cv2=_number(row["response_cv2"]),
                error_ratio=row["error_ratio"],
                attempts=ERROR_MEMORY,  # the ratio is the model's own: it counts as it is
            ),
        )


def _mean(taken: Mapping[RouteKey, tuple[float, float]], key: RouteKey) -> float:
    sum_s, count = taken.get(key, (0.0, 0.0))
    return sum_s / count if count > 0.0 else float("nan")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _route(row: _Row) -> RouteKey:
    where = Locality(row["region"], row["zone"], row["sub_zone"])
    return RouteKey(
        GroupKey(row["application"], row["phase"], where, row["template"]), row["service"]
    )


def _fetch(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    text: str,
    values: Mapping[str, object] | None = None,
) -> list[dict[str, Any]]:
    try:
        cursor = connection.execute(text, dict(values or {}))
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    except duckdb.Error as error:
        raise explained(path, error) from error


def _too_much(what: str) -> ValueError:
    return ValueError(f"{what}: ask for less time or a coarser resolution")
