import json

import pytest

from bench.lab.__main__ import main
from bench.lab.report import BEGIN, END, insert
from bench.lab.report import main as report
from bench.lab.table import Found, targets


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    file = tmp_path_factory.mktemp("lab") / "out.json"
    main(
        f"--worlds step,liar --policies "
        f"ours,clairvoyant,clairvoyant_delayed,equal,l3 --size XS --ticks 30 --seeds 1 --jobs 1 "
        f"--json {file}".split()
    )
    return file


def test_the_report_says_what_the_numbers_say(figures, tmp_path):
    out = tmp_path / "RESULTS.md"
    out.write_text("# Results\n\nSomebody else's.\n")
    report([str(figures), "--out", str(out), "--plots", str(tmp_path / "results")])
    text = out.read_text()
    assert text.startswith("# Results\n\nSomebody else's.\n")
    assert "| step |" in text
    assert "](results/step.png)" in text
    assert (tmp_path / "results" / "liar.png").stat().st_size < 80_000
    report([str(figures), "--out", str(out), "--plots", str(tmp_path / "results")])
    assert out.read_text() == text


def test_a_target_is_hit_or_missed_by_its_number(figures):
    loaded = json.loads(figures.read_text())
    verdicts = {}
    for regret in (0.02, 0.30):
        for run in loaded["runs"]:
            run["policies"]["ours"]["figures"]["regret_instant"] = regret
        figures.write_text(json.dumps(loaded))
        rows = {r.target: r.hit for r in targets(Found([figures]))}
        verdicts[regret] = rows["step, D = 2: regret to the instant clairvoyant <= 8 %"]
    assert verdicts == {0.02: True, 0.30: False}


def test_only_the_laboratorys_part_is_replaced():
    once = insert("# Results\n\nBefore.\n", "one")
    assert insert(once + "\nAfter.\n", "two") == (
        f"# Results\n\nBefore.\n\n{BEGIN}\ntwo\n{END}\n\nAfter.\n"
    )
