"""What several runs found together: means over seeds, best rivals, targets met or missed."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.lab.figures import DELAYED, INSTANT
from bench.lab.layout import TIMEOUT_S

OURS: Final = "ours"
ORACLES: Final = frozenset((INSTANT, DELAYED))
LATENCY_ONLY: Final = ("least_request", "wrr_a58", "l3", "greedy_fastest")
STEP_LIKE: Final = ("step", "degraded_15", "price_spike", "outage", "bimodal")
"""Worlds with one lasting change, from which one can converge."""
INSTANT_LIMITS: Final = {
    "diurnal": 1.0,
    "price_spike": 1.0,
    "flash_crowd": 5.0,
    "brown_out": 5.0,
    "step": 8.0,
    "degraded_15": 10.0,
    "outage": 22.0,
}
"""Per cent of the instant clairvoyant's cost, at D = 2."""


class Found:
    """Figures by (delay, world, policy, seed)."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.runs: list[dict[str, Any]] = []
        self.meta: list[dict[str, Any]] = []
        for file in files:
            loaded = json.loads(file.read_text())
            self.runs += loaded.pop("runs")
            self.meta.append(loaded)
        self.delays = sorted({r["delay"] for r in self.runs})

    def worlds(self, delay: int) -> list[str]:
        """Worlds that were run at that delay, in order."""
        return list(dict.fromkeys(r["world"] for r in self.runs if r["delay"] == delay))

    def policies(self, delay: int, world: str) -> list[str]:
        """Policies that were run there."""
        runs = self.of(delay, world)
        return list(runs[0]["policies"]) if runs else []

    def of(self, delay: int, world: str) -> list[dict[str, Any]]:
        """Runs of all seeds."""
        return [r for r in self.runs if r["delay"] == delay and r["world"] == world]

    def seeds(self, delay: int, world: str, policy: str, name: str) -> np.ndarray:
        """One figure, by seed; NaN where it does not apply, inf where it never happened."""
        return np.array(
            [
                r["policies"][policy]["figures"].get(name, np.nan)
                for r in self.of(delay, world)
                if policy in r["policies"]
            ]
        )

    def mean(self, delay: int, world: str, policy: str, name: str) -> float:
        """Mean over seeds."""
        values = self.seeds(delay, world, policy, name)
        values = values[~np.isnan(values)]
        return float(np.mean(values)) if len(values) else float("nan")

    def rivals(self, delay: int, world: str) -> list[str]:
        """Policies that are neither ours nor know everything."""
        known = ORACLES | {OURS}
        return [p for p in self.policies(delay, world) if p not in known]

    def best(self, delay: int, world: str, name: str) -> tuple[str, float]:
        """Rival with the least of a figure."""
        return min(
            ((p, self.mean(delay, world, p, name)) for p in self.rivals(delay, world)),
            key=lambda found: found[1],
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One target beside what was measured."""

    number: str
    target: str
    measured: str
    hit: bool | None  # None: not measured here


def targets(found: Found, delay: int = 2) -> list[Row]:
    """Every target that the laboratory can judge."""
    if delay not in found.delays:
        return []
    rows = [_late(found, d) for d in found.delays]
    rows += [_instant(found, world) for world in INSTANT_LIMITS if found.of(delay, world)]
    rivals = found.rivals(delay, found.worlds(delay)[0])
    if rivals:
        rows += [
            _better(found, delay),
            _faster(found, delay),
            _cheaper(found, delay),
        ]
    rows = [
        *rows,
        *[_converged(found, d) for d in found.delays],
        _worst(found, delay, "overshoot", "5", "overshoot <= 10 %", 10.0, scale=100.0, unit=" %"),
        _worst(
            found,
            delay,
            "flips_per_route_hour_steady",
            "5",
            "flips, steady: <= 4 per route-hour",
            4.0,
        ),
        _worst(
            found,
            delay,
            "flips_per_route_hour_event",
            "5",
            "flips, events: <= 12 per route-hour",
            12.0,
        ),
        *([_slo(found, delay)] if rivals else []),
        *_faults(found, delay),
        _coverage(found, delay),
    ]
    return sorted(rows, key=lambda row: row.number)


def _verdict(missed: list[str], all_: int) -> str:
    return f"held in {all_ - len(missed)} of {all_} worlds" + (
        f"; not in {', '.join(missed)}" if missed else ""
    )


def _late(found: Found, delay: int) -> Row:
    worlds = found.worlds(delay)
    regret = {w: 100.0 * found.mean(delay, w, OURS, "regret_delayed") for w in worlds}
    missed = [f"{w} ({v:.1f} %)" for w, v in regret.items() if not v <= 5.0]
    return Row(
        "3",
        f"D = {delay}: mean regret to the delayed clairvoyant <= 5 % in every world",
        f"median {np.median(list(regret.values())):.1f} %; {_verdict(missed, len(worlds))}",
        not missed,
    )


def _instant(found: Found, world: str) -> Row:
    values = 100.0 * found.seeds(2, world, OURS, "regret_instant")
    limit = INSTANT_LIMITS[world]
    late = 100.0 * found.mean(2, world, DELAYED, "regret_instant")
    return Row(
        "3",
        f"{world}, D = 2: regret to the instant clairvoyant <= {limit:g} %",
        f"{np.mean(values):.1f} % ({values.min():.1f} to {values.max():.1f}); "
        f"of these {late:.1f} are the delay's",
        bool(np.mean(values) <= limit),
    )


def _better(found: Found, delay: int) -> Row:
    missed = []
    worlds = found.worlds(delay)
    for world in worlds:
        rival, cost = found.best(delay, world, "cost_ms")
        mine = found.mean(delay, world, OURS, "cost_ms")
        if not mine < cost:
            missed.append(f"{world} ({rival} {100.0 * (mine / cost - 1.0):.1f} % better)")
    return Row(
        "4",
        "a lower objective than the best policy that is not clairvoyant, in every world",
        _verdict(missed, len(worlds)),
        not missed,
    )


def _faster(found: Found, delay: int) -> Row:
    """Against the rivals that are no dearer (2 %), time with a second for each failure."""

    def time_ms(world: str, policy: str) -> float:
        failed = found.mean(delay, world, policy, "failed_ratio")
        return found.mean(delay, world, policy, "latency_ms") + 1e3 * TIMEOUT_S * failed

    missed, rivals, worlds = [], 0, found.worlds(delay)
    for world in worlds:
        usd, mine = found.mean(delay, world, OURS, "usd_per_million"), time_ms(world, OURS)
        for policy in found.rivals(delay, world):
            if found.mean(delay, world, policy, "usd_per_million") > 1.02 * usd:
                continue
            rivals += 1
            if time_ms(world, policy) <= mine:
                missed.append(f"{world} ({policy}: {time_ms(world, policy):.0f} to {mine:.0f} ms)")
    return Row(
        "4",
        "faster than every policy that is no dearer, in every world",
        f"{rivals} such policies in {len(worlds)} worlds"
        + (f"; faster are {', '.join(missed)}" if missed else "; none is faster"),
        not missed,
    )


def _cheaper(found: Found, delay: int) -> Row:
    """Against the latency-only policies whose p99 is no more than 10 % above ours."""
    missed, saved, possible = [], [], []
    for world in found.worlds(delay):
        usd, p99 = (found.mean(delay, world, OURS, n) for n in ("usd_per_million", "p99_ms"))
        alike = [
            found.mean(delay, world, p, "usd_per_million")
            for p in LATENCY_ONLY
            if p in found.policies(delay, world)
            and found.mean(delay, world, p, "p99_ms") <= 1.1 * p99
        ]
        if not alike:
            continue
        saved.append(100.0 * (1.0 - usd / min(alike)))
        best = found.mean(delay, world, INSTANT, "usd_per_million")
        possible.append(100.0 * (1.0 - best / min(alike)))
        if saved[-1] < 25.0:
            missed.append(f"{world} ({saved[-1]:.0f} %)")
    target = "dollars >= 25 % below every latency-only policy whose p99 is at most 1.1 x ours"
    if not saved:
        return Row("4", target, "no latency-only policy reached our p99 anywhere", None)
    return Row(
        "4",
        target,
        f"{min(saved):.0f} to {max(saved):.0f} % less, median {np.median(saved):.0f}; the instant "
        f"clairvoyant saves {np.median(possible):.0f}; {_verdict(missed, len(saved))}",
        not missed,
    )


def _slo(found: Found, delay: int) -> Row:
    worlds, missed = found.worlds(delay), []
    for world in worlds:
        rival, least = found.best(delay, world, "slo_minutes")
        mine = found.mean(delay, world, OURS, "slo_minutes")
        if not mine <= 0.25 * least:
            missed.append(f"{world} ({60 * mine:.1f} s to {60 * least:.1f} s of {rival})")
    return Row(
        "6",
        "SLO-violation minutes <= 1/4 of those of the best policy that is not clairvoyant",
        _verdict(missed, len(worlds)),
        not missed,
    )


def _converged(found: Found, delay: int) -> Row:
    worlds = [w for w in found.worlds(delay) if w in STEP_LIKE]
    ticks = {w: float(np.median(found.seeds(delay, w, OURS, "converged_ticks"))) for w in worlds}
    missed = [f"{w} ({v:.0f})" for w, v in ticks.items() if v > delay + 4]
    return Row(
        "5",
        f"D = {delay}: within 10 % of the instant clairvoyant's cost D + 4 ticks after the event",
        _verdict(missed, len(worlds)),
        not missed,
    )


def _worst(
    found: Found,
    delay: int,
    name: str,
    number: str,
    target: str,
    limit: float,
    *,
    scale: float = 1.0,
    unit: str = "",
) -> Row:
    """A figure that is to be small in every world."""
    values = {w: scale * found.mean(delay, w, OURS, name) for w in found.worlds(delay)}
    values = {w: v for w, v in values.items() if not np.isnan(v)}
    if not values:
        return Row(number, target, "not measured", None)
    worst = max(values, key=lambda w: values[w])
    held = sum(v <= limit for v in values.values())
    return Row(
        number,
        target,
        f"median {np.median(list(values.values())):.1f}{unit}, most {values[worst]:.1f}{unit} "
        f"({worst}); held in {held} of {len(values)} worlds",
        held == len(values),
    )


def _faults(found: Found, delay: int) -> list[Row]:
    rows = []
    worlds = found.worlds(delay)
    for world in ("telemetry_dropped", "telemetry_stale"):
        if world in worlds and "step" in worlds:
            more = 100.0 * (
                found.mean(delay, world, OURS, "regret_instant")
                - found.mean(delay, "step", OURS, "regret_instant")
            )
            text = f"{world}: at most 3 points more regret than without (step)"
            rows.append(Row("7", text, f"{more:+.1f} points", more <= 3.0))
    if "liar" in worlds:
        share = 100.0 * found.seeds(delay, "liar", OURS, "liar_share")
        best = 100.0 * found.mean(delay, "liar", INSTANT, "liar_share")
        rows.append(
            Row(
                "7",
                "a lying provider has at most 5 % of its service's traffic after 10 ticks",
                f"{share.mean():.1f} % (most {share.max():.1f}); the clairvoyant's is {best:.1f} %",
                bool(share.mean() <= 5.0),
            )
        )
    return rows


def _coverage(found: Found, delay: int) -> Row:
    values = {w: 100.0 * found.mean(delay, w, OURS, "coverage_90") for w in found.worlds(delay)}
    missed = [f"{w} ({v:.1f} %)" for w, v in values.items() if not 85.0 <= v <= 95.0]
    return Row(
        "8",
        "90 % intervals cover 85 to 95 %",
        f"{min(values.values()):.1f} to {max(values.values()):.1f} %; "
        + _verdict(missed, len(values)),
        not missed,
    )
