"""Records to rows: what one transaction writes, collected as records come."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xds_server.core.tables import Floats, Ints
from xds_server.history.aggregate import Counted, Joins, count
from xds_server.history.events import AnomalyLog, DecisionLog
from xds_server.history.schema import PAIR, PROVIDER, ROUTE, Kind
from xds_server.history.series import SeriesIds, SeriesKey
from xds_server.model.history import RESOLUTION_S, TickRecord

RAW_ROWS: Final = 1000
"""Rows of one kind that are written every tick. A mesh with more providers, pairs or routes
has that kind by the minute and the hour only."""

Columns = dict[str, NDArray[Any]]
"""Of one table, all of one length; without ``batch``, which the store adds."""


@dataclass(slots=True)
class Batch:
    """Rows of one transaction."""

    tables: dict[str, list[Columns]] = field(default_factory=dict)
    series: list[tuple[int, SeriesKey]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    newest_s: float = 0.0  # of its records; 0: it has none

    def add(self, table: str, columns: Columns) -> None:
        """Add rows."""
        if len(columns["at_utc"]):
            self.tables.setdefault(table, []).append(columns)


class _Minute:
    """Rows of one kind that are too many to be written every tick, added up."""

    def __init__(self, kind: Kind, ids: Ints) -> None:
        self.kind, self.ids = kind, ids
        self.sums = np.zeros((len(ids), len(kind.sums)))
        self.weighted = np.zeros((len(ids), len(kind.gauges)))
        self.known_s = np.zeros((len(ids), len(kind.gauges)))
        self.hist = np.zeros((len(ids), len(kind.hist)))
        self.span_s = 0.0

    def add(self, span_s: float, sums: Floats, gauges: Floats, hist: Floats) -> None:
        known = np.isfinite(gauges)
        self.sums += sums
        self.weighted += span_s * np.where(known, gauges, 0.0)
        self.known_s += span_s * known
        self.hist += hist
        self.span_s += span_s

    def gauges(self) -> Floats:
        """Means weighted by time; NaN where nothing was known."""
        return np.where(self.known_s > 0.0, self.weighted / np.maximum(self.known_s, 1e-12), np.nan)


class Batcher:
    """Turns records into the rows of the next transaction. For one thread."""

    def __init__(self, ids: SeriesIds, *, raw_rows: int = RAW_ROWS) -> None:
        self._ids, self._raw_rows = ids, raw_rows
        self._joins = Joins()
        self._minutes: dict[str, tuple[int, _Minute]] = {}
        self._decisions, self._anomalies = DecisionLog(), AnomalyLog()
        self._batch = Batch()

    def add(self, record: TickRecord) -> None:
        """Take one tick in. Copies what it keeps, so the record's tables can be freed."""
        frame, ids = record.frame, self._ids.of(record.frame)
        pair_row, provider_row = self._joins.find(frame, record.slot)
        providers = count(record.slot, provider_row, len(frame.providers))
        pairs = count(record.slot, pair_row, len(frame.pair_route))
        self._rows(PROVIDER, ids[PROVIDER.name], record, providers, record.provider_gauges)
        self._rows(PAIR, ids[PAIR.name], record, pairs, record.pair_gauges)
        nothing = np.zeros((len(frame.routes), 0))
        routes = Counted(record.outcomes, np.zeros(len(frame.routes)), nothing)
        self._rows(ROUTE, ids[ROUTE.name], record, routes, record.route_gauges)
        batch = self._batch
        for table, columns in self._decisions.rows(record, ids, batch.dropped):
            batch.add(table, columns)
        batch.add("anomaly", self._anomalies.rows(record))
        batch.newest_s = max(batch.newest_s, record.at_s)

    def take(self) -> Batch:
        """Return what is to be written, and begin anew."""
        batch, self._batch = self._batch, Batch()
        batch.series = self._ids.fresh
        self._ids.fresh = []
        return batch

    def close(self) -> None:
        """Write the minutes that have begun, as far as they are."""
        for name, (minute, rows) in self._minutes.items():
            self._write_minute(name, minute, rows)
        self._minutes.clear()

    def _rows(
        self, kind: Kind, ids: Ints, record: TickRecord, counted: Counted, gauges: Floats
    ) -> None:
        if "in_flight" in kind.gauges:
            gauges = np.column_stack([counted.in_flight, gauges])
        kept = ids > 0
        self._batch.dropped["series"] += int(len(ids) - kept.sum())
        if len(ids) > self._raw_rows:
            self._add_to_minute(kind, ids, record, counted, gauges)
            return
        self._end_minute(kind)
        busy = kept & _busy(kind, counted.sums, gauges)
        self._batch.add(
            kind.table("1s"),
            _columns(
                kind,
                ids[busy],
                record.at_s,
                record.span_s,
                counted.sums[busy],
                gauges[busy],
                counted.hist[busy],
            ),
        )

    def _add_to_minute(
        self, kind: Kind, ids: Ints, record: TickRecord, counted: Counted, gauges: Floats
    ) -> None:
        minute = int(record.at_s // RESOLUTION_S["1m"])
        begun = self._minutes.get(kind.name)
        if begun is None or begun[0] != minute or begun[1].ids is not ids:
            self._end_minute(kind)
            begun = self._minutes[kind.name] = (minute, _Minute(kind, ids))
        begun[1].add(record.span_s, counted.sums, gauges, counted.hist)

    def _end_minute(self, kind: Kind) -> None:
        begun = self._minutes.pop(kind.name, None)
        if begun is not None:
            self._write_minute(kind.name, *begun)

    def _write_minute(self, name: str, minute: int, rows: _Minute) -> None:
        gauges = rows.gauges()
        busy = (rows.ids > 0) & _busy(rows.kind, rows.sums, gauges)
        self._batch.add(
            f"{name}_1m",
            _columns(
                rows.kind,
                rows.ids[busy],
                minute * RESOLUTION_S["1m"],
                rows.span_s,
                rows.sums[busy],
                gauges[busy],
                rows.hist[busy],
            ),
        )


def _busy(kind: Kind, sums: Floats, gauges: Floats) -> NDArray[np.bool_]:
    """Which rows say anything: a pair without a share and a request does not."""
    if kind is not PAIR:
        return np.ones(len(sums), dtype=bool)
    busy: NDArray[np.bool_] = np.any(sums > 0.0, axis=1) | np.any(gauges > 0.0, axis=1)
    return busy


def _columns(
    kind: Kind, ids: Ints, at_s: float, span_s: float, sums: Floats, gauges: Floats, hist: Floats
) -> Columns:
    out: Columns = {
        "at_utc": np.full(len(ids), round(at_s * 1e6), dtype=np.int64),
        "series": ids,
        "span_s": np.full(len(ids), span_s),
    }
    finite = np.where(np.isfinite(gauges), gauges, np.nan)
    out.update(zip(kind.sums, sums.T, strict=True))
    out.update(zip(kind.gauges, finite.T, strict=True))
    out.update(zip(kind.hist, np.rint(hist).astype(np.uint64).T, strict=True))
    return out
