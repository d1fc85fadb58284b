"""A process that writes history until it is killed."""

import os
import time
from pathlib import Path

from tests.unit.history_records import NOON_S, frame, record
from xds_server.app.clock import SystemClock
from xds_server.history.writer import History
from xds_server.model.topology import HistorySettings
from xds_server.observability import Metrics

SPAN_S = 7.0
"""Of one record: minutes and hours pass quickly, so that roll-ups are interrupted too."""
KEEP_S = {"1s": 600.0, "1m": 86400.0, "1h": 40 * 86400.0}


def requests(seq: int) -> float:
    """Of each provider in record ``seq``."""
    return float(seq % 97 + 1)


def write_until_killed(path: Path, first: int, flush_interval_s: float) -> None:
    """Hand over records from ``first`` on, and note when each was."""
    notes = os.open(path.with_suffix(".notes"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    history = History(
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
        os.write(notes, f"{seq} {time.monotonic()}\n".encode())
        seq += 1
        time.sleep(0.03)
