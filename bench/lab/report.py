"""``python -m bench.lab.report out.json ... [--tick FILE ...]``: all of bench/RESULTS.md."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.arguments import file_to_write, folder_to_write
from bench.lab.found import Found, by_size, read_object
from bench.lab.outside import (
    Json,
    detector_rows,
    gap_rows,
    revert_rows,
    slate_rows,
    tick_rows,
)
from bench.lab.per_world import code, larger_table, world_tables
from bench.lab.plots import write_plots
from bench.lab.table import targets
from bench.lab.targets import Row, all_targets, remarks

_DELAY: Final = 2
_PROGRAMS: Final = {
    "tick": tick_rows,
    "gap": gap_rows,
    "reverts": revert_rows,
    "slate": slate_rows,
}


def main(arguments: list[str] | None = None) -> None:
    """Read JSON, write Markdown and pictures."""
    parser = argparse.ArgumentParser(prog="python -m bench.lab.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="of bench.lab; the first one's size")
    for program in _PROGRAMS:
        parser.add_argument(f"--{program}", type=Path, help=f"of bench.{program}")
    parser.add_argument("--out", type=file_to_write, default=Path("bench/RESULTS.md"))
    parser.add_argument("--plots", type=folder_to_write, default=Path("bench/results"))
    options = parser.parse_args(arguments)
    try:
        sizes = by_size(options.files)
        said = {p: _printed(p, f) for p in _PROGRAMS if (f := getattr(options, p))}
    except ValueError as error:
        parser.error(str(error))
    found = next(iter(sizes.values()))
    drawn = write_plots(found, _DELAY, options.plots)
    pictures = [f"![{w}]({options.plots.name}/{w}.png)" for w in drawn]
    options.out.write_text("\n".join([*results(sizes, said), *pictures]) + "\n")


def _printed(program: str, file: Path) -> Json:
    """Read what another program printed. Raises ValueError for another file."""
    found = read_object(file)
    try:
        _PROGRAMS[program](found)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        words = f"not what python -m bench.{program} --json prints for a target"
        raise ValueError(f"{file}: {words}") from error
    return found


def results(sizes: Mapping[str, Found], said: Mapping[str, Json]) -> list[str]:
    """Lines of Markdown, without the pictures.

    Parameters
    ----------
    sizes : the laboratory's figures by size of the mesh; targets are judged by the first
    said : what other programs printed, by name
    """
    found, *larger = sizes.values()
    rows = targets(found, _DELAY) + detector_rows()
    for program, json_ in said.items():
        rows += _PROGRAMS[program](json_)
    return [
        *_head(found),
        *_targets(all_targets(rows)),
        *world_tables(found, _DELAY),
        *larger_table(larger),
    ]


def _head(found: Found) -> list[str]:
    seconds = sum(m["seconds"] for m in found.meta)
    meta = found.meta[0]
    words = (
        "All of this is written by `make lab`; nothing by hand. The laboratory's part: "
        f"{len(found.runs)} runs of size {found.size} over {meta['ticks']} ticks of 1 s, "
        f"{meta['seeds']} seed{'s' * (meta['seeds'] > 1)}, in {seconds} s on {meta['machine']}. "
        "What figures mean is said in [README.md](README.md#lab). Figures are means over seeds, "
        "in brackets the least and the most of a seed. *Hit* and *missed* are computed."
    )
    return ["# Results", "", words, ""]


def _targets(rows: list[Row]) -> list[str]:
    words = {True: "hit", False: "**missed**", None: "not measured"}
    judged = [r for r in rows if r.hit is not None]
    return [
        f"## Targets: {sum(r.hit is True for r in judged)} of {len(judged)} hit",
        "",
        "| # | target | measured | | by |",
        "|---|---|---|---|---|",
        *[
            f"| {r.number} | {r.target} | {r.measured} | {words[r.hit]} | {code(r.command)} |"
            for r in rows
        ],
        "",
        *_remarks(rows),
    ]


def _remarks(rows: list[Row]) -> list[str]:
    """Why, for what is missed and has a remark; the others by name."""
    known = remarks()
    missed = {r.key: r for r in rows if r.hit is False}
    if not missed:
        return []
    said = [f"* {_name(r)}: {known[key].strip()}" for key, r in missed.items() if key in known]
    silent = [_name(r) for key, r in missed.items() if key not in known]
    if silent:
        said.append(f"* Without a remark: {'; '.join(silent)}.")
    return ["### Missed: why, and what was tried", "", *said, ""]


def _name(row: Row) -> str:
    """Number and words of a target, without the case."""
    words = Row(row.key, "", None, "").target
    return f"**{row.number}**, {words}" if row.number else words


if __name__ == "__main__":
    main()
