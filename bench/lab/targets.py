"""The targets of the decision core, and what a row of their table is."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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

TARGETS: Final[dict[str, tuple[str, str]]] = {
    "1-tick": ("1", "decision tick at L: p50 <= 45 ms, p99 <= 80 ms on one core"),
    "1-million": ("1", "a tick over 1 M pairs <= 600 ms"),
    "1-growth": ("1", "growth linear: at most x 12.6 (10 to the 1.1) for ten times the pairs"),
    "2-gap": ("2", "relative gap to the oracle <= 0.5 % warm, on every random instance"),
    "3-late": ("3", "mean regret to the delayed clairvoyant <= 5 % in every world"),
    **{
        f"3-{world}": ("3", f"{world}, D = 2: regret to the instant clairvoyant <= {limit:g} %")
        for world, limit in INSTANT_LIMITS.items()
    },
    "4-objective": (
        "4",
        "a lower objective than the best policy that is not clairvoyant, in every world",
    ),
    "4-faster": ("4", "faster than every policy that is no dearer, in every world"),
    "4-dollars": (
        "4",
        "dollars >= 25 % below every latency-only policy whose p99 is at most 1.1 x ours",
    ),
    "5-converged": (
        "5",
        "within 10 % of the instant clairvoyant's cost D + 4 ticks after the event",
    ),
    "5-overshoot": ("5", "overshoot <= 10 %"),
    "5-flips-steady": ("5", "flips, steady: <= 4 per route-hour"),
    "5-flips-event": ("5", "flips, events: <= 12 per route-hour"),
    "6-slo": (
        "6",
        "SLO-violation minutes <= 1/4 of those of the best policy that is not clairvoyant",
    ),
    "7-telemetry_dropped": (
        "7",
        "telemetry_dropped: at most 3 points more regret than without (step)",
    ),
    "7-telemetry_stale": (
        "7",
        "telemetry_stale: at most 3 points more regret than without (step)",
    ),
    "7-liar": ("7", "a lying provider has at most 5 % of its service's traffic after 10 ticks"),
    "8-coverage": ("8", "90 % intervals cover 85 to 95 %"),
    "8-revert": ("8", "a harmful change reverted within 3 ticks of the first observable harm"),
    "8-false": ("8", "false reverts < 2 % of pushes"),
    "9-explained": ("9", "every push explained by terms that sum to its gain within 1 %"),
    "10-detectors": (
        "10",
        "a shift of 30 % found within 3 ticks; one false alarm per application and day",
    ),
    "slate": ("", "SLATE's case: mean error <= 3 requests/s within 20 ticks"),
}
"""Number and words of each, by a key of its own."""


@dataclass(frozen=True, slots=True)
class Row:
    """One target beside what was measured."""

    key: str
    measured: str
    hit: bool | None  # None: not measured
    command: str
    case: str = ""
    """Which of its cases: a delay, or which worlds."""

    @property
    def number(self) -> str:
        """Its number in the specification."""
        return TARGETS[self.key][0]

    @property
    def target(self) -> str:
        """Its words, with the case."""
        words = TARGETS[self.key][1]
        return f"{self.case}: {words}" if self.case else words


def all_targets(rows: Iterable[Row]) -> list[Row]:
    """Put rows in the order of the targets; those that nobody measured say so."""
    found = list(rows)
    return [
        row
        for key in TARGETS
        for row in ([r for r in found if r.key == key] or [Row(key, "not in this run", None, "-")])
    ]


def remarks() -> dict[str, str]:
    """Why a target is missed and what was tried, by key; said only while it is missed."""
    return tomllib.loads(Path(__file__).with_name("remarks.toml").read_text())
