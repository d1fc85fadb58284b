"""kill -9 at any moment: the file opens, and nothing older than one flush interval is missing."""

import heapq
import itertools
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

KILLS, LANES = 100, 8
LIFE_S = 4.0
"""A process lives up to this long; its first transaction begins after half an interval."""


@dataclass
class Life:
    """What one process noted: which record, and when."""

    killed_s: float
    put: list[tuple[int, float]] = field(default_factory=list)
    begin: list[tuple[int, float]] = field(default_factory=list)
    end: list[tuple[int, float]] = field(default_factory=list)

    def in_time(self) -> bool:
        """Whether transactions began and ended when they should: not on a starved machine."""
        begun = [at_s for _, at_s in self.begin]
        moments = [at_s for _, at_s in self.put[:1]] + begun + [self.killed_s]
        ended = [at_s for _, at_s in self.end] + [self.killed_s] * (len(begun) - len(self.end))
        late_s = max((b - a for a, b in itertools.pairwise(moments)), default=0.0)
        slow_s = max((e - b for b, e in zip(begun, ended, strict=True)), default=0.0)
        return late_s <= 0.6 * FLUSH_INTERVAL_S and slow_s <= 0.4 * FLUSH_INTERVAL_S


@dataclass
class Lane:
    """One file, and the processes that write it one after the other."""

    path: Path
    next_seq: int = 0
    expected: float = 0.0  # requests that are in the file, of one provider
    lost: list[int] = field(default_factory=list)  # records, per kill
    in_time: int = 0  # lives whose thread got its turns
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
        notes.unlink(missing_ok=True)
        life = Life(killed_s)
        for what, seq, at_s in map(str.split, lines):
            getattr(life, what).append((int(seq), float(at_s)))
        self._check(life)

    def _check(self, life: "Life") -> None:
        if not self.path.exists():
            assert life.put == []
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
        assert last >= max((seq for seq, _ in life.end), default=-1)  # what was committed
        if life.in_time():
            safe_s = life.killed_s - FLUSH_INTERVAL_S
            assert [seq for seq, at_s in life.put if at_s <= safe_s and seq > last] == []
            self.in_time += 1
        # What is there is there once, whatever was being rolled up or deleted.
        self.expected += sum(requests(seq) for seq in range(self.next_seq, last + 1))
        assert counted == (self.expected or None,)
        self.lost.append(len([seq for seq, _ in life.put if seq > last]))
        self.next_seq = max([last, *(seq for seq, _ in life.put)]) + 1


@pytest.mark.timeout(180)
def test_killed_a_hundred_times_it_opens_and_lacks_nothing_older_than_a_flush(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.history_child"])
    lanes = [Lane(tmp_path / f"h{i}.duckdb") for i in range(LANES)]
    rng = np.random.default_rng(9)
    kills, due_s = 0, [(0.0, i) for i in range(LANES)]  # when whose process is to be killed
    try:
        while due_s:
            moment_s, i = heapq.heappop(due_s)
            time.sleep(max(0.0, moment_s - time.monotonic()))
            if lanes[i].process is not None:
                lanes[i].kill()
                kills += 1
            if kills + len(due_s) < KILLS:
                lanes[i].start(context)
                heapq.heappush(due_s, (time.monotonic() + rng.uniform(0.0, LIFE_S), i))
    finally:
        for lane in lanes:
            if lane.process is not None and lane.process.is_alive():
                lane.process.kill()
                lane.process.join()
    assert kills == KILLS
    assert sum(lane.in_time for lane in lanes) > KILLS / 5
    assert all(lane.expected > 0.0 for lane in lanes)
    assert sum(sum(lane.lost) for lane in lanes) > 0  # it was in the middle of something
