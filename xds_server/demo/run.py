"""The demo from its options to its exit code."""

import asyncio
import json
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.table import Table

from xds_server.demo.options import MIN_DURATION_S, DemoOptions
from xds_server.demo.play import Play, Played
from xds_server.demo.processes import DemoError, Processes, find_envoy
from xds_server.demo.report import (
    EventResult,
    Summary,
    event_result,
    summarise,
    unexplained_failures,
)
from xds_server.demo.story import Story, tell
from xds_server.demo.verdicts import Verdict, judge
from xds_server.demo.view import View, make_view
from xds_server.demo.world import World, make_world
from xds_server.model.topology import Mode

INTERRUPTED: Final = 130
TERMINATED: Final = 143
LINE_WIDTH: Final = 110
"""Of tables where there is no terminal to ask."""


@dataclass(frozen=True, slots=True)
class Result:
    """Both runs, compared."""

    adaptive: Summary
    static: Summary
    events: tuple[EventResult, ...]
    static_events: tuple[EventResult, ...]
    played: Played
    unexplained: int
    verdicts: tuple[Verdict, ...]


def run_demo(options: DemoOptions) -> int:
    """Play the story twice, compare, and return the exit code.

    0: every claim that was judged held. 1: one did not, or a child died. 2: it cannot run
    as asked. 130, 143: interrupted, terminated. No child outlives the call.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=LINE_WIDTH)
    try:
        envoy = _check(options)
        return _run(options, envoy, console)
    except DemoError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def _check(options: DemoOptions) -> Path:
    """Return the Envoy binary; DemoError when the demo cannot run as asked."""
    if options.duration_s < MIN_DURATION_S:
        message = f"a story of {options.duration_s:g} s is too short to be told"
        raise DemoError(f"{message}; --duration is at least {MIN_DURATION_S:g}", exit_code=2)
    if options.report is not None and options.report.is_dir():
        message = f"{options.report} is a directory; name a file for the report"
        raise DemoError(message, exit_code=2)
    if options.report is not None and not options.report.resolve().parent.is_dir():
        message = f"there is no directory {options.report.resolve().parent} for the report"
        raise DemoError(f"{message}; create it first", exit_code=2)
    return find_envoy()


def _run(options: DemoOptions, envoy: Path, console: Console) -> int:
    view = make_view(console, ui=options.ui)
    with tempfile.TemporaryDirectory(prefix="xds-demo-") as directory:
        processes = Processes(Path(directory))
        demo = _Demo(options, envoy, processes, Path(directory), view)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                code = runner.run(demo.run())
        finally:
            processes.kill_all()
            view.close()
    if demo.result is None:
        return code
    show(console, demo.result)
    if options.report is not None:
        options.report.write_text(json.dumps(as_report(demo.result), indent=2) + "\n")
        console.print(f"report: {options.report}", markup=False, highlight=False, soft_wrap=True)
    return code


class _Demo:
    """Both runs, with the signals that may end them."""

    def __init__(
        self,
        options: DemoOptions,
        envoy: Path,
        processes: Processes,
        directory: Path,
        view: View,
    ) -> None:
        self._options, self._envoy, self._processes = options, envoy, processes
        self._directory, self._view = directory, view
        self.result: Result | None = None

    async def run(self) -> int:
        task = asyncio.current_task()
        assert task is not None
        terminated = False

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, terminate)
        try:
            self.result = await self._both()
        except asyncio.CancelledError:
            if terminated:
                return TERMINATED
            raise
        except BaseExceptionGroup as group:
            # Of what went wrong together, a dead child explains the rest.
            error = first_demo_error(group)
            if error is None:
                raise
            raise error from group
        return 0 if all(v.held is not False for v in self.result.verdicts) else 1

    async def _both(self) -> Result:
        world, adaptive = await self._play("adaptive weights (1 of 2)", Mode.ENFORCE)
        _, static = await self._play("static weights (2 of 2)", Mode.OBSERVE)
        story = self._story(world)
        return compare(world, story, adaptive, static)

    def _story(self, world: World) -> Story:
        return tell(self._options.duration_s, world.mesh.engine.weights_ttl_s)

    async def _play(self, label: str, mode: Mode) -> tuple[World, Played]:
        world = make_world(mode)
        play = Play(
            label,
            world,
            self._story(world),
            self._options.seed,
            self._envoy,
            self._processes,
            self._directory,
            self._view,
        )
        try:
            return world, await play.run()
        finally:
            await self._processes.stop()


def first_demo_error(group: BaseExceptionGroup[BaseException]) -> DemoError | None:
    """Return the first DemoError in a group, however deep."""
    for error in group.exceptions:
        if isinstance(error, DemoError):
            return error
        if isinstance(error, BaseExceptionGroup):
            inner = first_demo_error(error)
            if inner is not None:
                return inner
    return None


def compare(world: World, story: Story, adaptive: Played, static: Played) -> Result:
    """Judge both runs of a story."""
    slo_s = world.slo_s()
    service_of = {p.name: p.service for p in world.mesh.providers.values()}
    better, worse = (
        summarise(p.recorder.samples, p.counts, p.prices, slo_s, p.recorder.unsent)
        for p in (adaptive, static)
    )
    affected = [e for e in story.events if e.provider]

    def results(played: Played) -> tuple[EventResult, ...]:
        return tuple(
            event_result(e, story, played.counts, world.providers_of(service_of[e.provider]))
            for e in affected
        )

    events = results(adaptive)
    unexplained = unexplained_failures(
        adaptive.recorder.samples, story, adaptive.counts, service_of
    )
    ttl_s = world.mesh.engine.weights_ttl_s
    verdicts = judge(story, better, worse, events, adaptive.dead_man, unexplained, ttl_s)
    return Result(better, worse, events, results(static), adaptive, unexplained, verdicts)


def as_report(result: Result) -> dict[str, Any]:
    """Return the report as JSON's own types; its keys are documented on the records."""
    return {
        "adaptive": asdict(result.adaptive),
        "static": asdict(result.static),
        "events": [asdict(e) for e in result.events],
        "static_events": [asdict(e) for e in result.static_events],
        "dead_man": asdict(result.played.dead_man),
        "failed_without_provider_fault": result.unexplained,
        "weight_changes_seen": result.played.pushes,
        "story": [asdict(v) for v in result.verdicts],
    }


def show(console: Console, result: Result) -> None:
    """Print the comparison and the verdicts."""
    table = Table(title="The same load and the same events, twice", title_justify="left")
    table.add_column("")
    table.add_column("adaptive", justify="right")
    table.add_column("static", justify="right")
    for name, adaptive in asdict(result.adaptive).items():
        table.add_row(name, f"{adaptive:g}", f"{asdict(result.static)[name]:g}")
    console.print(table)
    console.print(_verdict_table(result.verdicts))
    unjudged = sum(v.held is None for v in result.verdicts)
    if unjudged:
        console.print(f"{unjudged} claims not judged: the run was too short; drop --duration.")


def _verdict_table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(title="The story", title_justify="left")
    for name in ("", "claim", "measured", "target"):
        table.add_column(name)
    words = {True: "[green]held[/]", False: "[bold red]NOT HELD[/]", None: "[yellow]not judged[/]"}
    for v in verdicts:
        table.add_row(words[v.held], v.claim, v.measured, v.target)
    return table
