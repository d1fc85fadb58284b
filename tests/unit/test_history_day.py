"""A simulated day: neither memory nor the file grows with time."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.unit.history_records import NOON_S, frame, record
from xds_server.history.batch import Batcher
from xds_server.history.series import SeriesIds
from xds_server.history.store import Store
from xds_server.model.history import Breach

KEEP_S = {"1s": 3600.0, "1m": 6 * 3600.0, "1h": 10 * 86400.0}
TICK_S = 5.0
PER_WRITE = 144  # twelve minutes
WRITES = 120  # a day


@pytest.mark.timeout(240)
def test_memory_and_file_stay_flat_over_a_day(tmp_path: Path) -> None:
    """Phases come and go, decisions and anomalies are written; ticks are 5 s long."""
    store = Store(tmp_path / "h.duckdb", KEEP_S, 2**30)
    batcher = Batcher(SeriesIds(store.series()))
    frames = [frame(routes=4, providers=5) for _ in range(3)]
    rng = np.random.default_rng(5)
    hists = rng.poisson(3.0, (50, 20, 27)).astype(float)
    process, memory, sizes = psutil.Process(), [], []
    for i in range(WRITES):
        for k in range(PER_WRITE):
            n = i * PER_WRITE + k
            breach = Breach(f"n{n % 7}", "app-0", "steady", "error_ratio", "", 0.5, 0.0, 0.1)
            batcher.add(
                record(
                    frames[i // 5 % 3],
                    NOON_S + TICK_S * n,
                    span_s=TICK_S,
                    hist=hists[n % 50],
                    move="reweight" if n % 20 == 0 else "hold",
                    breaches=(breach,) if n % 40 < 20 else (),
                )
            )
        store.write(batcher.take())
        store.maintain(TICK_S * PER_WRITE * i)
        memory.append(process.memory_info().rss)
        sizes.append(store.size_bytes())
    with store.reader() as con:
        assert con.execute("SELECT count(*) FROM series").fetchone() == (5 + 20 + 4,)
        (hours,) = con.execute("SELECT count(*) FROM provider_1h").fetchall()
    assert hours[0] >= 5 * 23
    store.close()
    # Everything but hours is in a steady state after a third of the day.
    third, last = slice(WRITES // 3, WRITES // 2), slice(-WRITES // 6, None)
    assert max(memory[last]) < max(memory[third]) + 16 * 2**20
    assert max(sizes[last]) < 1.15 * max(sizes[third])
