"""What the engine knew when history was written last, for it to start from."""

import math
from pathlib import Path
from typing import Any, Final

import duckdb

from xds_server.history.files import explained
from xds_server.model.history import ProviderSeed, RouteSeed, Seeds
from xds_server.model.ids import GroupKey, Locality, RouteKey

FRESH_S: Final = 1800.0
"""Older rows are no seed: by then a model's variance has grown to that of not knowing."""
AHEAD_S: Final = 60.0
"""Rows this far in the future are taken to be of now; those further ahead, of a wrong clock."""
ATTEMPTS_OVER_S: Final = 60.0
_SPAN_S: Final = {"1s": 0.0, "1m": 60.0}
"""How long after its ``at_utc`` a row was written, at the latest."""


def read_seeds(
    path: Path, connection: duckdb.DuckDBPyConnection, *, now_s: float, wall_s: float
) -> Seeds:
    """Return the newest rows of every provider and route. Raises HistoryError."""
    try:
        return Seeds(now_s, _providers(connection, wall_s), _routes(connection, wall_s))
    except duckdb.Error as error:
        raise explained(path, error) from error


def _providers(con: duckdb.DuckDBPyConnection, wall_s: float) -> dict[str, ProviderSeed]:
    """By the minute first, then by the tick, which is newer and replaces it."""
    found: dict[str, ProviderSeed] = {}
    for resolution in ("1m", "1s"):
        for row in _newest(
            con,
            f"""SELECT s.provider, epoch_us(d.at_utc) / 1e6 AS at_s, d.*,
                sum(d.requests) OVER (
                    PARTITION BY d.series ORDER BY d.at_utc
                    RANGE BETWEEN INTERVAL {ATTEMPTS_OVER_S} SECONDS PRECEDING AND CURRENT ROW
                ) AS attempts
            FROM provider_{resolution} d JOIN series s ON s.id = d.series""",
            wall_s,
        ):
            if row["service_s"] is None:
                continue  # nobody had measured it
            found[row["provider"]] = ProviderSeed(
                age_s=max(0.0, wall_s - row["at_s"] - _SPAN_S[resolution]),
                service_s=row["service_s"],
                service_sigma=row["service_sigma"],
                capacity_factor=row["capacity_factor"],
                tail_ratio=row["tail_ratio"],
                response_cv2=math.nan if row["response_cv2"] is None else row["response_cv2"],
                error_ratio=row["error_ratio"],
                attempts=row["attempts"],
            )
    return found


def _routes(con: duckdb.DuckDBPyConnection, wall_s: float) -> dict[RouteKey, RouteSeed]:
    shares: dict[RouteKey, tuple[float, dict[str, float]]] = {}
    labels = "s.application, s.phase, s.region, s.zone, s.sub_zone, s.template, s.service"
    for row in _newest(
        con,
        f"""SELECT {labels}, s.provider, epoch_us(d.at_utc) / 1e6 AS at_s, d.*
        FROM pair_1s d JOIN series s ON s.id = d.series""",
        wall_s,
    ):
        key, at_s = _route(row), row["at_s"]
        newest_s, known = shares.get(key, (at_s, {}))
        if at_s > newest_s:
            known = {}
        if at_s >= newest_s:  # those of one tick add up to 1
            shares[key] = at_s, known | {row["provider"]: row["share"]}
    found: dict[RouteKey, RouteSeed] = {}
    for resolution in ("1m", "1s"):
        for row in _newest(
            con,
            f"""SELECT {labels}, epoch_us(d.at_utc) / 1e6 AS at_s, d.*
            FROM route_{resolution} d JOIN series s ON s.id = d.series""",
            wall_s,
        ):
            key = _route(row)
            of_tick_s, known = shares.get(key, (0.0, {}))
            found[key] = RouteSeed(
                age_s=max(0.0, wall_s - row["at_s"] - _SPAN_S[resolution]),
                demand_rps=row["demand_rps"],
                calibration_ratio=row["calibration_ratio"],
                budget_pressure=row["budget_pressure"],
                shares=known if of_tick_s == row["at_s"] else {},
            )
    return found


def _newest(con: duckdb.DuckDBPyConnection, source: str, wall_s: float) -> list[dict[str, Any]]:
    """Return the newest fresh row of each series."""
    cursor = con.execute(
        f"""{source} WHERE d.at_utc BETWEEN make_timestamp(?) AND make_timestamp(?)
        QUALIFY row_number() OVER (PARTITION BY d.series ORDER BY d.at_utc DESC) = 1""",
        [round((wall_s - FRESH_S) * 1e6), round((wall_s + AHEAD_S) * 1e6)],
    )
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _route(row: dict[str, Any]) -> RouteKey:
    where = Locality(row["region"], row["zone"], row["sub_zone"])
    group = GroupKey(row["application"], row["phase"], where, row["template"])
    return RouteKey(group, row["service"])
