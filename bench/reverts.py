"""How soon the engine takes back what did harm, and how often what did none.

``python -m bench.reverts [--seeds N] [--delay 0,2,5] [--json]``. The worlds are those of
``tests/scenario/harm.py``. In the harmful one a provider becomes attractive and does not stand
what it is then given: beyond a cliff it is four times as slow. In the harmless ones something
else changes. A decision made after a tick is in force from the next one on, or ``delay`` later.

Harm is first observable in the first tick in which the load in force is beyond the cliff. It is
*reverted* when the engine says so and freezes who gained. Ordinary moves end it as well: beside
that stands the longest stretch of ticks that the load in force was beyond the cliff.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.arguments import as_text, comma_separated, integer, positive_integer
from bench.output import dumped
from tests.scenario.harm import BASELINE, HARMLESS, Cliff, get_cheap_and_break, three
from tests.scenario.world import Plane, RecordingActuator
from xds_server.model.ids import ProviderName
from xds_server.model.snapshot import Overlay

SEEDS: Final = 20
DELAYS: Final = (0, 2, 5)
WITHIN: Final = 3
"""Ticks from the first observable harm."""
_DEMAND_RPS: Final = 150.0
_SETTLING: Final = 25
_WATCHED: Final = 40
_BREAKS: Final[ProviderName] = "managed"


@dataclass
class Late(RecordingActuator):
    """Weights that take their time: ``delay`` ticks more than the next one."""

    delay: int = 0
    at_s: list[float] = field(default_factory=list)

    def publish(self, overlay: Overlay, now_s: float) -> None:
        """Keep weights with the time at which they were decided."""
        super().publish(overlay, now_s)
        self.at_s.append(now_s)

    def in_force(self, now_s: float) -> Overlay | None:
        """Return the newest weights that have arrived."""
        arrived = [o for o, at in zip(self.overlays, self.at_s, strict=True) if at <= now_s]
        return arrived[-1] if arrived else None


class LatePlane(Plane):
    """The mesh of ``tests/scenario``, with feedback that takes its time."""

    def __init__(self, seed: int, delay: int) -> None:
        super().__init__(three(), _DEMAND_RPS, baseline=BASELINE, seed=seed)
        self.delay = delay
        self.actuator = self.late = Late(delay=delay)

    @property
    def shares(self) -> dict[str, float]:
        """What is in force; the baseline before any weights have arrived."""
        overlay = self.late.in_force(self.now_s - self.delay)
        if overlay is None:
            named = self.mesh.services["search"].providers
            weights = {p.name: p.baseline_weight for p in named}
        else:
            (group,) = overlay.weights.values()
            weights = dict(group["search"])
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    @property
    def pushes(self) -> int:
        """How often weights were published."""
        return len(self.late.overlays)


@dataclass(frozen=True, slots=True)
class Harmed:
    """What became of one harmful world; ticks from the first observable harm, None: never."""

    began: bool
    reverted_after: int | None
    longest: int  # stretch of ticks beyond the cliff
    false: int  # reverts before there was harm, or of somebody else
    right: int
    pushes: int


def harmful(seed: int, delay: int) -> Harmed:
    """Run the world in which a move does harm."""
    plane = LatePlane(seed, delay)
    plane.step(_SETTLING)
    before = plane.pushes
    get_cheap_and_break(plane)
    cliff = plane.stations[_BREAKS]
    assert isinstance(cliff, Cliff)
    began: int | None = None
    reverted: int | None = None
    false = right = lasting = longest = 0
    for tick in range(_WATCHED):
        beyond = plane.rps * plane.shares[_BREAKS] > cliff.cliff_rps
        if began is None and beyond:
            began = tick
        lasting = lasting + 1 if beyond else 0
        longest = max(longest, lasting)
        plane.step()
        assert plane.last is not None
        for what in plane.last.reverted:
            if began is None or what.frozen != (_BREAKS,):
                false += 1
                continue
            right += 1
            reverted = tick - began if reverted is None else reverted
    return Harmed(began is not None, reverted, longest, false, right, plane.pushes - before)


def harmless(event: Callable[[Plane], None], seed: int, delay: int) -> tuple[int, int]:
    """Run a world in which something else happens; reverts, all of them false, and pushes."""
    plane = LatePlane(seed, delay)
    plane.step(_SETTLING)
    before, false = plane.pushes, 0
    event(plane)
    for _ in range(_WATCHED):
        plane.step()
        assert plane.last is not None
        false += len(plane.last.reverted)
    return false, plane.pushes - before


def measure(seeds: int, delay: int) -> dict[str, object]:
    """Run every seed of every world under one delay."""
    harms = [harmful(seed, delay) for seed in range(seeds)]
    others = {e.__name__: [harmless(e, seed, delay) for seed in range(seeds)] for e in HARMLESS}
    met = [h for h in harms if h.began]
    caught = [h for h in met if h.reverted_after is not None]
    in_time = [h for h in caught if (h.reverted_after or 0) <= WITHIN]
    short = [h for h in met if h.longest <= WITHIN + delay]
    right = sum(h.right for h in harms)
    false = sum(h.false for h in harms) + sum(f for runs in others.values() for f, _ in runs)
    pushes = sum(h.pushes for h in harms) + sum(p for runs in others.values() for _, p in runs)
    return {
        "delay": delay,
        "harmed": len(met),
        "reverted": len(caught),
        "reverted_within_3": len(in_time),
        "never_longer_than_3_and_delay": len(short),
        "reverted_after": [h.reverted_after for h in met],
        "longest": [h.longest for h in met],
        "right_reverts": right,
        "false_reverts": false,
        "false_by_world": {
            name: n for name, runs in others.items() if (n := sum(f for f, _ in runs))
        },
        "harmless_runs": sum(len(runs) for runs in others.values()),
        "pushes": pushes,
        "recall": len(caught) / len(met) if met else None,
        "precision": right / (right + false) if right + false else None,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.reverts", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--seeds", type=positive_integer, default=SEEDS)
    parser.add_argument(
        "--delay", type=comma_separated(integer(0, 100)), default=DELAYS, help="ticks, e.g. 0,2,5"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    runs = [measure(options.seeds, delay) for delay in options.delay]
    result = {
        "command": f"python -m bench.reverts --seeds {options.seeds} "
        f"--delay {as_text(options.delay)}",
        "seconds": round(time.perf_counter() - begun),
        "seeds": options.seeds,
        "delays": runs,
    }
    if options.json:
        print(dumped(result))
        return
    for run in runs:
        print(" ".join(f"{key} {value}" for key, value in run.items()))


if __name__ == "__main__":
    main()
