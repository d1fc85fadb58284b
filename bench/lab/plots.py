"""One picture per world: shares, latency, cost and regret over time."""

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bench.lab.figures import DELAYED, INSTANT
from bench.lab.found import OURS, Found
from xds_server.core.tables import Floats

_SHOWN_FROM: Final = 40
_COLOURS: Final = {OURS: "#c0392b", INSTANT: "#222222", DELAYED: "#888888", "rival": "#2874a6"}
_MOST_BYTES: Final = 80_000


def write_plots(found: Found, delay: int, folder: Path) -> list[str]:
    """Draw every world; returns the names of the worlds drawn."""
    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for world in found.worlds(delay):
        if {OURS, INSTANT, DELAYED} <= set(found.policies(delay, world)):
            _draw(found, delay, world, folder / f"{world}.png")
            drawn.append(world)
    return drawn


def _draw(found: Found, delay: int, world: str, file: Path) -> None:
    figure = Figure(figsize=(9.0, 5.4), dpi=80, layout="constrained")
    axes = figure.subplots(2, 2)
    event = found.of(delay, world)[0]["event"]
    lines = {p: _COLOURS[p] for p in (INSTANT, DELAYED, OURS)}
    names = dict(zip(lines, lines, strict=True))
    if found.rivals(delay, world):
        rival, _ = found.best(delay, world, "cost_ms")
        lines[rival], names[rival] = _COLOURS["rival"], f"{rival} (best rival)"
    reference = _mean(found, delay, world, INSTANT, "cost_ms")
    ticks = np.arange(len(reference))
    for policy, colour in lines.items():
        wide = 1.6 if policy == OURS else 1.0
        for axis, column in ((axes[0][1], "latency_ms"), (axes[1][0], "usd_per_million")):
            values = _mean(found, delay, world, policy, column)
            axis.plot(ticks, values, color=colour, lw=wide, label=names[policy])
        if policy != INSTANT:
            regret = 100.0 * (_mean(found, delay, world, policy, "cost_ms") / reference - 1.0)
            axes[1][1].plot(ticks, regret, color=colour, lw=wide)
    _shares(axes[0][0], found.of(delay, world)[0]["policies"])
    titles = (
        ("shares of four providers, % of all (seed 1; dashed: clairvoyant)", "mean latency, ms"),
        ("dollars per million requests", "regret to the instant clairvoyant, %"),
    )
    for row, column in np.ndindex(2, 2):
        axis = axes[row][column]
        axis.set_title(titles[row][column], fontsize=9)
        axis.axvline(event, color="#bbbbbb", lw=0.8)
        axis.set_xlim(_SHOWN_FROM * len(ticks) / 160, len(ticks) - 1)
        axis.tick_params(labelsize=8)
        _limit(axis)
    axes[0][1].legend(fontsize=7, frameon=False)
    figure.suptitle(f"{world}, D = {delay}", fontsize=10)
    figure.savefig(file)
    _shrink(file)


def _limit(axis: Any) -> None:
    """Leave what happened before the part that is shown, and single peaks, out of the scale."""
    low, high = axis.get_xlim()
    seen = []
    for line in axis.get_lines():
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        if len(x) > 2:
            seen.append(y[(x >= low) & (x <= high)])
    if seen:
        values = np.concatenate(seen)
        values = values[np.isfinite(values)]
        if not len(values):
            return
        bottom, top = float(values.min()), float(np.percentile(values, 99.5))
        room = 0.08 * max(top - bottom, 1e-3)
        axis.set_ylim(bottom - room, top + room)


def _shares(axis: Any, policies: dict[str, Any]) -> None:
    for policy, style in ((INSTANT, "--"), (OURS, "-")):
        shares = 100.0 * np.array(policies[policy]["series"]["shares"])
        for k in range(shares.shape[1]):
            axis.plot(shares[:, k], style, color=f"C{k}", lw=1.2 if style == "-" else 0.8)


def _mean(found: Found, delay: int, world: str, policy: str, column: str) -> Floats:
    """(T,) mean over seeds."""
    values: Floats = np.mean(
        [r["policies"][policy]["series"][column] for r in found.of(delay, world)], axis=0
    )
    return values


def _shrink(file: Path) -> None:
    """Keep 48 colours: a third of the bytes."""
    with Image.open(file) as picture:
        small = picture.convert("RGB").quantize(48)
    small.save(file, optimize=True)
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, more than {_MOST_BYTES}")
