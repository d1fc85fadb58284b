"""kill -9 at any moment: the file opens, and nothing older than one flush interval is missing."""

import multiprocessing
import time
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest

from tests.unit.history_child import KEEP_S, SPAN_S, requests, write_until_killed
from tests.unit.history_records import NOON_S
from xds_server.history.files import connect
from xds_server.history.store import Store
from xds_server.history.writer import FLUSH_INTERVAL_S

LANES, ROUNDS = 20, 5
LIFE_S = 4.0
"""A process lives up to this long; its first transaction begins after half an interval."""


@dataclass
class Lane:
    """One file, and the processes that write it one after the other."""

    path: Path
    next_seq: int = 0
    expected: float = 0.0  # requests that are in the file, of one provider
    lost: list[int] = field(default_factory=list)  # records, per kill
    process: ForkServerProcess | None = None

    def start(self, context: "multiprocessing.context.ForkServerContext") -> None:
        self.process = context.Process(
            target=write_until_killed, args=(self.path, self.next_seq, FLUSH_INTERVAL_S)
        )
        self.process.start()

    def kill(self) -> None:
        assert self.process is not None
        killed_s = time.monotonic()
        self.process.kill()
        self.process.join()
        notes = self.path.with_suffix(".notes")
        lines = notes.read_text().splitlines() if notes.exists() else []
        handed = [(int(seq), float(at_s)) for seq, at_s in map(str.split, lines)]
        mine = [(seq, at_s) for seq, at_s in handed if seq >= self.next_seq]
        self._check(mine, killed_s - FLUSH_INTERVAL_S)

    def _check(self, handed: list[tuple[int, float]], safe_s: float) -> None:
        if not self.path.exists():
            assert not [seq for seq, at_s in handed if at_s <= safe_s]
            return
        if len(self.lost) % 2:  # as `xds-server history` opens it
            connect(self.path, read_only=True).close()
        store = Store(self.path, KEEP_S, 2**30)
        with store.reader() as con:
            newest = con.execute("SELECT max(epoch_us(at_utc)) FROM provider_1s").fetchone()
            until = con.execute(
                "SELECT batch, until_utc FROM rolled WHERE source = 'provider_1s'"
            ).fetchone()
            assert until is not None
            counted = con.execute(
                """SELECT sum(requests) FROM (
                    SELECT requests, series FROM provider_1m UNION ALL
                    SELECT requests, series FROM provider_1s WHERE batch > $1 OR at_utc >= $2
                ) JOIN series ON id = series WHERE provider = 'p0'""",
                list(until),
            ).fetchone()
        store.close()
        last = self.next_seq - 1
        if newest is not None and newest[0] is not None:
            last = max(last, round((newest[0] / 1e6 - NOON_S) / SPAN_S))
        missing = [seq for seq, at_s in handed if at_s <= safe_s and seq > last]
        assert missing == []
        # What is there is there once, whatever was being rolled up or deleted.
        self.expected += sum(requests(seq) for seq in range(self.next_seq, last + 1))
        assert counted == (self.expected or None,)
        self.lost.append(len([seq for seq, _ in handed if seq > last]))
        self.next_seq = max([last, *(seq for seq, _ in handed)]) + 1


@pytest.mark.timeout(180)
def test_killed_a_hundred_times_it_opens_and_lacks_nothing_older_than_a_flush(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.history_child"])
    lanes = [Lane(tmp_path / f"h{i}.duckdb") for i in range(LANES)]
    rng = np.random.default_rng(9)
    try:
        for _ in range(ROUNDS):
            for lane in lanes:
                lane.start(context)
            begun_s = time.monotonic()
            moments_s = begun_s + np.sort(rng.uniform(0.0, LIFE_S, LANES))
            for i, moment_s in zip(rng.permutation(LANES), moments_s, strict=True):
                time.sleep(max(0.0, moment_s - time.monotonic()))
                lanes[i].kill()
    finally:
        for lane in lanes:
            if lane.process is not None and lane.process.is_alive():
                lane.process.kill()
                lane.process.join()
    # The clock decides who is killed before anything is written: most have written.
    assert sum(lane.expected > 0.0 for lane in lanes) > LANES / 2
    assert sum(sum(lane.lost) for lane in lanes) > 0  # it was in the middle of something
