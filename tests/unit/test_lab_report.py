import copy
import json
import math
import shlex

import pytest

from bench.lab.__main__ import main
from bench.lab.found import Found, by_size
from bench.lab.outside import detector_rows, gap_rows, revert_rows, slate_rows, tick_rows
from bench.lab.report import main as report
from bench.lab.report import results
from bench.lab.table import HARM_POSSIBLE, saved_percent, slo_seconds, targets
from bench.lab.targets import TARGETS, all_targets, remarks
from bench.lab.worlds import WORLDS
from bench.output import dumped

RUN = (
    "--worlds step,liar --policies ours,clairvoyant,clairvoyant_delayed,equal,l3,least_request "
    "--size XS --ticks 30 --seeds 1 --jobs 1"
)
TICK = {
    "size": "L",
    "p50_ms": 44.0,
    "p99_ms": 70.0,
    "floor_ratio": 8.0,
    "curve": {"1000": 1.0, "10000": 9.0, "100000": 44.0, "1000000": 550.0},
}
GAP = {
    "command": "python -m bench.gap",
    "instances": 4,
    "variables_most": 2000,
    "loads": [0.3, 1.2],
    "warm": {"worst_percent": 0.4, "median_percent": 0.01},
    "cold": {"worst_percent": 0.9, "median_percent": 0.01},
}
REVERTS = {
    "command": "python -m bench.reverts",
    "delays": [
        {
            "delay": 2,
            "harmed": 3,
            "reverted_within_3": 2,
            "reverted_after": [1, 11, 2],
            "longest": [4, 4, 5],
            "false_reverts": 1,
            "false_by_world": {"get_cheap": 1},
            "pushes": 100,
            "precision": 0.75,
            "recall": 1.0,
        }
    ],
}
SLATE = {
    "command": "python -m bench.slate",
    "mean_error_after_20_rps": 2.9,
    "mean_error_rps": 2.0,
    "mean_error_of_a_seed_rps": 4.0,
    "ticks": [1, 9, 20],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    file = tmp_path_factory.mktemp("lab") / "out.json"
    main([*RUN.split(), "--json", str(file)])
    return json.loads(file.read_text())


@pytest.fixture
def write(tmp_path):
    def to_file(what, name="lab.json"):
        file = tmp_path / name
        file.write_text(dumped(what))
        return file

    return to_file


def with_figures(lab, policy, **figures):
    """The same runs, in which that policy came to these figures."""
    changed = copy.deepcopy(lab)
    for run in changed["runs"]:
        run["policies"][policy]["figures"] |= figures
    return changed


def row(found, key):
    (only,) = [r for r in targets(found) if r.key == key]
    return only


def programs(write):
    said = {"tick": TICK, "gap": GAP, "reverts": REVERTS, "slate": SLATE}
    files = {name: write(what, f"{name}.json") for name, what in said.items()}
    return [word for name, file in files.items() for word in (f"--{name}", str(file))]


def test_the_report_says_what_the_numbers_say_and_nothing_else(lab, write, tmp_path):
    out = tmp_path / "RESULTS.md"
    out.write_text("# Results\n\nOf last year.\n")
    to = ["--out", str(out), "--plots", str(tmp_path / "results")]
    report([str(write(lab)), *programs(write), *to])
    text = out.read_text()
    assert "Of last year" not in text
    assert "| step |" in text
    assert "](results/step.png)" in text
    assert "| 1 | decision tick at L" in text
    assert "p50 44 ms, p99 70 ms; 8.0 x the floor | hit | `python -m bench.tick --size L` |" in text
    assert "| no detectors yet | **missed** | - |" in text
    assert (tmp_path / "results" / "liar.png").stat().st_size < 80_000
    report([str(write(lab)), *programs(write), *to])
    assert out.read_text() == text


def test_every_target_has_a_row_also_where_nobody_measured_it(lab, write):
    said = results({"XS": Found([write(lab)])}, {})
    lines = [line for line in said if line.count(" | ") > 2]
    rows = {line.split(" | ")[1]: line for line in lines}
    for _, words in TARGETS.values():
        assert any(name.endswith(words) for name in rows), words
    assert "not in this run | not measured" in rows["a tick over 1 M pairs <= 600 ms"]


def test_each_row_has_the_command_that_measured_it(lab, write):
    for measured in targets(Found([write(lab)])):
        words = shlex.split(measured.command)
        assert words[:3] == ["python", "-m", "bench.lab"]
        assert "--jobs" not in words
        assert "--json" not in words
        assert "step,liar" in words


def test_a_target_is_hit_or_missed_by_its_number(lab, write):
    verdicts = {}
    for regret in (0.02, 0.30):
        changed = with_figures(lab, "ours", regret_instant=regret)
        rows = {r.target: r.hit for r in targets(Found([write(changed)]))}
        verdicts[regret] = rows["step, D = 2: regret to the instant clairvoyant <= 8 %"]
    assert verdicts == {0.02: True, 0.30: False}


@pytest.mark.parametrize(("mine", "hit"), [(0.24, True), (0.26, False)])
def test_slo_minutes_are_held_against_the_policy_with_the_lowest_objective(lab, write, mine, hit):
    changed = with_figures(lab, "ours", slo_minutes=mine)
    changed = with_figures(changed, "l3", slo_minutes=1.0, cost_ms=40.0)
    changed = with_figures(changed, "least_request", slo_minutes=0.0, cost_ms=60.0)
    changed = with_figures(changed, "equal", slo_minutes=5.0, cost_ms=70.0)
    found = Found([write(changed)])
    assert row(found, "6-slo").hit is hit
    assert "whatever it costs: in 0 of 2" in row(found, "6-slo").measured
    assert slo_seconds(found, 2, "step") == pytest.approx(
        (60.0 * mine, "l3", 60.0, "least_request", 0.0)
    )


def test_dollars_are_told_beside_what_the_clairvoyant_saves(lab, write):
    changed = with_figures(lab, "ours", usd_per_million=0.8, p99_ms=100.0)
    changed = with_figures(changed, "clairvoyant", usd_per_million=0.79)
    changed = with_figures(changed, "l3", usd_per_million=1.0, p99_ms=105.0)
    changed = with_figures(changed, "least_request", usd_per_million=0.9, p99_ms=120.0)
    found = Found([write(changed)])
    assert saved_percent(found, 2, "step") == pytest.approx((20.0, 21.0))
    assert "step (20 of 21 %)" in row(found, "4-dollars").measured
    assert row(found, "4-dollars").hit is False
    cheaper = with_figures(changed, "ours", usd_per_million=0.74)
    assert row(Found([write(cheaper)]), "4-dollars").hit is True


def test_flips_are_told_beside_those_of_the_delayed_clairvoyant(lab, write):
    changed = with_figures(lab, "ours", flips_per_route_hour_event=13.0)
    changed = with_figures(changed, "clairvoyant_delayed", flips_per_route_hour_event=11.0)
    missed = row(Found([write(changed)]), "5-flips-event")
    assert missed.hit is False
    assert "The delayed clairvoyant: median 11.0, most 11.0; held in 2" in missed.measured
    calm = with_figures(changed, "ours", flips_per_route_hour_event=12.0)
    assert row(Found([write(calm)]), "5-flips-event").hit is True


def test_reverts_are_false_where_no_move_is_harmful(lab, write):
    changed = with_figures(lab, "ours", reverts=2.0, pushes=100.0)
    found = row(Found([write(changed)]), "8-false")
    assert found.hit is False
    assert found.measured.startswith("2 in 100 pushes")  # of step alone: a liar does harm
    fewer = with_figures(lab, "ours", reverts=1.0, pushes=100.0)
    assert row(Found([write(fewer)]), "8-false").hit is True
    assert set(HARM_POSSIBLE) < set(WORLDS)


@pytest.mark.parametrize(
    ("figures", "hit"),
    [
        ({"terms_off_most": 1e-9, "unexplained": 0.0}, True),
        ({"terms_off_most": 0.02, "unexplained": 0.0}, False),
        ({"terms_off_most": 1e-9, "unexplained": 1.0}, False),
    ],
)
def test_pushes_without_terms_of_their_own_are_not_explained(lab, write, figures, hit):
    assert row(Found([write(with_figures(lab, "ours", **figures))]), "9-explained").hit is hit


def test_a_tick_is_judged_at_size_l_and_growth_by_its_steepest_part():
    hit = {r.key: r.hit for r in tick_rows(TICK)}
    assert hit == {"1-tick": True, "1-growth": True, "1-million": True}
    steeper = TICK | {"curve": TICK["curve"] | {"1000000": 590.0}}
    assert {r.key: r.hit for r in tick_rows(steeper)} == hit | {"1-growth": False}
    assert {r.key: r.hit for r in tick_rows(TICK | {"p99_ms": 81.0})} == hit | {"1-tick": False}
    small = tick_rows({"size": "S", "p50_ms": 2.0, "p99_ms": 3.0})
    assert [(r.key, r.hit) for r in small] == [("1-tick", None)]


def test_the_gap_is_judged_warm_and_by_the_worst():
    assert gap_rows(GAP)[0].hit is True
    assert gap_rows(GAP | {"warm": GAP["cold"], "cold": GAP["warm"]})[0].hit is False


def test_a_late_revert_is_a_miss_and_says_how_late():
    reverted, false = revert_rows(REVERTS)
    assert reverted.hit is False
    assert "in 2 of 3 worlds" in reverted.measured
    assert "later in 1 (after 11 ticks)" in reverted.measured
    assert "at most 5 ticks in force" in reverted.measured
    assert false.hit is True
    assert "1 in get_cheap" in false.measured
    run = REVERTS["delays"][0] | {"reverted_within_3": 3, "reverted_after": [1, 3, 2]}
    assert revert_rows(REVERTS | {"delays": [run]})[0].hit is True
    run |= {"reverted_within_3": 2, "reverted_after": [1, None, 2], "false_reverts": 2}
    reverted, false = revert_rows(REVERTS | {"delays": [run]})
    assert "never in 1" in reverted.measured
    assert (reverted.hit, false.hit) == (False, False)


def test_slates_case_is_judged_at_its_deadline():
    assert slate_rows(SLATE)[0].hit is True
    assert slate_rows(SLATE | {"mean_error_after_20_rps": 3.1})[0].hit is False


def test_a_remark_is_of_a_target_and_said_only_while_it_is_missed(lab, write):
    assert set(remarks()) <= set(TARGETS)
    found = {"XS": Found([write(lab)])}
    why = remarks()["slate"].strip()
    assert why
    for error_rps, said in ((2.9, False), (3.1, True)):
        text = results(found, {"slate": SLATE | {"mean_error_after_20_rps": error_rps}})
        assert any(why in line for line in text) is said


def test_rows_are_all_of_known_targets_and_in_their_order(lab, write):
    rows = targets(Found([write(lab)])) + detector_rows() + slate_rows(SLATE) + tick_rows(TICK)
    order = list(TARGETS)
    places = [order.index(r.key) for r in all_targets(rows)]
    assert places == sorted(places)
    assert set(places) == set(range(len(order)))


def test_other_sizes_are_told_apart_and_a_world_counts_once(lab, write):
    small, large = write(lab), write(lab | {"size": "M"}, "large.json")
    sizes = by_size([small, large])
    assert list(sizes) == ["XS", "M"]
    assert any(line.startswith("| M | step, 2 | 1 |") for line in results(sizes, {}))
    with pytest.raises(ValueError, match="several sizes"):
        Found([small, large])
    with pytest.raises(ValueError, match="twice"):
        Found([small, small])


def test_null_is_never_where_that_is_what_it_means_and_not_a_number_elsewhere(lab, write):
    changed = with_figures(lab, "ours", converged_ticks=math.inf, overshoot=math.nan)
    for run in changed["runs"]:
        run["policies"]["ours"]["series"]["latency_ms"][3] = math.nan
    file = write(changed)
    json.loads(file.read_text(), parse_constant=pytest.fail)
    found = Found([file])
    assert found.seeds(2, "step", "ours", "converged_ticks") == [math.inf]
    assert math.isnan(found.mean(2, "step", "ours", "overshoot"))
    series = found.of(2, "step")[0]["policies"]["ours"]["series"]["latency_ms"]
    assert [k for k, value in enumerate(series) if math.isnan(value)] == [3]
    assert "never" in "".join(results({"XS": found}, {}))


def test_pictures_are_drawn_of_what_is_known(lab, write, tmp_path):
    changed = copy.deepcopy(lab)
    for run in changed["runs"]:
        run["policies"]["ours"]["series"]["latency_ms"][20] = None
        run["policies"]["l3"]["series"]["usd_per_million"] = [None] * lab["ticks"]
    report([str(write(changed)), "--out", str(tmp_path / "r.md"), "--plots", str(tmp_path / "p")])
    assert (tmp_path / "p" / "step.png").exists()


def test_convergence_is_not_hit_where_it_is_not_known(lab, write):
    changed = copy.deepcopy(lab)
    for run in changed["runs"]:
        del run["policies"]["ours"]["figures"]["converged_ticks"]
    assert row(Found([write(changed)]), "5-converged").hit is False


def refusal(capsys, tmp_path, *words):
    """What the report says to files that it cannot read; it writes nothing then."""
    out = tmp_path / "RESULTS.md"
    with pytest.raises(SystemExit) as refused:
        report([*map(str, words), "--out", str(out), "--plots", str(tmp_path / "plots")])
    assert refused.value.code == 2
    assert not out.exists()
    assert not (tmp_path / "plots").exists()
    return capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_is_not_of_the_laboratory_is_refused_by_name(lab, write, capsys, tmp_path):
    broken, binary = tmp_path / "broken.json", tmp_path / "binary.json"
    broken.write_text("{")
    binary.write_bytes(b"\xff\xfe")
    alone = copy.deepcopy(lab)
    for run in alone["runs"]:
        run["policies"] = {"l3": run["policies"]["l3"]}
    for file, words in (
        (tmp_path / "none.json", "No such file"),
        (tmp_path, "Is a directory"),
        (broken, "not JSON"),
        (binary, "not JSON"),
        (write([1], "list.json"), "no JSON object"),
        (write(TICK, "tick.json"), "not what python -m bench.lab --json writes"),
        (write(lab | {"runs": [{"world": "step"}]}, "run.json"), "not what python -m bench.lab"),
        (write(lab | {"runs": []}, "empty.json"), "no run of ours"),
        (write(alone, "alone.json"), "no run of ours"),
    ):
        said = refusal(capsys, tmp_path, file)
        assert f"error: {file}: " in said
        assert words in said
    twice = write(lab)
    assert "run twice" in refusal(capsys, tmp_path, twice, twice)


@pytest.mark.parametrize("program", ["tick", "gap", "reverts", "slate"])
def test_what_another_program_printed_is_refused_by_name(lab, write, capsys, tmp_path, program):
    for what in ({}, {"command": "ls"}, lab):
        wrong = write(what, "wrong.json")
        said = refusal(capsys, tmp_path, write(lab), f"--{program}", wrong)
        assert f"{wrong}: not what python -m bench.{program} --json prints" in said
