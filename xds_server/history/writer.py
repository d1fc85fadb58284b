"""Keeps history: takes records from the tick, and writes them on a thread of its own."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import structlog

from xds_server.errors import HistoryError
from xds_server.history.batch import RAW_ROWS, Batch, Batcher
from xds_server.history.files import explained
from xds_server.history.read import Reader
from xds_server.history.seeds import read_seeds
from xds_server.history.series import SeriesIds
from xds_server.history.store import Store
from xds_server.model.history import Seeds, TickRecord
from xds_server.model.topology import HistorySettings
from xds_server.observability import Metrics
from xds_server.ports import Clock

log = structlog.get_logger()

FLUSH_INTERVAL_S: Final = 2.0
"""What was handed over longer ago than this is in the file, also after kill -9. Transactions
begin twice as often, so that there is as long for one to be written; on a machine that is too
busy for that, or a disk that is, more is lost."""
QUERY_S: Final = 20.0
"""A question that takes longer is given up."""
RETRY_S: Final = 30.0
"""How often a file that cannot be used is tried again."""
QUEUE_RECORDS: Final = 256
QUEUE_BYTES: Final = 64 * 2**20
"""Bounds of what waits for the thread. Beyond either, the oldest record is dropped and counted."""


@dataclass(frozen=True, slots=True)
class HistoryState:
    """Whether history is written, and if not, why."""

    up: bool
    why: str


class History:
    """The history of one process. ``put`` is for the tick, ``reader`` for any thread.

    A file that cannot be used is logged once with what to do about it; until it can be,
    records are dropped and counted.
    """

    def __init__(
        self,
        settings: HistorySettings | None,
        folder: Path,
        metrics: Metrics,
        clock: Clock,
        *,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        raw_rows: int = RAW_ROWS,
    ) -> None:
        """Open the file that ``settings`` names, relative to ``folder``; never raises."""
        self._folder, self._metrics, self._clock = folder, metrics, clock
        self._flush_s, self._raw_rows = flush_interval_s / 2.0, raw_rows
        self._wake = threading.Condition()
        self._queue: deque[TickRecord] = deque()
        self._queued_bytes = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._wanted = settings
        self._settings: HistorySettings | None = None  # what ``_store`` was opened for
        self._store: Store | None = None
        self._batcher: Batcher | None = None
        self._why = "not configured"
        self._retry_at_s = 0.0
        self._open()

    # -- any thread ------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether records are taken."""
        return self._store is not None

    @property
    def state(self) -> HistoryState:
        """Whether history is written, and if not, why."""
        return HistoryState(self.up, "" if self.up else self._why)

    def wall_s(self) -> float:
        """Return seconds since the epoch, as records have them."""
        return self._clock.wall_s()

    def put(self, record: TickRecord) -> None:
        """Hand over a tick; returns at once."""
        with self._wake:
            self._queue.append(record)
            self._queued_bytes += record.slot.nbytes
            while len(self._queue) > QUEUE_RECORDS or (
                self._queued_bytes > QUEUE_BYTES and len(self._queue) > 1
            ):
                self._queued_bytes -= self._queue.popleft().slot.nbytes
                self._metrics.history_dropped_total.labels("queue").inc()
            self._wake.notify()

    def missed(self) -> None:
        """Count a tick that was not handed over, since history is down."""
        if self._settings is not None:
            self._metrics.history_dropped_total.labels("off").inc()

    def configure(self, settings: HistorySettings | None) -> None:
        """Write to another file, with other bounds, or no longer."""
        with self._wake:
            self._wanted = settings
            self._wake.notify()

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Read what is committed. Raises HistoryError while there is no file."""
        store = self._store
        if store is None:
            raise HistoryError("history", self._why, "see `history` in docs/operations.md")
        try:
            connection = store.reader()
        except duckdb.Error as error:  # closed a moment ago
            raise HistoryError(str(store.path), str(error), "try again") from error
        late = threading.Timer(QUERY_S, connection.interrupt)
        late.daemon = True
        late.start()
        try:
            yield Reader(store.path, connection)
        finally:
            late.cancel()
            connection.close()

    def seeds(self) -> Seeds:
        """Return what the file says about providers and routes lately; nothing if it is off."""
        if self._store is None:
            return Seeds()
        try:
            with self._store.reader() as connection:
                seeds = read_seeds(
                    self._store.path,
                    connection,
                    now_s=self._clock.now_s(),
                    wall_s=self._clock.wall_s(),
                )
        except HistoryError as error:
            self._fail(error)
            return Seeds()
        known = {"providers": len(seeds.providers), "routes": len(seeds.routes)}
        log.info("history.models_read", **known)
        return seeds

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what was handed over, and close the file."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        self._close()

    # -- the thread ------------------------------------------------------------------

    def _run(self) -> None:
        flush_at_s = self._clock.now_s() + self._flush_s
        while True:
            with self._wake:
                changed = self._wanted != self._settings
                if not self._queue and not self._stopping and not changed:
                    self._wake.wait(max(0.0, flush_at_s - self._clock.now_s()))
                records, stopping = self._take(), self._stopping
            self._add(records)
            now_s = self._clock.now_s()
            if stopping:
                self._flush(now_s, last=True)
                return
            if now_s >= flush_at_s:
                flush_at_s = now_s + self._flush_s
                self._flush(now_s)
            self._reopen(now_s)  # after the flush, so that a change loses nothing

    def _take(self) -> list[TickRecord]:
        records = list(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        return records

    def _add(self, records: list[TickRecord]) -> None:
        if self._batcher is None:
            if self._settings is not None:
                self._metrics.history_dropped_total.labels("off").inc(len(records))
            return
        try:
            for record in records:
                self._batcher.add(record)
        except Exception as error:
            log.exception("history.record_failed")
            self._fail(HistoryError("history", repr(error), "report this"))

    def _flush(self, now_s: float, *, last: bool = False) -> None:
        if self._store is None or self._batcher is None:
            return
        if last:
            self._batcher.close()
        batch = self._batcher.take()
        for reason, count in batch.dropped.items():
            self._metrics.history_dropped_total.labels(reason).inc(count)
        if not batch.tables and not batch.series:
            return
        try:
            self._write(batch)
            self._store.maintain(now_s)
            self._metrics.history_file_bytes.set(self._store.size_bytes())
        except Exception as error:
            self._metrics.history_dropped_total.labels("failed").inc()
            if not isinstance(error, duckdb.Error | OSError):
                log.exception("history.write_failed")  # a bug of ours must not end the thread
            self._fail(explained(self._store.path, error))
            return
        self._metrics.history_flush_seconds.observe(self._clock.now_s() - now_s)

    def _write(self, batch: Batch) -> None:
        if self._store is not None:
            self._metrics.history_rows_total.inc(self._store.write(batch))

    def _reopen(self, now_s: float) -> None:
        with self._wake:
            changed = self._wanted != self._settings
        if changed:
            self._flush(now_s, last=True)
            self._close()
            self._open()
        elif self._settings is not None and self._store is None and now_s >= self._retry_at_s:
            self._open()

    def _open(self) -> None:
        settings = self._settings = self._wanted
        self._metrics.history_up.set(0)
        if settings is None:
            self._why = "not configured"
            return
        path = self._folder / settings.path
        try:
            store = Store(path, settings.keep_s, settings.max_bytes)
            batcher = Batcher(SeriesIds(store.series()), raw_rows=self._raw_rows)
        except HistoryError as error:
            self._fail(error)
            return
        except (duckdb.Error, OSError) as error:
            self._fail(explained(path, error))
            return
        self._batcher, self._store, self._why = batcher, store, ""
        self._metrics.history_up.set(1)
        log.info("history.opened", path=str(path), bytes=store.size_bytes())

    def _fail(self, error: HistoryError) -> None:
        """Go on without history, say so once, and try again later."""
        self._close()
        self._retry_at_s = self._clock.now_s() + RETRY_S
        if self._why != str(error):
            self._why = str(error)
            log.error("history.off", path=error.path, error=error.why, remedy=error.remedy)

    def _close(self) -> None:
        store, self._store, self._batcher = self._store, None, None
        self._metrics.history_up.set(0)
        if store is not None:
            try:
                store.close()
            except duckdb.Error as error:
                log.warning("history.close_failed", path=str(store.path), error=str(error))
