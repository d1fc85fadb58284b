"""What programs of bench refuse, before anything runs, and what they write."""

import argparse
import importlib
import json
import math

import pytest

from bench import arguments, slate, tick
from bench.output import dumped

REFUSED = [
    ("bench.slate", "--loads", ["nan", "-5", "inf", "1e300", "1000001", "abc", ",", "", "100,100"]),
    ("bench.slate", "--coefficients", ["abc", "1", "1:2:3", "nan:2", "-1:2", "1:inf", ""]),
    ("bench.slate", "--seeds", ["0", "-1", "1.5", "abc"]),
    ("bench.slate", "--ticks", ["0", "-1"]),
    ("bench.slate", "--start-share", ["1.5", "-0.1", "nan"]),
    ("bench.slate", "--east-rps", ["nan", "-1", "1e7"]),
    ("bench.slate", "--jitter-ratio", ["nan", "-1", "inf"]),
    ("bench.slate", "--one-way-ms", ["nan", "-5", "inf"]),
    ("bench.slate", "--exponent", ["nan", "-1", "0.9", "inf"]),
    ("bench.gap", "--seeds", ["0", "-1", "abc"]),
    ("bench.reverts", "--seeds", ["0", "-1"]),
    ("bench.reverts", "--delay", ["abc", "-1", ",", "2,2"]),
    ("bench.slow", "--turns", ["0", "-1", "abc"]),
    ("bench.lab.__main__", "--delay", ["-1", "abc", "0,-1", "101", "2,2", ""]),
    ("bench.lab.__main__", "--ticks", ["0", "1", "5", "abc"]),
    ("bench.lab.__main__", "--seeds", ["0", "-1"]),
    ("bench.lab.__main__", "--jobs", ["0", "-1"]),
    ("bench.lab.__main__", "--worlds", ["atlantis", "step,step", ""]),
    ("bench.lab.__main__", "--policies", ["ours,hope"]),
    ("bench.lab.__main__", "--json", ["no/such/folder/x.json"]),
    ("bench.lab.report", "--out", ["no/such/folder/x.md"]),
]


@pytest.mark.parametrize(
    ("program", "flag", "value"),
    [(program, flag, value) for program, flag, values in REFUSED for value in values],
)
def test_a_program_refuses_with_one_line_that_names_the_value(capsys, program, flag, value):
    with pytest.raises(SystemExit) as refused:
        importlib.import_module(program).main([f"{flag}={value}"])
    assert refused.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {flag}: " in said
    assert any(repr(part) in said for part in (value, *value.replace(":", ",").split(",")))


def test_the_message_says_what_is_allowed():
    for parse, text, words in (
        (arguments.positive_integer, "0", "'0': a whole number from 1 to 10,000 is allowed"),
        (arguments.real(0.0, 1e6, "requests/s"), "nan", "from 0 to 1,000,000 requests/s is"),
        (arguments.name_of(["a", "b"]), "c", "'c': one of a, b is allowed"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            parse(text)


def test_bounds_themselves_are_allowed():
    assert arguments.integer(0, 5)("0") == 0
    assert arguments.integer(0, 5)("5") == 5
    assert arguments.real(0.0, 1.0)("1") == 1.0
    assert arguments.comma_separated(arguments.real(0.0, 1.0))("0,1") == (0.0, 1.0)


def test_a_file_needs_its_folder(tmp_path):
    assert arguments.file_to_write(str(tmp_path / "new.json")) == tmp_path / "new.json"
    for text in (str(tmp_path), str(tmp_path / "none" / "new.json")):
        with pytest.raises(argparse.ArgumentTypeError, match="folder"):
            arguments.file_to_write(text)


def test_a_folder_is_no_file_nor_in_one(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for folder in (tmp_path, tmp_path / "new" / "newer"):
        assert arguments.folder_to_write(str(folder)) == folder
    for folder in (file, file / "new"):
        with pytest.raises(argparse.ArgumentTypeError, match="is a file"):
            arguments.folder_to_write(str(folder))


@pytest.mark.parametrize("value", ["0", "-1", "abc"])
def test_tick_takes_its_arguments_from_the_command_line(monkeypatch, capsys, value):
    monkeypatch.setattr("sys.argv", ["tick.py", "--ticks", value])
    with pytest.raises(SystemExit) as refused:
        tick.main()
    assert refused.value.code == 2
    assert f"argument --ticks: {value!r}: " in capsys.readouterr().err


def said(capsys, *words):
    slate.main([*words, "--json"])
    return json.loads(capsys.readouterr().out)


def test_slates_command_has_every_flag_that_is_not_at_its_default_and_gives_the_same(capsys):
    few = ("--seeds", "1", "--ticks", "3")
    flags = (
        ("--one-way-ms", "12.5"),
        ("--loads", "100,150.5"),
        ("--east-rps", "0"),
        ("--coefficients", "1e-10:8,1e-10:8"),
        ("--exponent", "3"),
        ("--start-share", "0.5"),
        ("--jitter-ratio", "0"),
    )
    found = said(capsys, *few, *(word for flag in flags for word in flag))
    words = found["command"].split()
    assert words[:3] == ["python", "-m", "bench.slate"]
    assert {"--seeds", "--ticks", *(flag for flag, _ in flags)} == {
        word for word in words if word.startswith("--")
    }
    assert said(capsys, *words[3:]) == found
    assert said(capsys, "--seeds", "1", "--ticks", "1", "--loads", "0")["command"] == (
        "python -m bench.slate --loads 0 --ticks 1 --seeds 1"
    )


def test_what_is_no_finite_number_is_null():
    figures = {"a": [1.0, math.nan, (math.inf, -math.inf)], "b": {"c": math.nan, "d": "nan"}}
    assert json.loads(dumped(figures), parse_constant=pytest.fail) == {
        "a": [1.0, None, [None, None]],
        "b": {"c": None, "d": "nan"},
    }
