"""Whatever is written in whatever order, roll-ups hold exactly what rows held."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.history_records import BUCKETS, NOON_S, frame, record
from xds_server.core.histogram import quantile_s
from xds_server.history.batch import Batcher
from xds_server.history.quantiles import QUANTILES
from xds_server.history.read import Query, Reader
from xds_server.history.schema import HIST_COLUMNS
from xds_server.history.series import SeriesIds
from xds_server.history.store import Store
from xds_server.model.history import TickRecord
from xds_server.model.telemetry import LATENCY_BUCKETS_MS

FRAME = frame(providers=2)
KEEP_S = {"1s": 1e6, "1m": 1e6, "1h": 1e7}
BOUNDS_S = np.array(LATENCY_BUCKETS_MS) / 1e3

counts = st.lists(st.integers(0, 3000), min_size=BUCKETS, max_size=BUCKETS)
ticks = st.lists(st.tuples(st.integers(0, 3 * 3600), counts, counts), min_size=1, max_size=12)


def written(folder: Path, batches: list[list[TickRecord]], *, raw_rows: int = 1000) -> Store:
    """One transaction per batch, an hour of monotonic time apart."""
    store = Store(folder / "h.duckdb", KEEP_S, 2**30)
    batcher = Batcher(SeriesIds(store.series()), raw_rows=raw_rows)
    for i, records in enumerate(batches):
        for r in records:
            batcher.add(r)
        store.write(batcher.take())
        store.maintain(3600.0 * (i + 1))
    return store


def tick(at_s: float, first: list[int], second: list[int]) -> TickRecord:
    return record(FRAME, at_s, hist=np.array([first, second], dtype=float))


@settings(max_examples=20, deadline=None)
@given(ticks, st.integers(1, 4), st.booleans())
def test_rolled_up_histograms_are_the_histogram_of_all(
    found: list[tuple[int, list[int], list[int]]], per_batch: int, by_minute: bool
) -> None:
    """Whatever the clock does: each row is in the minutes once, and in the hours once."""
    records = [tick(NOON_S + at, a, b) for at, a, b in found]
    # A last tick, days later, so that every minute and hour is over.
    end = tick(NOON_S + 2 * 86400.0, [0] * BUCKETS, [0] * BUCKETS)
    batches = [records[i : i + per_batch] for i in range(0, len(records), per_batch)]
    with TemporaryDirectory() as folder:
        store = written(Path(folder), [*batches, [end], [end]], raw_rows=1 if by_minute else 1000)
        expected = np.array([[a, b] for _, a, b in found]).sum(axis=0)
        sums = ", ".join(f"sum({h})::BIGINT" for h in HIST_COLUMNS)
        with store.reader() as con:
            for resolution in ("1m", "1h"):
                for kind in ("provider", "pair"):
                    rows = con.execute(
                        f"SELECT s.provider, {sums}, sum(requests), sum(span_s)"
                        f" FROM {kind}_{resolution} JOIN series s ON s.id = series"
                        f" WHERE at_utc < make_timestamp(?) GROUP BY 1 ORDER BY 1",
                        [round((NOON_S + 86400.0) * 1e6)],
                    ).fetchall()
                    got = {row[0]: row[1:] for row in rows}
                    for j, provider in enumerate(FRAME.providers):
                        if kind == "pair" and not expected[j].any() and provider not in got:
                            continue
                        assert list(got[provider][:BUCKETS]) == expected[j].tolist()
                        assert got[provider][BUCKETS] == expected[j].sum()
                        assert got[provider][BUCKETS + 1] == pytest.approx(len(found))
        store.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(counts, min_size=1, max_size=5))
def test_quantiles_are_those_that_the_engine_computes(found: list[list[int]]) -> None:
    """SQL and numpy interpolate alike, of merged histograms."""
    nothing = [0] * BUCKETS
    with TemporaryDirectory() as folder:
        records = [tick(NOON_S + i, hist, nothing) for i, hist in enumerate(found)]
        store = written(Path(folder), [records])
        with store.reader() as con:
            query = Query("search", NOON_S, NOON_S + 100.0, resolution="1s")
            answer = Reader(store.path, con).points(query)
        store.close()
    series = next(s for s in answer.series if s.provider == "p0")
    for name, q in QUANTILES.items():
        each = [*found, np.sum(found, axis=0)]
        got = [*series.columns[name], series.total[name]]
        for hist, value in zip(each, got, strict=True):
            right = 1e3 * float(quantile_s(np.array(hist, dtype=float), BOUNDS_S, q))
            if value is None:
                assert np.isnan(right)
            else:
                assert value == pytest.approx(right, rel=1e-9)
