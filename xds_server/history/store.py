"""Writes batches, rolls them up, forgets what is too old."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import numpy as np

from xds_server.history.batch import Batch, Columns
from xds_server.history.files import connect
from xds_server.history.schema import (
    COARSER,
    EVENTS,
    HIST_COLUMNS,
    KINDS,
    SERIES_KEYS,
    Kind,
    columns,
)
from xds_server.history.series import SERIES_MAX, SeriesKey
from xds_server.model.history import RESOLUTION_S

PRUNE_EVERY_S: Final = 60.0
LEAST_KEPT_S: Final = {"1s": 120.0, "1m": 7200.0, "1h": 0.0}
"""Kept of each resolution in any case: the next is made of it."""
CUT_RATIO: Final = 0.1
"""Part of the largest table that goes, oldest first, while the file is above its bound."""


@dataclass(slots=True)
class _Rolled:
    """Rows of a table that the coarser one has: of batches up to one, and before a time."""

    batch: int
    until_us: int
    at_s: float  # when, on the monotonic clock


class Store:
    """One open history file. For one thread, but for ``reader``."""

    def __init__(self, path: Path, keep_s: Mapping[str, float], max_bytes: int) -> None:
        """Open or make the file. Raises HistoryError."""
        self.path, self._max_bytes = path, max_bytes
        self._keep_s = {r: max(keep_s.get(r, 0.0), LEAST_KEPT_S[r]) for r in RESOLUTION_S}
        self._keeps_hours = "1h" in keep_s
        self._con = connect(path)
        self._pruned_s = -PRUNE_EVERY_S
        self._late = False
        self._newest_s = 0.0  # newest record that was written, since the epoch
        self._rolled = {
            source: _Rolled(batch, until_us, -np.inf)
            for source, batch, until_us in self._con.execute(
                "SELECT source, batch, epoch_us(until_utc) FROM rolled"
            ).fetchall()
        }
        self._batch = self._last_batch()
        self._forget_series()

    def series(self) -> dict[SeriesKey, int]:
        """Every series that the file knows."""
        names = ", ".join(SERIES_KEYS)
        rows = self._con.execute(f"SELECT {names}, id FROM series").fetchall()
        return {tuple(row[:-1]): row[-1] for row in rows}

    def reader(self) -> duckdb.DuckDBPyConnection:
        """Return a connection for another thread; it sees what is committed."""
        return self._con.cursor()

    def write(self, batch: Batch) -> int:
        """Commit a batch; return the rows written.

        Raises duckdb.Error; then nothing of it is in the file.
        """
        self._batch += 1
        self._newest_s = max(self._newest_s, batch.newest_s)
        with self._transaction():
            return self._insert(batch)

    def maintain(self, now_s: float) -> None:
        """Roll up what is complete, and once a minute forget what is too old.

        Apart from ``write``, so that what is new does not wait for it. Raises duckdb.Error;
        then none of it was done, and the next time does it.
        """
        if not self._newest_s:
            return
        before = {name: (r.batch, r.until_us, r.at_s) for name, r in self._rolled.items()}
        prune = now_s - self._pruned_s >= PRUNE_EVERY_S
        try:
            with self._transaction():
                self._roll_up(round(self._newest_s * 1e6), now_s)
                if prune:
                    self._prune(self._newest_s)
        except BaseException:
            self._rolled = {name: _Rolled(*values) for name, values in before.items()}
            raise
        if prune:
            self._pruned_s = now_s
            self._con.execute("CHECKPOINT")  # space of rows that went is used again after it

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._con.begin()
        try:
            yield
            self._con.commit()
        except BaseException:
            with suppress(duckdb.Error):  # what began it says more
                self._con.rollback()
            raise

    def size_bytes(self) -> int:
        """Size of the file and of its log."""
        log = self.path.with_name(self.path.name + ".wal")
        return sum(f.stat().st_size for f in (self.path, log) if f.exists())

    def close(self) -> None:
        """Write the log into the file and close it."""
        self._con.close()

    # -- insert ----------------------------------------------------------------------

    def _insert(self, batch: Batch) -> int:
        if batch.series:
            named: Columns = {"id": np.array([i for i, _ in batch.series], dtype=np.int64)}
            for k, key in enumerate(SERIES_KEYS):
                named[key] = np.array([values[k] for _, values in batch.series], dtype=object)
            self._insert_rows("series", ("id", *SERIES_KEYS), named)
        rows = 0
        for table, parts in batch.tables.items():
            names = [name for name in columns(table) if name != "batch"]
            merged = {name: np.concatenate([part[name] for part in parts]) for name in names}
            rows += len(merged["at_utc"])
            until_us = self._rolled[table].until_us if table in self._rolled else 0
            self._late |= bool(merged["at_utc"].min() < until_us)
            self._insert_rows(table, columns(table), merged)
        return rows

    def _insert_rows(self, table: str, names: tuple[str, ...], rows: Columns) -> None:
        picked = {"at_utc": "make_timestamp(at_utc)", "batch": str(self._batch)}
        listed = ", ".join(
            picked.get(name)
            or (f"nullif({name}, 'NaN'::DOUBLE)" if rows[name].dtype == np.float64 else name)
            for name in names
        )
        self._con.register("incoming", rows)
        try:
            self._con.execute(
                f"INSERT INTO {table} ({', '.join(names)}) SELECT {listed} FROM incoming"
            )
        finally:
            self._con.unregister("incoming")

    # -- roll up ---------------------------------------------------------------------

    def _roll_up(self, newest_us: int, now_s: float) -> None:
        """Bring coarser tables up to date: each row is added to them exactly once."""
        for kind in KINDS:
            for finer, coarser in COARSER.items():
                if coarser == "1h" and not self._keeps_hours:
                    continue
                step_us = round(RESOLUTION_S[coarser] * 1e6)
                rolled = self._rolled[kind.table(finer)]
                until_us = max(newest_us // step_us * step_us, rolled.until_us)
                # Where the clock went back, rows come for times that are done: not every
                # batch of them makes a row of its own.
                late = self._late and now_s - rolled.at_s >= RESOLUTION_S[coarser]
                if until_us > rolled.until_us or late:
                    self._add(kind, finer, coarser, rolled, until_us)
                    rolled.batch, rolled.until_us, rolled.at_s = self._batch, until_us, now_s
                    self._con.execute(
                        "UPDATE rolled SET batch = ?, until_utc = make_timestamp(?)"
                        " WHERE source = ?",
                        [self._batch, until_us, kind.table(finer)],
                    )

    def _add(self, kind: Kind, finer: str, coarser: str, rolled: _Rolled, until_us: int) -> None:
        part = {"1m": "minute", "1h": "hour"}[coarser]
        listed = ", ".join(summed(name, kind) for name in kind.values)
        source = kind.table(finer)
        self._con.execute(
            f"""INSERT INTO {kind.table(coarser)}
                (at_utc, batch, series, {", ".join(kind.values)})
            SELECT date_trunc('{part}', at_utc), {self._batch}, series, {listed}
            FROM (
                SELECT * FROM {source}
                WHERE batch > $batch AND at_utc < make_timestamp($until)
                UNION ALL
                SELECT * FROM {source}
                WHERE batch <= $batch AND at_utc >= make_timestamp($since)
                    AND at_utc < make_timestamp($until)
            ) GROUP BY 1, series""",
            {"batch": rolled.batch, "since": rolled.until_us, "until": until_us},
        )

    # -- forget ----------------------------------------------------------------------

    def _prune(self, newest_s: float) -> None:
        for kind in KINDS:
            for resolution, keep_s in self._keep_s.items():
                oldest_us = round((newest_s - keep_s) * 1e6)
                table = kind.table(resolution)
                if table in self._rolled and (resolution == "1s" or self._keeps_hours):
                    oldest_us = min(oldest_us, self._rolled[table].until_us)
                self._delete_before(table, oldest_us)
        for table in EVENTS:
            self._delete_before(table, round((newest_s - self._keep_s["1m"]) * 1e6))
        self._cut()

    def _delete_before(self, table: str, oldest_us: int) -> None:
        self._con.execute(
            f"DELETE FROM {table} WHERE at_utc < make_timestamp(?)", [max(oldest_us, 0)]
        )

    def _cut(self) -> None:
        """Above the bound of the file, take from the largest table, whatever is to be kept."""
        found = self._con.execute(
            "SELECT used_blocks * block_size FROM pragma_database_size()"
        ).fetchone()
        if found is None or found[0] <= self._max_bytes:
            return
        largest = self._con.execute(
            "SELECT table_name FROM duckdb_tables() WHERE table_name NOT IN"
            " ('meta', 'series', 'rolled') ORDER BY estimated_size * column_count DESC LIMIT 1"
        ).fetchone()
        if largest is not None:
            self._con.execute(
                f"DELETE FROM {largest[0]} WHERE epoch_us(at_utc) <="
                f" (SELECT approx_quantile(epoch_us(at_utc), {CUT_RATIO}) FROM {largest[0]})"
            )

    def _forget_series(self) -> None:
        """Forget series without rows, when they have become many."""
        count = self._con.execute("SELECT count(*) FROM series").fetchone()
        if count is not None and count[0] > SERIES_MAX // 2:
            tables = [k.table(r) for k in KINDS for r in RESOLUTION_S] + [
                "decision",
                "decision_weight",
            ]
            used = " UNION ".join(f"SELECT series FROM {table}" for table in tables)
            self._con.execute(f"DELETE FROM series WHERE id NOT IN ({used})")

    def _last_batch(self) -> int:
        tables = [*(k.table(r) for k in KINDS for r in RESOLUTION_S), *EVENTS]
        newest = " UNION ALL ".join(f"SELECT max(batch) AS batch FROM {t}" for t in tables)
        row = self._con.execute(f"SELECT coalesce(max(batch), 0) FROM ({newest})").fetchone()
        rolled = max((r.batch for r in self._rolled.values()), default=0)
        return max(int(row[0]) if row else 0, rolled)


def summed(name: str, kind: Kind) -> str:
    """SQL that merges a column of several rows into one."""
    if name in HIST_COLUMNS:
        return f"sum({name})::UBIGINT AS {name}"
    if name in kind.gauges:
        return (
            f"sum({name} * span_s) / nullif(sum(span_s) FILTER ({name} IS NOT NULL), 0) AS {name}"
        )
    return f"sum({name}) AS {name}"
