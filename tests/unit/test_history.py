"""What history writes, forgets and answers; time is in the tests' hands."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.unit.history_records import NOON_S, frame, record, slot
from xds_server.errors import HistoryError
from xds_server.history import events, writer
from xds_server.history.batch import Batch, Batcher
from xds_server.history.files import connect, explained
from xds_server.history.read import Query, Reader
from xds_server.history.schema import SCHEMA_VERSION
from xds_server.history.seeds import read_seeds
from xds_server.history.series import SeriesIds
from xds_server.history.store import Store
from xds_server.history.writer import History
from xds_server.model.history import RESOLUTION_S, Breach, TickRecord
from xds_server.model.topology import HistorySettings
from xds_server.observability import Metrics

DAY_S = 86400.0
KEEP_S = {"1s": 3600.0, "1m": 7 * DAY_S, "1h": 400 * DAY_S}


class Kept:
    """A file, written one transaction per call."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.path = folder / "h.duckdb"
        keep_s = options.pop("keep_s", KEEP_S)
        self.store = Store(self.path, keep_s, options.pop("max_bytes", 2**30))
        self.batcher = Batcher(SeriesIds(self.store.series()), **options)
        self.now_s = 0.0
        self.dropped: Counter[str] = Counter()

    def write(self, *records: TickRecord, after_s: float = 60.0) -> None:
        for r in records:
            self.batcher.add(r)
        self.now_s += after_s
        batch = self.batcher.take()
        self.dropped += batch.dropped
        self.store.write(batch)
        self.store.maintain(self.now_s)

    def rows(self, text: str, *values: object) -> list[tuple[Any, ...]]:
        with self.store.reader() as con:
            return con.execute(text, list(values)).fetchall()

    def count(self, table: str) -> int:
        return int(self.rows(f"SELECT count(*) FROM {table}")[0][0])


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


# -- what a row is ---------------------------------------------------------------------


def test_a_tick_is_a_row_per_provider_pair_and_route(kept: Kept) -> None:
    of = frame(routes=2, providers=3)
    kept.write(record(of, NOON_S, requests=np.arange(6.0) + 1.0))
    assert kept.rows(
        "SELECT s.provider, requests, responses, in_flight FROM provider_1s"
        " JOIN series s ON s.id = series ORDER BY 1"
    ) == [("p0", 5.0, 5.0, 4.0), ("p1", 7.0, 7.0, 4.0), ("p2", 9.0, 9.0, 4.0)]
    assert kept.rows(
        "SELECT s.application, s.provider, requests, share, h_28 FROM pair_1s"
        " JOIN series s ON s.id = series ORDER BY 1, 2"
    )[3] == ("app-1", "p0", 4.0, pytest.approx(1 / 3), 4)
    assert kept.count("route_1s") == 2


def test_a_node_without_a_group_counts_for_its_provider_alone(kept: Kept) -> None:
    of = frame(providers=2)
    tables = replace(slot(of, np.array([3.0, 4.0])), nodes=("stranger",))
    kept.write(record(of, NOON_S, tables=tables))
    assert kept.rows("SELECT sum(requests) FROM provider_1s") == [(7.0,)]
    assert kept.rows("SELECT sum(requests) FROM pair_1s") == [(0.0,)]


def test_a_row_that_is_not_in_use_is_not_counted(kept: Kept) -> None:
    of = frame(providers=2)
    tables = slot(of, np.array([3.0, 4.0]))
    kept.write(record(of, NOON_S, tables=replace(tables, rows=tables.rows[::-1].copy())))
    assert kept.rows("SELECT s.provider, requests FROM pair_1s JOIN series s ON s.id = series"
                     " ORDER BY 1") == [("p0", 4.0), ("p1", 3.0)]  # fmt: skip


def test_a_mesh_without_nodes_routes_or_providers_is_no_error(kept: Kept) -> None:
    kept.write(record(frame(routes=0, providers=2), NOON_S))
    kept.write(record(frame(routes=0, providers=0), NOON_S + 1))
    assert kept.count("provider_1s") == 2
    assert kept.count("pair_1s") == 0


def test_an_idle_pair_without_a_share_has_no_row(kept: Kept) -> None:
    of = frame(providers=2)
    tables = slot(of, np.array([5.0, 0.0]))
    tables.table[1] = 0.0
    kept.write(record(of, NOON_S, tables=tables, share=np.array([1.0, 0.0])))
    assert kept.count("pair_1s") == 1
    assert kept.count("provider_1s") == 2


def test_what_is_not_known_is_null(kept: Kept) -> None:
    kept.write(record(frame(), NOON_S, service_s=np.nan, utilisation_ratio=np.inf))
    assert (
        kept.rows("SELECT service_s, utilisation_ratio, slo_p95_s FROM provider_1s, route_1s")
        == [(None, None, None)] * 2
    )


# -- roll-up ---------------------------------------------------------------------------


def test_gauges_are_means_by_time_of_what_was_known(kept: Kept) -> None:
    of = frame(providers=1)
    kept.write(
        record(of, NOON_S, span_s=10.0, price_per_million_usd=1.0, capacity_rps=100.0),
        record(of, NOON_S + 10, span_s=30.0, price_per_million_usd=5.0, capacity_rps=np.nan),
        record(of, NOON_S + 60),
    )
    assert kept.rows(
        "SELECT span_s, requests, price_per_million_usd, capacity_rps FROM provider_1m"
    ) == [(40.0, 20.0, 4.0, 100.0)]


def test_a_minute_is_rolled_up_when_it_is_over_and_an_hour_too(kept: Kept) -> None:
    of = frame(providers=1)
    for ten in range(7):
        kept.write(*(record(of, NOON_S + 30 * i) for i in range(20 * ten, 20 * ten + 20)))
    assert kept.count("provider_1m") == 69
    assert kept.rows("SELECT epoch(at_utc), requests FROM provider_1h") == [(NOON_S, 1200.0)]


def test_rows_that_come_late_are_added_once(kept: Kept) -> None:
    """The clock is set back by five minutes."""
    of = frame(providers=1)
    for begun_s in (600, 1200, 1000, 1600, 2200):
        kept.write(*(record(of, NOON_S + begun_s + 60 * i) for i in range(10)))
    (rolled,) = kept.rows("SELECT sum(requests) FROM provider_1m")[0]
    assert rolled == 10.0 * (50 - 1)  # but for the minute that is not over


def test_a_second_store_goes_on_where_the_first_ended(kept: Kept, tmp_path: Path) -> None:
    of = frame(providers=1)
    kept.write(record(of, NOON_S), record(of, NOON_S + 30))
    kept.store.close()
    again = Kept(tmp_path)
    again.write(record(of, NOON_S + 45), record(of, NOON_S + 61))
    assert again.rows("SELECT requests FROM provider_1m") == [(30.0,)]
    assert again.count("series") == 3  # known from before


def test_a_mesh_with_many_pairs_is_written_by_the_minute(tmp_path: Path) -> None:
    kept, of = Kept(tmp_path, raw_rows=5), frame(routes=3, providers=2)
    for ten in range(13):
        kept.write(*(record(of, NOON_S + 10 * ten + i) for i in range(10)), after_s=10.0)
    assert kept.count("pair_1s") == 0
    assert kept.count("provider_1s") == 260  # two are not many
    assert kept.rows("SELECT epoch(at_utc), sum(requests), sum(span_s) FROM pair_1m GROUP BY 1"
                     " ORDER BY 1") == [
        (NOON_S, 3600.0, 360.0), (NOON_S + 60, 3600.0, 360.0)
    ]  # fmt: skip
    kept.batcher.close()
    kept.write()
    assert kept.rows("SELECT sum(requests) FROM pair_1m") == [(7800.0,)]


# -- forgetting ------------------------------------------------------------------------


def test_each_resolution_is_kept_for_its_time(tmp_path: Path) -> None:
    kept = Kept(tmp_path, keep_s={"1s": 600.0, "1m": 7200.0, "1h": 4 * 3600.0})
    of = frame(providers=1)
    for i in range(40):
        moments = (NOON_S + 960 * i + 240 * k for k in range(4))
        kept.write(*(record(of, at_s, move="reweight") for at_s in moments), after_s=960.0)
    last_s = NOON_S + 240 * 159
    kept_s = {"provider_1s": 600.0, "provider_1m": 7200.0, "provider_1h": 14400.0}
    kept_s["decision"] = kept_s["provider_1m"]
    for table, keep_s in kept_s.items():
        (oldest,) = kept.rows(f"SELECT min(epoch(at_utc)) FROM {table}")[0]
        assert last_s - keep_s <= oldest <= last_s - keep_s + 3600.0


def test_a_resolution_that_is_not_named_is_not_kept(tmp_path: Path) -> None:
    kept, of = Kept(tmp_path, keep_s={"1m": DAY_S}), frame(providers=1)
    for ten in range(7):
        kept.write(*(record(of, NOON_S + 600 * ten + 60 * i) for i in range(10)))
    assert kept.count("provider_1s") <= 10
    assert kept.count("provider_1m") == 69
    assert kept.count("provider_1h") == 0


def test_a_file_above_its_bound_loses_its_oldest_rows(tmp_path: Path) -> None:
    kept, of = Kept(tmp_path, max_bytes=6 * 2**20), frame(routes=10, providers=10)
    rng = np.random.default_rng(3)
    sizes = []
    for i in range(40):
        hists = rng.integers(0, 1000, (60, 100, 27)).astype(float)
        kept.write(*(record(of, NOON_S + 60 * i + k, hist=h) for k, h in enumerate(hists)))
        sizes.append(kept.store.size_bytes())
    assert max(sizes[20:]) < 3 * 6 * 2**20
    assert max(sizes[30:]) <= 1.3 * max(sizes[20:30])
    (newest,) = kept.rows("SELECT max(epoch(at_utc)) FROM pair_1s")[0]
    assert newest == NOON_S + 60 * 39 + 59


def test_series_are_bounded(tmp_path: Path) -> None:
    store = Store(tmp_path / "h.duckdb", KEEP_S, 2**30)
    batcher = Batcher(SeriesIds({}, limit=4))
    batcher.add(record(frame(routes=2, providers=2), NOON_S))
    batch = batcher.take()
    assert len(batch.series) == 4
    assert batch.dropped["series"] == 4  # of 2 providers, 4 pairs and 2 routes
    store.write(batch)
    store.close()


# -- events ----------------------------------------------------------------------------


def test_a_decision_is_written_when_it_moves_or_holds_for_another_reason(kept: Kept) -> None:
    of = frame()
    story = ["deadband", "deadband", "", "", "deadband", "no demand", "no demand"]
    kept.write(
        *(
            record(of, NOON_S + i, move="hold" if reason else "reweight", reason=reason)
            for i, reason in enumerate(story)
        )
    )
    found = kept.rows(
        "SELECT epoch(at_utc) - ?, move, hold_reason FROM decision ORDER BY 1", NOON_S
    )
    assert found == [
        (0.0, "hold", "deadband"),
        (2.0, "reweight", ""),
        (3.0, "reweight", ""),
        (4.0, "hold", "deadband"),
        (5.0, "hold", "no demand"),
    ]


def test_the_gain_of_a_move_is_kept_by_its_terms(kept: Kept) -> None:
    of = frame(routes=2)
    kept.write(record(of, NOON_S), record(of, NOON_S + 1, move="reweight"))
    found = kept.rows(
        "SELECT series, term, gain_ms FROM decision_term WHERE epoch(at_utc) = ? ORDER BY 1, 2",
        NOON_S + 1,
    )
    assert [row[1:] for row in found] == [("price", -0.5), ("rent", 2.0)] * 2
    assert kept.count("decision_term") == len(found)  # none of the hold


def test_a_file_of_the_version_before_is_brought_up_to_date_and_read_as_it_is(
    tmp_path: Path,
) -> None:
    kept = Kept(tmp_path)
    kept.write(record(frame(), NOON_S))
    kept.store.close()
    path = kept.store.path
    with duckdb.connect(str(path)) as con:
        con.execute("DROP TABLE decision_term")
        for resolution in RESOLUTION_S:
            con.execute(f"ALTER TABLE provider_{resolution} DROP COLUMN response_cv2")
        con.execute("UPDATE meta SET version = 1")
    with connect(path, read_only=True) as con:
        (only,) = Reader(path, con).decisions(Query("search", 0.0, 2 * NOON_S))[:1]
        assert only["gain_terms"] == {}
        seed = read_seeds(path, con, now_s=0.0, wall_s=NOON_S + 1).providers["p0"]
        assert math.isnan(seed.response_cv2)
    again = Kept(tmp_path)
    again.write(record(frame(), NOON_S + 61, move="reweight"))
    assert again.rows("SELECT DISTINCT response_cv2 FROM provider_1s ORDER BY 1 NULLS LAST") == [
        (0.25,),
        (None,),
    ]
    assert again.rows("SELECT version FROM meta") == [(SCHEMA_VERSION,)]
    assert again.count("decision_term") > 0
    assert again.rows("SELECT min(epoch(at_utc)) FROM decision") == [(NOON_S,)]
    again.store.close()


def test_decisions_of_one_tick_are_bounded_and_the_most_traffic_comes_first(kept: Kept) -> None:
    of = frame(routes=events.DECISIONS_PER_TICK + 50, providers=1)
    r = record(of, NOON_S, move="reweight")
    r.route_gauges[:, 0] = np.arange(len(of.routes))
    kept.write(r)
    assert kept.count("decision") == events.DECISIONS_PER_TICK
    assert kept.dropped["decisions"] == 50
    assert kept.rows("SELECT min(demand_rps) FROM decision") == [(50.0,)]
    assert kept.count("decision_weight") == events.DECISIONS_PER_TICK


def test_a_breach_is_noted_when_it_begins_and_when_it_ends(kept: Kept) -> None:
    of, breach = frame(), Breach("n0", "app-0", "steady", "error_ratio", "", 0.5, 0.0, 0.1)
    for i, now in enumerate([(), (breach,), (replace(breach, value=0.7),), (), ()]):
        kept.write(record(of, NOON_S + i, breaches=now))
    assert kept.rows("SELECT epoch(at_utc) - ?, state, value FROM anomaly ORDER BY 1", NOON_S) == [
        (1.0, "breach", 0.5),
        (3.0, "ok", 0.5),
    ]


# -- files -----------------------------------------------------------------------------


def test_a_file_of_another_schema_is_refused_with_the_remedy(kept: Kept) -> None:
    kept.store.close()
    with duckdb.connect(str(kept.path)) as con:
        con.execute("UPDATE meta SET version = 99")
    with pytest.raises(HistoryError) as caught:
        connect(kept.path)
    assert "version 99" in str(caught.value)
    assert f"mv {kept.path}" in caught.value.remedy


def test_a_database_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.duckdb"
    with duckdb.connect(str(path)) as con:
        con.execute("CREATE TABLE precious (i INTEGER)")
    with pytest.raises(HistoryError, match=r"not a history; give history\.path another name"):
        connect(path)
    with duckdb.connect(str(path)) as con:
        assert con.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("precious",)]


@pytest.mark.parametrize("content", [b"hello", b"\0" * 20000])
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "h.duckdb"
    path.write_bytes(content)
    with pytest.raises(HistoryError) as caught:
        connect(path)
    assert "a new one is begun" in caught.value.remedy
    assert path.read_bytes() == content


@pytest.mark.parametrize("where", ["nowhere/h.duckdb", "."])
def test_a_path_that_cannot_be_written_is_refused_with_the_remedy(
    tmp_path: Path, where: str
) -> None:
    with pytest.raises(HistoryError) as caught:
        connect(tmp_path / where)
    assert "can be written" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ('IO Error: Could not set lock on file "h": Conflicting lock is held', "end that process"),
        ("IO Error: Corrupt database file: computed checksum 1 in block 2", "a new one is begun"),
        ("Failed to commit: Could not write file: No space left on device", "free some space"),
        ('IO Error: Cannot open file "h": Permission denied', "can be written"),
        ("INTERRUPT Error: Interrupted!", "less time"),
    ],
)
def test_each_fault_of_a_file_has_its_remedy(text: str, remedy: str) -> None:
    assert remedy in explained(Path("h"), duckdb.Error(text)).remedy


def test_an_empty_file_and_what_a_killed_process_left_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "h.duckdb"
    path.touch()
    (tmp_path / ".h.duckdb.new").write_bytes(b"half")
    (tmp_path / ".h.duckdb.export-1.csv").write_bytes(b"half")
    (tmp_path / "h.duckdb.wal").write_bytes(b"of a file that was removed")
    connect(path).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.duckdb"]


# -- the thread's work, without the thread ---------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.at_s = 100.0

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return NOON_S + self.at_s

    async def sleep_s(self, duration_s: float) -> None:
        self.at_s += duration_s


class Process:
    """A history, and one pass of its thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.metrics = Clock(), Metrics()
        self.settings = HistorySettings("h.duckdb", KEEP_S)
        self.history = History(self.settings, folder, self.metrics, self.clock)

    def step(self, after_s: float = 2.0) -> None:
        self.clock.at_s += after_s
        self.history._add(self.history._take())
        self.history._flush(self.clock.at_s)
        self.history._reopen(self.clock.at_s)

    def dropped(self, reason: str) -> float:
        return float(self.metrics.history_dropped_total.labels(reason)._value.get())

    @property
    def up(self) -> float:
        return float(self.metrics.history_up._value.get())


def test_of_what_waits_the_oldest_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, of = Process(tmp_path), frame()
    for i in range(writer.QUEUE_RECORDS + 10):
        process.history.put(record(of, NOON_S + i))
    assert process.dropped("queue") == 10
    process.step()
    with process.history.reader() as reader:
        (series, _) = reader.points(Query("search", NOON_S, NOON_S + 1e4, resolution="1s")).series
    assert series.at_s[0] == NOON_S + 10
    assert len(series.at_s) == writer.QUEUE_RECORDS

    each = record(of, NOON_S).slot.nbytes
    monkeypatch.setattr(writer, "QUEUE_BYTES", 3 * each)
    for i in range(5):
        process.history.put(record(of, NOON_S + i))
    assert len(process.history._queue) == 3
    process.history.stop()


def test_a_damaged_file_is_said_once_and_used_again_when_it_was_moved_away(
    tmp_path: Path,
) -> None:
    (tmp_path / "h.duckdb").write_bytes(b"not this")
    with capture_logs() as logs:
        process = Process(tmp_path)
        for _ in range(100):
            process.history.put(record(frame(), NOON_S))
            process.step()
    assert (process.up, process.dropped("off")) == (0.0, 100.0)
    (line,) = [entry for entry in logs if entry["event"] == "history.off"]
    assert line["path"] == str(tmp_path / "h.duckdb")
    assert "mv" in line["remedy"]
    with pytest.raises(HistoryError, match="not a valid DuckDB"), process.history.reader():
        pass

    (tmp_path / "h.duckdb").rename(tmp_path / "h.duckdb.damaged")
    process.step(writer.RETRY_S)
    assert process.up == 1.0
    process.history.put(record(frame(), NOON_S))
    process.step()
    with process.history.reader() as reader:
        assert reader.points(Query("search", NOON_S - 1, NOON_S + 1)).series
    process.history.stop()


def test_a_write_that_fails_closes_the_file_and_it_is_opened_again(tmp_path: Path) -> None:
    process = Process(tmp_path)
    assert process.history._store is not None
    process.history._store._con.execute("DROP TABLE route_1s")  # as if the file were foreign
    process.history.put(record(frame(), NOON_S))
    process.step()
    assert (process.up, process.dropped("failed")) == (0.0, 1.0)
    with connect(tmp_path / "h.duckdb") as con:
        assert con.execute("SELECT count(*) FROM provider_1s").fetchone() == (0,)
    process.history.stop()


def test_history_follows_its_settings(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.history.put(record(frame(), NOON_S))
    process.history.configure(replace(process.settings, path="other.duckdb"))
    process.step()
    process.history.put(record(frame(), NOON_S + 1))
    process.history.configure(None)
    process.step()
    assert (process.up, process.history.state.why) == (0.0, "not configured")
    for name in ("h.duckdb", "other.duckdb"):  # each has what was handed over before the change
        with connect(tmp_path / name) as con:
            assert con.execute("SELECT count(*) FROM provider_1s").fetchone() == (2,)
    process.history.stop()


def test_the_thread_writes_what_it_is_given_and_ends_when_told(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.history.start()
    for i in range(20):
        process.history.put(record(frame(), NOON_S + i))
    process.history.stop()
    with connect(tmp_path / "h.duckdb") as con:
        assert con.execute("SELECT count(*) FROM provider_1s").fetchone() == (40,)


# -- questions -------------------------------------------------------------------------


@pytest.fixture
def reader(kept: Kept) -> Reader:
    of = frame(routes=2, providers=2)
    requests = np.array([1.0, 3.0, 2.0, 2.0])
    for begun in range(0, 200, 50):
        kept.write(*(record(of, NOON_S + begun + i, requests=requests) for i in range(50)))
    return Reader(kept.path, kept.store.reader())


def test_shares_are_of_all_requests_that_the_answer_covers(reader: Reader) -> None:
    answer = reader.points(Query("search", NOON_S, NOON_S + 150, resolution="1m"))
    assert {s.provider: s.total["share"] for s in answer.series} == {"p0": 0.375, "p1": 0.625}
    answer = reader.points(Query("search", NOON_S, NOON_S + 150, application="app-0"))
    assert {s.provider: s.total["share"] for s in answer.series} == {"p0": 0.25, "p1": 0.75}
    assert answer.series[0].total["asked_share"] == 0.5


@pytest.mark.parametrize(
    ("since_s", "resolution"), [(NOON_S - 100, "1s"), (NOON_S - 5000, "1m"), (NOON_S - 1e6, "1m")]
)
def test_auto_takes_a_resolution_that_suits_the_span_and_has_rows(
    reader: Reader, since_s: float, resolution: str
) -> None:
    assert reader.points(Query("search", since_s, NOON_S + 200)).resolution == resolution


def test_a_name_that_history_does_not_have_is_said_with_those_it_has(reader: Reader) -> None:
    query = Query("search", NOON_S, NOON_S + 200)
    for wrong, known in (
        (replace(query, service="serach"), "no service serach in history; known: search"),
        (replace(query, provider="p9"), "known: p0, p1"),
        (replace(query, application="x"), "known: app-0, app-1"),
    ):
        with pytest.raises(KeyError, match=known):
            reader.points(wrong)


def test_too_many_points_and_unknown_resolutions_are_refused(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = Query("search", NOON_S, NOON_S + 200)
    with pytest.raises(ValueError, match="one of auto, 1s, 1m, 1h"):
        reader.points(replace(query, resolution="5s"))
    monkeypatch.setattr("xds_server.history.read.POINTS_MAX", 100)
    with pytest.raises(ValueError, match="coarser resolution"):
        reader.points(replace(query, resolution="1s"))


def test_a_batch_without_records_writes_nothing(kept: Kept) -> None:
    assert kept.store.write(Batch()) == 0
