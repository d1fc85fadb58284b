"""``python -m bench.lab.report out.json ...``: the laboratory's part of bench/RESULTS.md."""

import argparse
from pathlib import Path
from typing import Final

import numpy as np

from bench.lab.figures import DELAYED
from bench.lab.plots import write_plots
from bench.lab.table import OURS, Found, Row, targets

BEGIN: Final = "<!-- lab: written by python -m bench.lab.report -->"
END: Final = "<!-- /lab -->"
_TITLE: Final = (
    "# Results\n\nWhat was measured, by which command; the text between marks is generated.\n"
)
_DELAY: Final = 2


def main(arguments: list[str] | None = None) -> None:
    """Read JSON, write Markdown and pictures."""
    parser = argparse.ArgumentParser(prog="python -m bench.lab.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench/RESULTS.md"))
    parser.add_argument("--plots", type=Path, default=Path("bench/results"))
    options = parser.parse_args(arguments)
    found = Found(options.files)
    drawn = write_plots(found, _DELAY, options.plots)
    pictures = [f"![{w}]({options.plots.name}/{w}.png)" for w in drawn]
    text = "\n".join([*_head(found), *_targets(targets(found, _DELAY)), *_worlds(found), *pictures])
    options.out.write_text(
        insert(options.out.read_text() if options.out.exists() else _TITLE, text)
    )


def insert(before: str, text: str) -> str:
    """Put the laboratory's part between its marks, or at the end where there are none."""
    part = f"{BEGIN}\n{text}\n{END}"
    if BEGIN not in before:
        return f"{before.rstrip()}\n\n{part}\n"
    head, _, rest = before.partition(BEGIN)
    return f"{head}{part}{rest.partition(END)[2]}"


def _head(found: Found) -> list[str]:
    runs = len(found.runs)
    seconds = sum(m["seconds"] for m in found.meta)
    meta = found.meta[0]
    words = (
        f"`make lab`: {runs} runs of size {meta['size']} over {meta['ticks']} ticks of 1 s, "
        f"{meta['seeds']} seeds, in {seconds / 60:.0f} minutes on {meta['machine']}. "
        "What figures mean is said in [README.md](README.md#lab). Figures are means over seeds, "
        "in brackets the least and the most of a seed. *Hit* and *missed* are computed."
    )
    return ["## The laboratory", "", words, ""]


def _targets(rows: list[Row]) -> list[str]:
    words = {True: "hit", False: "**missed**", None: "not measured"}
    judged = [r for r in rows if r.hit is not None]
    return [
        f"### Targets: {sum(r.hit is True for r in judged)} of {len(judged)} hit",
        "",
        "| # | target | measured | |",
        "|---|---|---|---|",
        *[f"| {r.number} | {r.target} | {r.measured} | {words[r.hit]} |" for r in rows],
        "",
        "Not measured here: 1 and 2 (`bench.tick`, property tests), 9, 10.",
        "",
    ]


def _worlds(found: Found) -> list[str]:
    header = (
        "| world | regret to instant | to delayed | steady, before | p99 tick | converged "
        "| p50 / p99 ms | $ per million | SLO s | pushes | best rival, its regret |"
    )
    return [
        f"### Worlds, D = {_DELAY}",
        "",
        "Regret in per cent of the clairvoyant's cost, from the event to the end.",
        "",
        header,
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *[_world(found, world) for world in found.worlds(_DELAY)],
        "",
        *_rivals(found),
    ]


def _world(found: Found, world: str) -> str:
    def mean(name: str, scale: float = 1.0, policy: str = OURS) -> float:
        return scale * found.mean(_DELAY, world, policy, name)

    def spread(name: str) -> str:
        values = 100.0 * found.seeds(_DELAY, world, OURS, name)
        return f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})"

    converged = float(np.median(found.seeds(_DELAY, world, OURS, "converged_ticks")))
    rival = "-"
    if found.rivals(_DELAY, world):
        name, _ = found.best(_DELAY, world, "cost_ms")
        rival = f"{name}, {mean('regret_instant', 100.0, name):.0f}"
    return (
        f"| {world} | {spread('regret_instant')} | {spread('regret_delayed')} "
        f"| {mean('regret_instant_steady', 100.0):.1f} "
        f"| {mean('regret_instant_p99_tick', 100.0):.0f} "
        f"| {'never' if np.isinf(converged) else f'{converged:.0f}'} "
        f"| {mean('p50_ms'):.0f} / {mean('p99_ms'):.0f} | {mean('usd_per_million'):.2f} "
        f"| {mean('slo_minutes', 60.0):.1f} | {mean('pushes_per_route_minute'):.1f} | {rival} |"
    )


def _rivals(found: Found) -> list[str]:
    worlds = found.worlds(_DELAY)
    policies = found.policies(_DELAY, worlds[0])
    order = [OURS, DELAYED, *found.rivals(_DELAY, worlds[0])]
    lines = [
        f"### Regret of every policy to the instant clairvoyant, %, D = {_DELAY}",
        "",
        f"| world | {' | '.join(p for p in order if p in policies)} |",
        f"|---{'|---' * sum(p in policies for p in order)}|",
    ]
    for world in worlds:
        cells = [
            f"{100.0 * found.mean(_DELAY, world, p, 'regret_instant'):.0f}"
            for p in order
            if p in policies
        ]
        lines.append(f"| {world} | {' | '.join(cells)} |")
    medians = [
        f"{np.median([100.0 * found.mean(_DELAY, w, p, 'regret_instant') for w in worlds]):.0f}"
        for p in order
        if p in policies
    ]
    return [*lines, f"| median | {' | '.join(medians)} |", ""]


if __name__ == "__main__":
    main()
