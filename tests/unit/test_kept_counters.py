"""Where counters are is left to the next process, once."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.unit.telemetry_messages import Message
from xds_server.app.kept_counters import VALID_S, KeptCounters
from xds_server.telemetry.counters import Bases
from xds_server.telemetry.metrics import MetricsDecoder

FILE = "history.duckdb"


@dataclass
class Clock:
    """A process's own monotonic time, and everybody's wall time."""

    at_s: float
    began_s: float

    def now_s(self) -> float:
        return self.at_s - self.began_s

    def wall_s(self) -> float:
        return self.at_s

    async def sleep_s(self, duration_s: float) -> None:
        self.at_s += duration_s


class Process:
    """A control plane's decoder, from its start on."""

    def __init__(self, folder: Path, at_s: float, file: str | None = FILE) -> None:
        self.clock = Clock(at_s, at_s - 5.0)
        self.bases = Bases()
        self.kept = KeptCounters(None if file is None else folder / file, self.bases, self.clock)
        self.kept.load()
        self.decoder = MetricsDecoder(self.bases, frozenset({"a"}))

    def say(self, total: float, at_s: float) -> tuple[float, float] | None:
        """Requests counted and seconds covered; None for a base."""
        self.clock.at_s = at_s
        batch = self.decoder.decode(
            Message(at_ms=round(1e3 * at_s)).counts("a", total=total).body, "n", self.clock.now_s()
        )
        return None if batch is None else (float(batch.counts[0, 0]), batch.covered_s)


def test_what_an_envoy_counts_while_no_process_is_there_is_counted_once(tmp_path: Path) -> None:
    first = Process(tmp_path, 1000.0)
    assert first.say(100, 1000.0) is None
    assert first.say(130, 1001.0) == (30.0, pytest.approx(1.0))
    first.kept.save()
    second = Process(tmp_path, 1010.0)
    assert second.say(190, 1012.0) == (60.0, pytest.approx(11.0))
    killed = Process(tmp_path, 1020.0)  # the second left nothing
    assert killed.say(200, 1021.0) is None
    assert list(tmp_path.iterdir()) == []


def test_an_envoy_that_started_anew_meanwhile_counts_from_zero(tmp_path: Path) -> None:
    first = Process(tmp_path, 1000.0)
    first.say(100, 1000.0)
    first.say(101, 1001.0)
    first.kept.save()
    assert Process(tmp_path, 1010.0).say(7, 1011.0) == (7.0, pytest.approx(1.0))


def test_what_is_too_old_is_not_taken_over(tmp_path: Path) -> None:
    first = Process(tmp_path, 1000.0)
    first.say(100, 1000.0)
    first.kept.save()
    assert Process(tmp_path, 1001.0 + VALID_S).say(190, 1002.0 + VALID_S) is None


def test_without_a_history_of_its_own_a_process_keeps_nothing(tmp_path: Path) -> None:
    first = Process(tmp_path, 1000.0, None)
    first.say(100, 1000.0)
    first.kept.save()
    assert list(tmp_path.iterdir()) == []


ENTRY: dict[str, Any] = {
    "node_id": "n", "age_s": 0.0, "interval_s": None, "sent_ms": 0, "providers": ["a"],
    "values": [[1.0] * 8],
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", "null", '{"at_s": 1000.0, "nodes": []}',
        json.dumps({"at_s": "x", "nodes_1": []}),
        json.dumps({"at_s": 1000.0, "nodes_1": [{}]}),
        json.dumps({"at_s": 1000.0, "nodes_1": [ENTRY | {"values": [[1.0] * 7]}]}),
        json.dumps({"at_s": 1000.0, "nodes_1": [ENTRY | {"values": [[math.nan] * 8]}]}),
        json.dumps({"at_s": 1000.0, "nodes_1": [ENTRY | {"values": [[-1.0] * 8]}]}),
        json.dumps({"at_s": 1000.0, "nodes_1": [ENTRY | {"providers": 3}]}),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_not_used(tmp_path: Path, text: str) -> None:
    (tmp_path / f"{FILE}.counters").write_text(text)
    with structlog.testing.capture_logs() as logs:
        process = Process(tmp_path, 1001.0)
    assert [e["event"] for e in logs] == ["counters.unusable"]
    assert process.say(5, 1002.0) is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    process = Process(tmp_path / "gone", 1000.0)
    with structlog.testing.capture_logs() as logs:
        process.kept.save()
    assert [e["event"] for e in logs] == ["counters.not_saved"]
