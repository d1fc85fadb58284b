"""A process that writes history until it is killed."""

import os
import time
from pathlib import Path

from tests.unit.history_records import NOON_S, frame, record
from xds_server.app.clock import SystemClock
from xds_server.history.batch import Batch
from xds_server.history.writer import History
from xds_server.model.history import TickRecord
from xds_server.model.topology import HistorySettings
from xds_server.observability import Metrics

SPAN_S = 7.0
"""Of one record: minutes and hours pass quickly, so that roll-ups are interrupted too."""
KEEP_S = {"1s": 600.0, "1m": 86400.0, "1h": 40 * 86400.0}


def requests(seq: int) -> float:
    """Of each provider in record ``seq``."""
    return float(seq % 97 + 1)


class Notes:
    """A file that outlives the process; each line is written by one call."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path.with_suffix(".notes"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, what: str, seq: int) -> None:
        os.write(self._file, f"{what} {seq} {time.monotonic()}\n".encode())


class NotedHistory(History):
    """Notes when a transaction begins and ends, and which record is the last that it has."""

    notes: Notes
    newest = -1

    def _add(self, records: list[TickRecord]) -> None:
        super()._add(records)
        if records:
            self.newest = round((records[-1].at_s - NOON_S) / SPAN_S)

    def _write(self, batch: Batch) -> None:
        self.notes.add("begin", self.newest)
        super()._write(batch)
        self.notes.add("end", self.newest)


def write_until_killed(path: Path, first: int, flush_interval_s: float) -> None:
    """Hand over records from ``first`` on, and note when each was."""
    NotedHistory.notes = notes = Notes(path)
    history = NotedHistory(
        HistorySettings(path.name, KEEP_S),
        path.parent,
        Metrics(),
        SystemClock(),
        flush_interval_s=flush_interval_s,
    )
    assert history.up, history.state.why
    history.start()
    of, seq = frame(), first
    while True:
        history.put(record(of, NOON_S + SPAN_S * seq, requests=requests(seq), span_s=SPAN_S))
        notes.add("put", seq)
        seq += 1
        time.sleep(0.03)
