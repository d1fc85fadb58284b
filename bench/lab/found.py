"""What several runs of the laboratory found together: means over seeds, best rivals."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.lab.figures import DELAYED, INSTANT

OURS: Final = "ours"
ORACLES: Final = frozenset((INSTANT, DELAYED))
_NEVER: Final = frozenset(("converged_ticks",))
"""Figures that are infinite, not NaN, where a file has null: it never happened."""
_KEYS: Final = frozenset(("command", "machine", "runs", "seconds", "seeds", "size", "ticks"))
_RUN_KEYS: Final = frozenset(("delay", "event", "policies", "seed", "world"))
_POLICY_KEYS: Final = frozenset(("figures", "series"))


class Found:
    """Figures by (delay, world, policy, seed), of meshes of one size.

    Raises ValueError for files that are not of the laboratory, or not of one another.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.runs: list[dict[str, Any]] = []
        self.meta: list[dict[str, Any]] = []
        self._commands: dict[int, str] = {}
        for file in files:
            loaded = read(file)
            runs = loaded.pop("runs")
            self.runs += runs
            self.meta.append(loaded)
            for run in runs:
                self._commands.setdefault(run["delay"], loaded["command"])
        sizes = {m["size"] for m in self.meta}
        if len(sizes) != 1:
            raise ValueError(f"runs of several sizes cannot be averaged: {sorted(sizes)}")
        keys = [(r["delay"], r["world"], r["seed"]) for r in self.runs]
        if len(set(keys)) != len(keys):
            raise ValueError(f"a world was run twice at size {self.meta[0]['size']}")
        self.size: str = sizes.pop()
        self.delays = sorted({r["delay"] for r in self.runs})

    def command(self, delay: int) -> str:
        """Return what was run for the figures of that delay."""
        return self._commands[delay]

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


def by_size(files: Iterable[Path]) -> dict[str, Found]:
    """Read files of runs; those of one size together, in the order of their first."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(read(file)["size"], []).append(file)
    return {size: Found(group) for size, group in groups.items()}


def read_object(file: Path) -> dict[str, Any]:
    """Read one JSON object. Raises ValueError, with the file's name, for anything else."""
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    if isinstance(found, dict):
        return found
    raise ValueError(f"{file}: no JSON object")


def read(file: Path) -> dict[str, Any]:
    """Read what ``bench.lab --json`` wrote, null as the float that it was.

    Raises ValueError for another file, and for one without runs of the engine.
    """
    loaded = read_object(file)
    runs = loaded.get("runs")
    if not (_has(loaded, _KEYS) and isinstance(runs, list) and all(map(_is_run, runs))):
        raise ValueError(f"{file}: not what python -m bench.lab --json writes")
    if not runs or not all(OURS in run["policies"] for run in runs):
        raise ValueError(f"{file}: no run of {OURS}, so nothing to judge; add it to --policies")
    for run in runs:
        for policy in run["policies"].values():
            policy["figures"] = {
                name: _number(value, np.inf if name in _NEVER else np.nan)
                for name, value in policy["figures"].items()
            }
            policy["series"] = {
                name: np.array(values, dtype=np.float64)  # null is NaN
                for name, values in policy["series"].items()
            }
    return loaded


def _has(what: object, keys: frozenset[str]) -> bool:
    return isinstance(what, dict) and keys <= set(what)


def _is_run(run: Any) -> bool:
    if not _has(run, _RUN_KEYS) or not isinstance(run["policies"], dict):
        return False
    return all(
        _has(p, _POLICY_KEYS) and isinstance(p["figures"], dict) and isinstance(p["series"], dict)
        for p in run["policies"].values()
    )


def _number(value: float | None, null: float) -> float:
    return null if value is None else value
