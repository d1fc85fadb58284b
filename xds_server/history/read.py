"""Asks a history file: points over time, decisions, anomalies, exports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np

from xds_server.history.files import explained
from xds_server.history.quantiles import QUANTILES, with_quantiles
from xds_server.history.schema import PAIR, PROVIDER, SERIES_KEYS, Kind
from xds_server.history.steps import recent_steps
from xds_server.history.store import summed
from xds_server.model.decision_replay import PastStep
from xds_server.model.history import RESOLUTION_S

POINTS_MAX: Final = 20_000
"""Points of one answer, all providers together; beyond that it is refused with the remedy."""
EVENTS_MAX: Final = 1000
EXPORT_ROWS_MAX: Final = 5_000_000
_FINEST_UP_TO_S: Final = {"1s": 900.0, "1m": 86_400.0}
"""Spans for which ``auto`` takes these resolutions; beyond them it is by the hour."""
COLUMNS: Final = (
    "rps", "requests", "errors", "error_ratio", "latency_ms", *QUANTILES, "in_flight",
    "utilisation_ratio", "capacity_rps", "price_per_million_usd", "share", "asked_share",
)  # fmt: skip
"""Of a point; None where it is not known. ``share`` is of the service's requests that the
answer covers; ``asked_share`` is what the engine asked for, mean over an application's groups."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for. With an application it is about that application's calls alone."""

    service: str
    since_s: float  # since the epoch
    until_s: float
    provider: str = ""
    application: str = ""
    resolution: str = "auto"


@dataclass(frozen=True, slots=True)
class Series:
    """One provider over time."""

    provider: str
    at_s: list[float]
    columns: Mapping[str, list[float | None]]  # by COLUMNS
    total: Mapping[str, float | None]  # the same, of all the time at once


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found, and at which resolution."""

    service: str
    application: str
    resolution: str
    since_s: float
    until_s: float
    series: list[Series] = field(default_factory=list)


class Reader:
    """Answers over one connection; each call is one moment of the file."""

    def __init__(self, path: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self.path, self._con = path, connection

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """What is read from."""
        return self._con

    def points(self, query: Query) -> Answer:
        """Return each provider's points.

        Raises HistoryError; KeyError for a name that history does not have; ValueError for
        more than is answered.
        """
        self._require_names(query)
        resolution, rows = query.resolution, {}
        for resolution in self._resolutions(query):
            rows = self._points(query, resolution)
            if len(rows["at_s"]):
                break
        totals = self._points(query, resolution, total=True)
        requests = _sum_by(rows["at_s"], rows["requests"])
        all_requests = float(np.nansum(totals["requests"]))
        answer = Answer(
            query.service, query.application, resolution, query.since_s, query.until_s, []
        )
        for i, provider in enumerate(totals["provider"]):
            mine = np.flatnonzero(rows["provider"] == provider)
            points = {name: rows[name][mine] for name in COLUMNS if name != "share"}
            points["share"] = _ratio(points["requests"], requests[mine])
            total = {name: totals[name][i : i + 1] for name in COLUMNS if name != "share"}
            total["share"] = _ratio(total["requests"], np.array([all_requests]))
            answer.series.append(
                Series(
                    str(provider),
                    rows["at_s"][mine].tolist(),
                    {name: _plain(points[name]) for name in COLUMNS},
                    {name: _plain(total[name])[0] for name in COLUMNS},
                )
            )
        return answer

    def decisions(self, query: Query, limit: int = EVENTS_MAX) -> list[dict[str, Any]]:
        """Return the newest decisions about a service, oldest first.

        With the weights of each; and of each move, what its gain adds up from (``GAIN_TERMS``).
        """
        query = replace(query, provider="")  # a decision is about all of them
        self._require_names(query)
        where, values = _where(query, "s")
        labels = "s.application, s.phase, s.region, s.zone, s.sub_zone, s.template, s.service"
        found = self._rows(
            f"""SELECT epoch_us(d.at_utc) / 1e6 AS at_s, {labels}, d.* EXCLUDE (at_utc, series)
            FROM decision d JOIN series s ON s.id = d.series
            WHERE {where} ORDER BY d.at_utc DESC, {labels} LIMIT {min(limit, EVENTS_MAX)}""",
            values,
        )
        if not found:
            return []
        since = {**values, "oldest": round(min(row["at_s"] for row in found) * 1e6)}
        for table, key, value, listed in (
            ("decision_weight", "s.provider", "d.weight", "weights"),
            ("decision_term", "d.term", "d.gain_ms", "gain_terms"),
        ):
            parts = self._rows(
                f"""SELECT d.batch, epoch_us(d.at_utc) / 1e6 AS at_s, {labels},
                    {key} AS part, {value} AS value
                FROM {table} d JOIN series s ON s.id = d.series
                WHERE {where} AND d.at_utc >= make_timestamp($oldest)""",
                since,
            )
            by_decision: dict[tuple[Any, ...], dict[str, Any]] = {}
            for row in parts:
                by_decision.setdefault(_decision(row), {})[row["part"]] = row["value"]
            for row in found:
                row[listed] = by_decision.get(_decision(row), {})
        for row in found:
            del row["batch"]
        return found[::-1]

    def anomalies(self, query: Query, limit: int = EVENTS_MAX) -> list[dict[str, Any]]:
        """Return the newest breaches of bands and their ends, oldest first.

        Those of the service and those about a whole instance.
        """
        found = self._rows(
            f"""SELECT epoch_us(at_utc) / 1e6 AS at_s, * EXCLUDE (at_utc, batch) FROM anomaly
            WHERE at_utc >= make_timestamp($since) AND at_utc < make_timestamp($until)
                AND service IN ($service, '') AND ($application = '' OR application = $application)
            ORDER BY at_utc DESC LIMIT {min(limit, EVENTS_MAX)}""",
            {
                "since": round(query.since_s * 1e6),
                "until": round(query.until_s * 1e6),
                "service": query.service,
                "application": query.application,
            },
        )
        return found[::-1]

    def export(self, query: Query, form: str, output: Path) -> None:
        """Write every column of the rows asked for as ``parquet`` or ``csv``.

        Raises HistoryError, KeyError and ValueError as ``points`` does.
        """
        self._require_names(query)
        kind = _kind(query)
        where, values = _where(query, "s")
        keys = [key for key in SERIES_KEYS if key != "kind" and (kind is PAIR or key in _PROVIDER)]
        merged = ", ".join(summed(name, kind) for name in kind.values)
        source, count = "", 0
        for resolution in self._resolutions(query):
            source = f"""SELECT at_utc, {", ".join(f"s.{key}" for key in keys)}, {merged}
                FROM {kind.table(resolution)} d JOIN series s ON s.id = d.series WHERE {where}
                GROUP BY ALL"""
            count = self._rows(f"SELECT count(*) AS n FROM ({source})", values)[0]["n"]
            if count:
                break
        if count > EXPORT_ROWS_MAX:
            raise _too_many(f"{count} rows", EXPORT_ROWS_MAX)
        options = {"parquet": "FORMAT parquet", "csv": "FORMAT csv, HEADER"}[form]
        target = str(output).replace("'", "''")
        self._rows(
            f"COPY ({with_quantiles(source)} ORDER BY at_utc, {', '.join(keys)})"
            f" TO '{target}' ({options})",
            values,
        )

    def steps(self, since_s: float, resolution: str) -> tuple[str, tuple[PastStep, ...]]:
        """Return the steps of the last ``since_s``, and their resolution; see ``recent_steps``."""
        return recent_steps(self.path, self._con, since_s, resolution)

    # -- inside ----------------------------------------------------------------------

    def _points(self, query: Query, resolution: str, *, total: bool = False) -> dict[str, Any]:
        kind = _kind(query)
        where, values = _where(query, "s")
        at = "at_utc" if not total else "'epoch'::TIMESTAMP AS at_utc"
        merged = ", ".join(summed(name, kind) for name in kind.values)
        gauges = [g for g in kind.gauges if g != "in_flight"]
        over_groups = ", ".join(
            [
                "max(span_s) AS span_s",
                "sum(in_flight) AS in_flight",
                *(f"sum({name}) AS {name}" for name in kind.sums),
                *(f"avg({name}) AS {name}" for name in gauges),
                *(f"sum({name}) AS {name}" for name in kind.hist),
            ]
        )
        query_text = with_quantiles(
            f"""SELECT at_utc, provider, {over_groups} FROM (
                SELECT {at}, s.provider, d.series, {merged}
                FROM {kind.table(resolution)} d JOIN series s ON s.id = d.series
                WHERE {where} GROUP BY ALL
            ) GROUP BY at_utc, provider"""
        )
        model = ["utilisation_ratio", "capacity_rps", "price_per_million_usd"]
        shown = ", ".join(model if kind is PROVIDER else [f"NULL::DOUBLE AS {m}" for m in model])
        asked = "share" if kind is PAIR else "NULL::DOUBLE"
        text = f"""SELECT epoch_us(at_utc) / 1e6 AS at_s, provider, requests, errors,
                requests / span_s AS rps, errors / nullif(requests, 0) AS error_ratio,
                1e3 * latency_sum_s / nullif(responses, 0) AS latency_ms, {", ".join(QUANTILES)},
                in_flight, {shown}, {asked} AS asked_share
            FROM ({query_text}) ORDER BY provider, at_utc LIMIT {POINTS_MAX + 1}"""
        try:
            found = self._con.execute(text, values).fetchnumpy()
        except duckdb.Error as error:
            raise explained(self.path, error) from error
        if len(found["at_s"]) > POINTS_MAX:
            raise _too_many("too many points", POINTS_MAX)
        # A column without any value comes as objects.
        return {
            name: np.ma.filled(np.ma.asarray(column).astype(np.float64), np.nan)
            if name != "provider"
            else np.asarray(column)
            for name, column in found.items()
        }

    def _resolutions(self, query: Query) -> Sequence[str]:
        """Return the resolution asked for; for ``auto`` those to try, best first."""
        if query.resolution in RESOLUTION_S:
            return [query.resolution]
        if query.resolution != "auto":
            known = ", ".join(("auto", *RESOLUTION_S))
            raise ValueError(f"no resolution {query.resolution!r}; one of {known}")
        span_s = query.until_s - query.since_s
        names = list(RESOLUTION_S)
        best = next((i for i, r in enumerate(names) if span_s <= _FINEST_UP_TO_S.get(r, 1e99)), -1)
        return [*names[best::-1], *names[best + 1 :]]

    def _require_names(self, query: Query) -> None:
        """Raise KeyError with what there is, unless every name is known."""
        for key, value in (
            ("service", query.service),
            ("provider", query.provider),
            ("application", query.application),
        ):
            if not value:
                continue
            known = self._rows(
                f"SELECT DISTINCT {key} AS name FROM series WHERE {key} <> '' ORDER BY 1", {}
            )
            names = [str(row["name"]) for row in known]
            if value not in names:
                raise KeyError(f"no {key} {value} in history; known: {', '.join(names) or 'none'}")

    def _rows(self, text: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        try:
            cursor = self._con.execute(text, dict(values))
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except duckdb.Error as error:
            raise explained(self.path, error) from error


_PROVIDER: Final = ("service", "provider")


def _too_many(what: str, limit: int) -> ValueError:
    remedy = "ask for a coarser resolution, less time or one provider"
    return ValueError(f"{what}, at most {limit} are answered; {remedy}")


def _kind(query: Query) -> Kind:
    return PAIR if query.application else PROVIDER


def _where(query: Query, series: str) -> tuple[str, dict[str, object]]:
    conditions = [
        "at_utc >= make_timestamp($since)",
        "at_utc < make_timestamp($until)",
        f"{series}.service = $service",
    ]
    values: dict[str, object] = {
        "since": round(query.since_s * 1e6),
        "until": round(query.until_s * 1e6),
        "service": query.service,
    }
    for key in ("provider", "application"):
        if getattr(query, key):
            conditions.append(f"{series}.{key} = ${key}")
            values[key] = getattr(query, key)
    return " AND ".join(conditions), values


def _decision(row: Mapping[str, Any]) -> tuple[Any, ...]:
    keys = ("batch", "at_s", "application", "phase", "region", "zone", "sub_zone", "template")
    return tuple(row[key] for key in keys)


def _sum_by(at_s: Any, values: Any) -> Any:
    """Sum of all rows of the same time, for each row."""
    _, group = np.unique(at_s, return_inverse=True)
    return np.bincount(group, np.nan_to_num(values))[group] if len(at_s) else values


def _ratio(part: Any, whole: Any) -> Any:
    return np.where(whole > 0.0, part / np.maximum(whole, 1e-12), np.nan)


def _plain(values: Any) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
