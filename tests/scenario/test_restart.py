"""A control plane that ends and comes back, with history and without."""

from pathlib import Path

import numpy as np
import pytest

from tests.scenario.test_loop import BASELINE, three
from tests.scenario.world import Plane
from xds_server.engine.problem import build_problem
from xds_server.engine.record import Records
from xds_server.engine.seeding import plant_providers, plant_routes
from xds_server.engine.state import initial_state
from xds_server.history.batch import Batcher
from xds_server.history.seeds import FRESH_S, read_seeds
from xds_server.history.series import SeriesIds
from xds_server.history.store import Store
from xds_server.model.history import SLOT_COLUMNS, Seeds, SlotTables

BEGAN_S = 1_800_000_000.0
TTL_S = 10.0


def newest_slot(plane: Plane) -> SlotTables:
    slot = plane._slots[-1]
    names = tuple(slot)
    table = np.zeros((len(names), len(SLOT_COLUMNS)))
    for i, name in enumerate(names):
        count, errors, latency_sum_s, _ = slot[name]
        table[i, [0, 1, 4, 6, 7]] = [count, errors, latency_sum_s, 1.0, 1.0]
    return SlotTables(
        nodes=("n1",),
        providers=names,
        node_row=np.zeros(len(names), dtype=np.int64),
        provider_row=np.arange(len(names)),
        rows=np.arange(len(names)),
        table=table,
        hist=np.array([slot[name][3] for name in names], dtype=np.float32),
    )


def live(plane: Plane, ticks: int, path: Path) -> None:
    """Run for that many ticks, and write history as the control plane does."""
    store = Store(path, {"1s": 3600.0, "1m": 7 * 86400.0, "1h": 400 * 86400.0}, 2**30)
    batcher, records = Batcher(SeriesIds(store.series())), Records()
    for _ in range(ticks):
        plane.step()
        assert plane.last is not None
        batcher.add(
            records.of(
                plane.mesh,
                plane.state.problem,
                plane.last,
                newest_slot(plane),
                at_s=BEGAN_S + plane.now_s,
                span_s=1.0,
            )
        )
        store.write(batcher.take())
    store.close()


def restarted(before: Plane, path: Path | None, *, down_s: float) -> Plane:
    """Another control plane over the same providers, ``down_s`` later."""
    after = Plane(three(), before.rps, baseline=BASELINE, seed=2)
    after.stations = before.stations  # as they are; mesh.yaml says what they were
    after.now_s = before.now_s + down_s
    if down_s <= TTL_S:
        after.actuator.overlays = before.actuator.overlays[-1:]  # sidecars still have them
    seeds = Seeds()
    if path is not None:
        store = Store(path, {"1s": 3600.0}, 2**30)
        with store.reader() as connection:
            wall_s = BEGAN_S + after.now_s
            seeds = read_seeds(path, connection, now_s=after.now_s, wall_s=wall_s)
        store.close()
    problem, nobody = after.state.problem, build_problem(after.mesh, {}, ())
    after.state = initial_state(problem)
    plant_providers(after.state, seeds)
    plant_routes(after.state, nobody, seeds, now_s=after.now_s, ttl_s=TTL_S)
    return after


def distance(a: dict[str, float], b: dict[str, float]) -> float:
    """How much of the traffic goes elsewhere."""
    return 0.5 * sum(abs(a[n] - b[n]) for n in a)


@pytest.fixture
def learned(tmp_path: Path) -> tuple[Plane, Path]:
    """East has become three times as slow; the engine has found out where its calls belong."""
    plane = Plane(three(), 150.0, baseline=BASELINE)
    plane.stations["east"].service_s *= 3.0
    live(plane, 40, tmp_path / "history.duckdb")
    return plane, tmp_path / "history.duckdb"


def test_with_history_the_first_decisions_after_a_restart_are_those_from_before(
    learned: tuple[Plane, Path],
) -> None:
    before, path = learned
    assert distance(before.shares, {n: w / 100 for n, w in BASELINE.items()}) > 0.25
    after = restarted(before, path, down_s=3.0)
    for _ in range(3):
        after.step()
        assert distance(after.shares, before.shares) < 0.06


def test_without_history_the_first_decisions_are_far_from_those_before(
    learned: tuple[Plane, Path],
) -> None:
    before, _ = learned
    after = restarted(before, None, down_s=3.0)
    after.step()
    assert distance(after.shares, before.shares) > 0.15


def test_models_start_learned_also_when_sidecars_have_lost_their_weights(
    learned: tuple[Plane, Path],
) -> None:
    """After the TTL shares start at the baseline; what is known of providers is kept."""
    before, path = learned
    known = before.state.models.service
    for source, near in ((path, True), (None, False)):
        after = restarted(before, source, down_s=60.0)
        assert distance(after.shares, {n: w / 100 for n, w in BASELINE.items()}) < 1e-9
        off = np.abs(after.state.models.service.mean - known.mean)
        assert bool(off.max() < 0.1) is near
        if near:
            assert (after.state.models.service.variance > known.variance).all()


def test_the_way_back_from_the_baseline_takes_two_ticks_with_history(
    learned: tuple[Plane, Path],
) -> None:
    before, path = learned
    after = restarted(before, path, down_s=60.0)
    assert distance(after.shares, before.shares) > 0.5
    after.step(2)
    assert distance(after.shares, before.shares) < 0.01


def test_the_first_forecast_is_nearer_the_truth_with_history(
    learned: tuple[Plane, Path],
) -> None:
    before, path = learned
    off = {}
    for source in (path, None):
        after = restarted(before, source, down_s=60.0)
        after.silent = True  # all that is known is what was known before
        after.step()
        assert after.last is not None
        forecast = after.last.evaluation.stations.service_s
        truth = [after.stations[name].service_s for name in after.state.problem.providers]
        off[source] = np.abs(np.log(forecast / np.array(truth))).max()
    assert off[path] < 0.2
    assert off[path] < off[None]


def test_uncertainty_grows_with_the_age_of_what_is_known(learned: tuple[Plane, Path]) -> None:
    before, path = learned
    spread = [
        restarted(before, path, down_s=down_s).state.models.service.variance.max()
        for down_s in (1.0, 100.0, 1000.0, FRESH_S - 10.0, FRESH_S + 100.0)
    ]
    assert spread == sorted(spread)
    assert spread[-1] == 1.0  # as if there were none
    assert spread[-2] < 1.0


def test_a_dead_provider_is_still_known_to_be_dead(tmp_path: Path) -> None:
    stations = three()
    stations["west"].error_ratio = 1.0
    before = Plane(stations, 150.0, baseline=BASELINE)
    live(before, 20, tmp_path / "h.duckdb")
    after = restarted(before, tmp_path / "h.duckdb", down_s=5.0)
    assert after.state.models.errors.ratio[2] > 0.5
    after.step(2)
    assert after.shares["west"] < 0.03
