"""History for a terminal: a table, plots, lists of decisions and anomalies."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import plotext
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xds_server.admin.cells import move

PLOTTED: Final = {"latency_p95_ms": "95th percentile, ms", "rps": "requests per second"}
PLOT_HEIGHT: Final = 14
PLOT_WIDTH: Final = 110
_TICKS: Final = 5
_PALETTE: Final = (12, 10, 9, 14, 13, 11)
"""Colours of plotext's lines, in turn."""
_LETTERS: Final = "ABCDEF"
"""Markers of lines where there are no colours."""
_LINES_MAX: Final = len(_PALETTE)

_COLUMNS: Final = (
    ("requests", "requests", "{:.0f}", 1.0),
    ("rps", "per s", "{:.1f}", 1.0),
    ("share", "share", "{:.1f}%", 100.0),
    ("error_ratio", "errors", "{:.2f}%", 100.0),
    ("latency_ms", "mean ms", "{:.1f}", 1.0),
    ("latency_p50_ms", "p50", "{:.1f}", 1.0),
    ("latency_p95_ms", "p95", "{:.1f}", 1.0),
    ("latency_p99_ms", "p99", "{:.1f}", 1.0),
    ("in_flight", "in flight", "{:.1f}", 1.0),
    ("utilisation_ratio", "utilised", "{:.0f}%", 100.0),
    ("capacity_rps", "capacity/s", "{:.0f}", 1.0),
    ("price_per_million_usd", "$/M", "{:.2f}", 1.0),
    ("asked_share", "asked", "{:.1f}%", 100.0),
)


def render_history(question: str, data: Mapping[str, Any], *, color: bool) -> RenderableType:
    """Return the answer to one of ``admin.history.QUESTIONS``."""
    if question == "points":
        return Group(*render_points(data, color=color))
    return Group(*(render_decisions if question == "decisions" else render_anomalies)(data))


def render_points(data: Mapping[str, Any], *, color: bool) -> Iterator[RenderableType]:
    """Yield a table of totals, and a plot per measure over time, of the busiest providers."""
    of = f" called by {data['application']}" if data["application"] else ""
    span = f"{_time(data['since_s'])} to {_time(data['until_s'])} UTC"
    yield Text(f"{data['service']}{of}, {span}, by {data['resolution']}")
    shown = [c for c in _COLUMNS if any(s["total"][c[0]] is not None for s in data["series"])]
    table = Table(box=None, pad_edge=False)
    table.add_column("provider")
    for _, title, _, _ in shown:
        table.add_column(title, justify="right")
    for series in data["series"]:
        cells = [_cell(series["total"][name], form, factor) for name, _, form, factor in shown]
        table.add_row(series["provider"], *cells)
    yield table
    if not data["series"]:
        yield Text("nothing was written about it in this time")
    busiest = sorted(data["series"], key=lambda s: -(s["total"]["requests"] or 0.0))[:_LINES_MAX]
    for name, title in PLOTTED.items():
        lines = [(s["provider"], _known(s["at_s"], s["columns"][name])) for s in busiest]
        drawn = [(provider, points) for provider, points in lines if len(points) > 1]
        if drawn:
            yield Text()
            yield Text.from_ansi(_plot(title, [points for _, points in drawn], color=color))
            yield _legend([provider for provider, _ in drawn], color=color)


def render_decisions(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield a table, newest last."""
    yield Text(f"decisions about {data['service']} since {_time(data['since_s'])} UTC")
    table = Table(box=None, pad_edge=False)
    for title in ("time", "application", "phase", "locality", "move", "weights", "gain ms",
                  "mostly", "forecast ms", "if held", "$/M", "if held"):  # fmt: skip
        table.add_column(title)
    for row in data["decisions"]:
        where = "/".join(p for p in (row["region"], row["zone"], row["sub_zone"]) if p) or "-"
        weights = " ".join(f"{name} {w / 100:.1f}%" for name, w in sorted(row["weights"].items()))
        table.add_row(
            _time(row["at_s"]),
            row["application"],
            row["phase"],
            where,
            move(row),
            weights,
            _cell(row["gain_ms"], "{:.2f}"),
            _mostly(row["gain_terms"]),
            _cell(row["predicted_s"], "{:.1f}", 1e3),
            _cell(row["hold_predicted_s"], "{:.1f}", 1e3),
            _cell(row["usd_per_million"], "{:.2f}"),
            _cell(row["hold_usd_per_million"], "{:.2f}"),
        )
    yield table


def _mostly(terms: Mapping[str, float]) -> str:
    """Return the term that a gain is most of, and the one that it costs most."""
    best, worst = (pick(terms, key=terms.__getitem__, default="") for pick in (max, min))
    told = [name for name in (best, worst) if name and abs(terms[name]) >= 0.005]
    return ", ".join(f"{name} {terms[name]:+.2f}" for name in dict.fromkeys(told)) or "-"


def render_anomalies(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield a table, newest last."""
    yield Text(f"anomalies about {data['service']} since {_time(data['since_s'])} UTC")
    table = Table(box=None, pad_edge=False)
    for title in ("time", "state", "node", "application", "phase", "band", "value", "expected"):
        table.add_column(title)
    for row in data["anomalies"]:
        band = row["band"] + (f" of {row['service']}" if row["service"] else "")
        table.add_row(
            _time(row["at_s"]),
            row["state"],
            row["node_id"],
            row["application"],
            row["phase"],
            band,
            _cell(row["value"], "{:.4g}"),
            f"{row['low']:.4g} to {row['high']:.4g}",
        )
    yield table


def _legend(names: Sequence[str], *, color: bool) -> Text:
    text = Text("   ")
    for i, name in enumerate(names):
        text.append("──" if color else _LETTERS[i], style=f"color({_PALETTE[i]})")
        text.append(f" {name}   ")
    return text


def _plot(title: str, lines: Iterable[Sequence[tuple[float, float]]], *, color: bool) -> str:
    figure: Any = plotext.figure  # one per process, and untyped
    figure.clear()
    figure.theme("simple")
    figure.plot_size(PLOT_WIDTH, PLOT_HEIGHT)
    times: list[float] = []
    for points, letter in zip(lines, _LETTERS, strict=False):
        at_s = [at for at, _ in points]
        marker = "braille" if color else letter
        figure.draw(figure.signal(at_s, [value for _, value in points], marker=marker).lines())
        times += at_s
    first, last = min(times), max(times)
    ticks = [first + (last - first) * i / (_TICKS - 1) for i in range(_TICKS)]
    figure.ruler("x", "lower").ticks(ticks, [_time(t, last - first) for t in ticks])
    figure.title(title)
    return str(figure.build().string(not color))


def _known(at_s: Sequence[float], values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(at, v) for at, v in zip(at_s, values, strict=True) if v is not None]


def _cell(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else form.format(factor * value)


def _time(at_s: float, span_s: float = 0.0) -> str:
    day_too = "%m-%d %H:%M" if span_s > 86_400.0 else "%H:%M:%S" if span_s else "%Y-%m-%d %H:%M:%S"
    return datetime.fromtimestamp(at_s, UTC).strftime(day_too)
