"""The programs whose figures stand in bench/RESULTS.md beside the laboratory's."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bench import gap, reverts
from bench.reverts import LatePlane, harmful
from xds_server.core import latency


@pytest.mark.parametrize("load", [0.3, 1.2])
def test_the_oracle_is_better_than_the_solver_and_than_anything_near_it(load):
    rng = np.random.default_rng(7)
    instance = gap.draw(rng, 6, 5, load)
    best = gap.oracle(instance)
    least = instance.total_ms(best)
    assert instance.total_ms(instance.solve()) >= least * (1 - 1e-6)
    for _ in range(20):
        other = np.where(instance.allowed, best * rng.lognormal(0.0, 0.1, len(best)), 0.0)
        other /= instance.pairs.sum_by_route(other)[instance.pairs.route]
        assert instance.total_ms(other) >= least * (1 - 1e-6)


def test_the_oracle_knows_overload():
    instance = gap.draw(np.random.default_rng(7), 6, 5, 1.2)
    rps = instance.pairs.sum_by_provider(instance.flow_rps * gap.oracle(instance))
    assert np.max(rps / instance.stations.capacity_rps) > latency.RHO_LINEAR


def test_a_gap_is_what_a_worse_plan_costs_more():
    instance = gap.draw(np.random.default_rng(3), 6, 5, 0.6)
    assert -1e-6 <= gap.gap_ratio(instance, instance.solve()) < 0.005
    assert gap.gap_ratio(instance, instance.now) > 0.01


def test_warm_instances_go_on_from_where_steps_led():
    rng = np.random.default_rng(3)
    cold = gap.draw(rng, 6, 5, 0.6)
    warm = gap.warmed(rng, cold)
    still = replace(cold, now=warm.now)
    assert still.total_ms(warm.now) < still.total_ms(cold.now)


def test_late_weights_are_in_force_as_late_as_said():
    first = {}
    for delay in (0, 3):
        plane = LatePlane(1, delay)
        start, ticks = plane.shares, 0
        while plane.shares == start:
            plane.step()
            ticks += 1
        first[delay] = ticks
        assert plane.late.at_s[0] == ticks - delay
    assert first[3] > first[0]


def test_harm_is_counted_from_the_tick_in_which_it_is_in_force():
    found = harmful(1, 2)
    assert found.began
    assert found.reverted_after is not None
    assert found.longest >= found.reverted_after


def test_both_programs_print_what_was_asked(capsys):
    gap.main(["--seeds", "1", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["instances"] == len(gap.SIZES) * len(gap.LOADS)
    assert said["cold"]["median_percent"] <= said["cold"]["worst_percent"]
    reverts.main(["--seeds", "1", "--delay", "0", "--json"])
    said = json.loads(capsys.readouterr().out)
    (run,) = said["delays"]
    assert run["harmless_runs"] == len(reverts.HARMLESS)
    assert run["pushes"] > 0
