"""The live view: a screen on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from xds_server.demo.load import Recorder, Sample
from xds_server.demo.observe import Sidecars
from xds_server.demo.report import PriceChange, price_at
from xds_server.demo.story import Story
from xds_server.demo.world import World

REFRESH_S: Final = 0.5
LINE_EVERY_S: Final = 5.0
WINDOW_S: Final = 4.0
"""Latency and failures are those of the last few seconds."""
SHARE_S: Final = 2
WIDTH: Final = 100
_BAR: Final = 20


@dataclass(slots=True)
class Scene:
    """What the view may show of one run; the run writes, the view reads."""

    label: str
    world: World
    story: Story
    recorder: Recorder
    sidecars: Sidecars
    prices: list[PriceChange]
    started_s: float = 0.0
    status: Mapping[str, Any] | None = None
    controller_killed_s: float | None = None  # monotonic; None while it runs

    def now_s(self) -> float:
        """Return the time since the story's start."""
        return time.monotonic() - self.started_s


class View(Protocol):
    """Where the demo shows what it does."""

    def say(self, line: str) -> None:
        """Tell one thing that happened."""
        ...

    def show(self, scene: Scene) -> None:
        """Show the state; called every ``REFRESH_S``."""
        ...

    def close(self) -> None:
        """Give the terminal back."""
        ...


class Screen:
    """Redraws in place on a terminal."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()
        self._last_line = ""
        self._scene: Scene | None = None

    def say(self, line: str) -> None:
        """Show it until the next one."""
        self._last_line = line
        scene = self._scene
        shown = Text(line, style="bold") if scene is None else render(scene, line)
        self._live.update(shown, refresh=True)

    def show(self, scene: Scene) -> None:
        """Draw the whole screen."""
        self._scene = scene
        self._live.update(render(scene, self._last_line), refresh=True)

    def close(self) -> None:
        """Clear the screen."""
        self._live.stop()


class Lines:
    """Prints a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0

    def say(self, line: str) -> None:
        """Print it at once."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, scene: Scene) -> None:
        """Print a summary every ``LINE_EVERY_S``."""
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + LINE_EVERY_S
        self.say(progress_line(scene))

    def close(self) -> None:
        """Nothing is held."""


def make_view(console: Console, *, ui: bool) -> View:
    """Return a screen where there is a terminal and it is wanted, else lines."""
    return Screen(console) if ui and console.is_terminal and sys.stdout.isatty() else Lines(console)


def progress_line(scene: Scene) -> str:
    """Return the state in one line."""
    now_s = scene.now_s()
    recent = _recent(scene, now_s)
    failed = sum(s.failed for s in scene.recorder.samples)
    splits = []
    for application, service in scene.world.services():
        shares = _shares(scene, application, service, now_s)
        split = "/".join(
            f"{100 * shares.get(p, 0.0):.0f}" for p in scene.world.providers_of(service)
        )
        splits.append(f"{application}.{service} {split}")
    event = scene.story.current(now_s)
    return (
        f"{scene.label} {now_s:5.1f} s  {len(recent) / WINDOW_S:4.0f} rps  "
        f"p95 {_quantile_ms(recent, 0.95)} ms  failed {failed}  {'  '.join(splits)}"
        f"{'  [' + event.name + ']' if event else ''}"
    )


def render(scene: Scene, last_line: str = "") -> RenderableType:
    """Return the whole screen, made for 100 columns and 35 lines."""
    now_s = scene.now_s()
    return Group(
        _header(scene, now_s, last_line),
        _instances(scene),
        _providers(scene, now_s),
        _decisions(scene),
        _footer(scene, now_s),
    )


def _header(scene: Scene, now_s: float, last_line: str) -> Panel:
    story = scene.story
    done = int((WIDTH - 4) * min(1.0, now_s / story.duration_s))
    bar = Text("━" * done, style="cyan") + Text("━" * (WIDTH - 4 - done), style="grey37")
    for event in story.events:
        at = min(WIDTH - 5, int((WIDTH - 4) * event.at_s / story.duration_s))
        bar.stylize("bold red" if event.at_s > now_s else "red", at, at + 1)
    current, upcoming = story.current(now_s), story.upcoming(now_s)
    line = Text()
    if current:
        line.append(f"{current.name}", style="bold red")
        line.append(f"  {current.until_s - now_s:.0f} s more")
    else:
        line.append("quiet", style="green")
    if upcoming:
        line.append(f"    next: {upcoming.name} in {upcoming.at_s - now_s:.0f} s", style="dim")
    return Panel(
        Group(bar, line, Text(last_line, style="dim", no_wrap=True)),
        title=f"[bold]{scene.label}[/bold]  {now_s:.0f} / {story.duration_s:.0f} s",
        width=WIDTH,
    )


def _table(*columns: tuple[str, int]) -> Table:
    table = Table(box=None, width=WIDTH, padding=(0, 1), header_style="bold dim")
    for name, width in columns:
        right = name.startswith(" ")
        table.add_column(
            name.strip(), width=width, no_wrap=True, justify="right" if right else "left"
        )
    return table


def _instances(scene: Scene) -> Table:
    table = _table(("instance", 14), ("phase", 16), (" rps", 6), (" p95 ms", 8), ("weights", 40))
    nodes = {n.get("node_id"): n for n in (scene.status or {}).get("nodes", ())}
    for instance in scene.world.instances:
        node = nodes.get(instance.name, {})
        engine = bool(scene.sidecars.runtime.get(instance.name))
        table.add_row(
            instance.name,
            str(node.get("phase", "?")),
            f"{node.get('rps', 0.0):.0f}" if node else "-",
            _ms(node.get("latency_p95_ms")),
            Text("engine's", style="cyan") if engine else Text("baseline", style="yellow"),
        )
    return table


def _providers(scene: Scene, now_s: float) -> Table:
    table = _table(
        ("route", 17), ("provider", 14), (" asked", 6), ("observed", _BAR + 6),
        (" p50", 5), (" p95", 5), (" failed", 6), (" $/M", 5),
    )  # fmt: skip
    recent = _recent(scene, now_s)
    for application, service in scene.world.services():
        shares = _shares(scene, application, service, now_s)
        asked = _asked(scene.status, application, service)
        usd = sum(share * price_at(scene.prices, name, now_s) for name, share in shares.items())
        first = f"{application}.{service}"
        for name in scene.world.providers_of(service):
            mine = [
                s
                for s in recent
                if (s.application, s.service, s.provider) == (application, service, name)
            ]
            failed = sum(s.failed for s in mine)
            table.add_row(
                Text(first, style="bold"),
                name,
                f"{100 * asked[name]:.0f}%" if name in asked else "-",
                _bar(shares.get(name, 0.0)),
                _quantile_ms(mine, 0.5),
                _quantile_ms(mine, 0.95),
                Text(str(failed), style="red" if failed else "dim"),
                f"{price_at(scene.prices, name, now_s):.1f}",
            )
            first = ""
        lost = sum(
            s.failed
            for s in recent
            if (s.application, s.service, s.provider) == (application, service, "")
        )
        paid = f"  ${usd:.2f} per million"
        table.add_row("", Text("unanswered", style="dim"), "", Text(paid, style="dim"), "", "",
                      Text(str(lost), style="red" if lost else "dim"), "")  # fmt: skip
    return table


def _decisions(scene: Scene) -> Table:
    table = _table(("decision", 42), ("why", 26), (" predicted ms", 12), (" SLO ms", 8))
    routes = (scene.status or {}).get("routes", ())
    for route in routes[:6]:
        where = f"{route['application']}.{route['service']} ({route['phase']})"
        table.add_row(
            where,
            str(route.get("hold_reason") or route.get("move") or "-"),
            _ms(route.get("predicted_latency_ms")),
            _ms(route.get("slo_p95_ms")),
        )
    if not routes:
        table.add_row(Text("none known", style="dim"), "", "", "")
    return table


def _footer(scene: Scene, now_s: float) -> Text:
    samples = scene.recorder.samples
    failed = sum(s.failed for s in samples)
    line = Text(f"{len(samples)} requests, ")
    line.append(f"{failed} failed", style="red" if failed else "green")
    line.append(f", p95 now {_quantile_ms(_recent(scene, now_s), 0.95)} ms    ")
    if scene.controller_killed_s is None:
        line.append("controller up", style="green")
        return line
    if not any(scene.sidecars.runtime.values()):
        line.append("controller down, every Envoy on its baseline", style="bold yellow")
        return line
    away_s = time.monotonic() - scene.controller_killed_s
    left_s = max(0.0, scene.world.mesh.engine.weights_ttl_s - away_s)
    line.append(f"controller down, Envoy on baseline in {left_s:.0f} s", style="bold red")
    return line


def _recent(scene: Scene, now_s: float) -> list[Sample]:
    """Return what finished in the last few seconds."""
    since_s = now_s - WINDOW_S
    return [s for s in scene.recorder.recent if s.start_s + s.latency_s >= since_s]


def _shares(scene: Scene, application: str, service: str, now_s: float) -> dict[str, float]:
    names = scene.world.providers_of(service)
    newest = int(now_s)
    attempts = scene.sidecars.counts.attempts
    n = {
        p: sum(attempts.get((newest - d, application, p), 0.0) for d in range(1, SHARE_S + 1))
        for p in names
    }
    total = sum(n.values())
    return {p: v / total for p, v in n.items()} if total else {}


def _asked(status: Mapping[str, Any] | None, application: str, service: str) -> dict[str, float]:
    """Return the shares asked for in the route with most instances."""
    routes = [
        r
        for r in (status or {}).get("routes", ())
        if r["application"] == application and r["service"] == service
    ]
    if not routes:
        return {}
    route = max(routes, key=lambda r: r.get("instances", 0))
    return {p["provider"]: float(p["share"]) for p in route["providers"]}


def _bar(share: float) -> Text:
    full = round(share * _BAR)
    bar = Text("█" * full, style="cyan")
    return bar + Text("░" * (_BAR - full), style="grey37") + Text(f" {100 * share:3.0f}%")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _quantile_ms(samples: Sequence[Sample], ratio: float) -> str:
    answered = [s.latency_s for s in samples if not s.failed]
    return f"{1e3 * float(np.quantile(answered, ratio)):.0f}" if answered else "-"
