import json

import numpy as np
import pytest

from bench.lab.__main__ import main
from bench.lab.figures import LEAST_TICKS, figures
from bench.lab.policies import POLICIES
from bench.lab.run import run
from bench.lab.worlds import WORLDS


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_runs_with_every_policy(name):
    world, series = run(name, tuple(POLICIES), size="XS", ticks=8)
    for policy, mine in series.items():
        assert np.all(np.isfinite(mine.cost_ms)), policy
        demand = world.demand_rps.sum(axis=1)
        assert mine.load_rps.sum(axis=1) == pytest.approx(demand), policy
        assert figures(world, 2, series, policy)["cost_ms"] > 0.0


def test_the_clairvoyant_beats_equal_shares_and_the_engine_comes_between():
    _, series = run("degraded_15", ("ours", "clairvoyant", "equal"), size="XS", ticks=60)
    cost = {name: mine.cost_ms[20:].mean() for name, mine in series.items()}
    assert cost["clairvoyant"] < cost["equal"]
    assert cost["clairvoyant"] * 0.97 < cost["ours"] < cost["equal"]


def test_a_seed_decides_everything():
    first, second = (
        run("retry_storm", ("ours", "l3"), size="XS", ticks=20, seed=3)[1] for _ in range(2)
    )
    for name in first:
        assert np.array_equal(first[name].cost_ms, second[name].cost_ms)
        assert np.array_equal(first[name].load_rps, second[name].load_rps)
    other = run("retry_storm", ("l3",), size="XS", ticks=20, seed=4)[1]
    assert not np.array_equal(first["l3"].cost_ms, other["l3"].cost_ms)


def test_a_rival_changes_nothing_for_the_others():
    alone = run("step", ("equal",), size="XS", ticks=12)[1]["equal"]
    among = run("step", ("l3", "ours", "equal"), size="XS", ticks=12)[1]["equal"]
    assert np.array_equal(alone.cost_ms, among.cost_ms)


def test_delay_holds_back_what_was_decided():
    world, series = run("price_spike", ("greedy_cheapest",), size="XS", ticks=20, delay=5)
    load = series["greedy_cheapest"].load_rps
    assert np.array_equal(load[1], load[5])
    assert not np.array_equal(load[5], load[6])
    assert world.event > 6


def test_the_command_writes_figures(tmp_path, capsys):
    out = tmp_path / "out.json"
    main(
        f"--worlds step --policies ours,clairvoyant,clairvoyant_delayed --size XS --ticks 20 "
        f"--seeds 1 --delay 0,2 --jobs 1 --json {out}".split()
    )
    found = json.loads(out.read_text())
    assert [r["delay"] for r in found["runs"]] == [0, 2]
    assert found["runs"][0]["policies"]["clairvoyant"]["figures"]["regret_instant"] == 0.0
    assert "ours" in capsys.readouterr().out


def test_the_least_that_may_be_run_gives_json_for_every_reader(tmp_path):
    out = tmp_path / "out.json"
    main(
        f"--worlds all --policies ours,l3 --size XS --ticks {LEAST_TICKS} --seeds 1 --delay 0,100 "
        f"--jobs=1 --json={out}".split()
    )
    found = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert len(found["runs"]) == 2 * len(WORLDS)
    assert "--jobs" not in found["command"]
    assert "--json" not in found["command"]
    assert found["command"].endswith("--delay 0,100")
