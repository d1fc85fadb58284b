"""The rows of the table of targets that other programs measure; each reads its JSON."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

import numpy as np

from bench.lab.targets import Row

_GAP_MOST: Final = 0.5
_GROWTH_MOST: Final = 1.1
"""Exponent of time over pairs that still counts as linear."""
_REVERTS_MOST: Final = 2.0
_SLATE_MOST_RPS: Final = 3.0

Json = Mapping[str, Any]


def tick_rows(found: Json) -> list[Row]:
    """Of ``bench.tick``."""
    command = f"python -m bench.tick --size {found['size']}"
    p50, p99 = float(found["p50_ms"]), float(found["p99_ms"])
    at_l = found["size"] == "L"
    measured = f"p50 {p50:.0f} ms, p99 {p99:.0f} ms" + ("" if at_l else f" at {found['size']}")
    if "floor_ratio" in found:
        measured += f"; {found['floor_ratio']:.1f} x the floor"
    rows = [Row("1-tick", measured, (p50 <= 45.0 and p99 <= 80.0) if at_l else None, command)]
    curve = sorted((int(pairs), float(ms)) for pairs, ms in found.get("curve", {}).items())
    if len(curve) > 1:
        rows.append(_growth(curve, command))
    for pairs, ms in curve:
        if pairs == 1_000_000:
            rows.append(Row("1-million", f"p50 {ms:.0f} ms", ms <= 600.0, command))
    return rows


def _growth(curve: list[tuple[int, float]], command: str) -> Row:
    """Between neighbours of the curve: the steepest part counts, not the mean."""
    exponents = [
        float(np.log(ms / ms_before) / np.log(pairs / pairs_before))
        for (pairs_before, ms_before), (pairs, ms) in pairwise(curve)
    ]
    points = ", ".join(f"{ms:.1f} ms" for _, ms in curve)
    factors = ", ".join(f"x {10.0**e:.1f}" for e in exponents)
    return Row(
        "1-growth",
        f"p50 of {points} for {', '.join(f'{pairs:,}' for pairs, _ in curve)} pairs: {factors} for "
        "each tenfold; the steepest counts",
        max(exponents) <= _GROWTH_MOST,
        command,
    )


def gap_rows(found: Json) -> list[Row]:
    """Of ``bench.gap``."""
    warm, cold = found["warm"], found["cold"]
    loads = found["loads"]
    return [
        Row(
            "2-gap",
            f"{found['instances']} instances of up to {found['variables_most']} shares at loads of "
            f"{min(loads):g} to {max(loads):g}: warm, worst {warm['worst_percent']:g} %, median "
            f"{warm['median_percent']:g} %; cold, worst {cold['worst_percent']:g} %, median "
            f"{cold['median_percent']:g} %",
            warm["worst_percent"] <= _GAP_MOST,
            found["command"],
        )
    ]


def revert_rows(found: Json) -> list[Row]:
    """Of ``bench.reverts``: one for each delay, and one for what was false."""
    rows = [_reverted(run, found["command"]) for run in found["delays"]]
    return rows + [_false(run, found["command"]) for run in found["delays"]]


def _reverted(run: Json, command: str) -> Row:
    after = [ticks for ticks in run["reverted_after"] if ticks is not None]
    late = sorted(ticks for ticks in after if ticks > 3)
    case = f"D = {run['delay']}"
    if not run["harmed"]:
        return Row("8-revert", "no move did harm", None, command, case)
    words = [f"by the engine's revert in {run['reverted_within_3']} of {run['harmed']} worlds"]
    if after:
        words.append(f"median {np.median(after):g} ticks")
    if late:
        words.append(f"later in {len(late)} (after {', '.join(map(str, late))} ticks)")
    if len(after) < run["harmed"]:
        words.append(f"never in {run['harmed'] - len(after)}")
    words.append(
        "by a revert or an ordinary move, harm was over after at most "
        f"{max(run['longest'])} ticks in force"
    )
    hit = run["reverted_within_3"] == run["harmed"]
    return Row("8-revert", "; ".join(words), hit, command, case)


def _false(run: Json, command: str) -> Row:
    percent = 100.0 * run["false_reverts"] / max(run["pushes"], 1)
    where = ", ".join(f"{n} in {world}" for world, n in run["false_by_world"].items())
    precision = "-" if run["precision"] is None else f"{100.0 * run['precision']:.0f} %"
    recall = "-" if run["recall"] is None else f"{100.0 * run['recall']:.0f} %"
    return Row(
        "8-false",
        f"{run['false_reverts']} in {run['pushes']} pushes ({percent:.2f} %)"
        + (f": {where}" if where else "")
        + f"; precision {precision}, recall {recall}",
        percent < _REVERTS_MOST,
        command,
        f"worlds with and without harm, D = {run['delay']}",
    )


def slate_rows(found: Json) -> list[Row]:
    """Of ``bench.slate``."""
    early, end = found["mean_error_after_20_rps"], found["mean_error_rps"]
    ticks = found["ticks"]
    return [
        Row(
            "slate",
            f"{early:g} after 20 ticks, {end:g} in the end (means over seeds, as published; of a "
            f"seed by itself {found['mean_error_of_a_seed_rps']:g}); settled after {min(ticks)} to "
            f"{max(ticks)} ticks, median {np.median(ticks):g}",
            early <= _SLATE_MOST_RPS,
            found["command"],
        )
    ]


def detector_rows() -> list[Row]:
    """Nothing detects shifts yet, so nothing can be measured."""
    return [Row("10-detectors", "no detectors yet", False, "-")]
