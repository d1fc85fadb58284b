"""What each world showed, as tables in Markdown: figures, what is possible there, rivals, sizes."""

from typing import Final

import numpy as np

from bench.lab.figures import DELAYED
from bench.lab.found import OURS, Found
from bench.lab.table import reverts, saved_percent, slo_seconds

_YARDSTICKS: Final = (
    "Flips per route-hour: where the truth alternates, so does who knows it. SLO seconds: the "
    "best rival is the one with the lowest objective; the one with the fewest pays what stands "
    "behind it, in per cent of our dollars. Dollars: below the cheapest latency-only policy that "
    "is as fast (p99) as ours; the clairvoyant minimises the objective."
)

_YARDSTICKS_HEADER: Final = (
    "| world | flips steady: ours / delayed clairvoyant | flips event: the same "
    "| SLO s: ours / best rival / fewest of anyone "
    "| % fewer dollars: ours / instant clairvoyant | reverts / pushes of a route |"
)
_SIZES_HEADER: Final = (
    "| size | world, D | seeds | regret to instant, % | to delayed | converged | overshoot, % "
    "| flips event: ours / delayed clairvoyant | in 90 % interval | tick p50 / p99 ms | by |"
)


def code(command: str) -> str:
    """Set a command as code; a dash is none."""
    return "-" if command == "-" else f"`{command}`"


def world_tables(found: Found, delay: int) -> list[str]:
    """Every table of one delay; nothing where it was not run."""
    worlds = found.worlds(delay)
    if not worlds:
        return []
    header = (
        "| world | regret to instant | to delayed | steady, before | p99 tick | converged "
        "| p50 / p99 ms | $ per million | pushes | best rival, its regret |"
    )
    return [
        f"## Worlds, D = {delay}",
        "",
        (
            f"By `{found.command(delay)}`. Regret in per cent of the clairvoyant's cost, from the "
            "event to the end."
        ),
        "",
        header,
        "|---|---|---|---|---|---|---|---|---|---|",
        *[_world(found, delay, world) for world in worlds],
        "",
        *_yardsticks(found, delay, worlds),
        *_rivals(found, delay, worlds),
    ]


def _world(found: Found, delay: int, world: str) -> str:
    def mean(name: str, scale: float = 1.0, policy: str = OURS) -> float:
        return scale * found.mean(delay, world, policy, name)

    rival = "-"
    if found.rivals(delay, world):
        name, _ = found.best(delay, world, "cost_ms")
        rival = f"{name}, {mean('regret_instant', 100.0, name):.0f}"
    return (
        f"| {world} | {_spread(found, delay, world, 'regret_instant')} "
        f"| {_spread(found, delay, world, 'regret_delayed')} "
        f"| {mean('regret_instant_steady', 100.0):.1f} "
        f"| {mean('regret_instant_p99_tick', 100.0):.0f} | {_converged(found, delay, world)} "
        f"| {mean('p50_ms'):.0f} / {mean('p99_ms'):.0f} | {mean('usd_per_million'):.2f} "
        f"| {mean('pushes_per_route_minute'):.1f} | {rival} |"
    )


def _spread(found: Found, delay: int, world: str, name: str) -> str:
    values = 100.0 * found.seeds(delay, world, OURS, name)
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})"


def _converged(found: Found, delay: int, world: str) -> str:
    ticks = float(np.median(found.seeds(delay, world, OURS, "converged_ticks")))
    return "never" if np.isinf(ticks) else f"{ticks:.0f}"


def _yardsticks(found: Found, delay: int, worlds: list[str]) -> list[str]:
    """Beside ours, what others reach in the same world: what is possible there."""
    return [
        f"### What is possible in these worlds, D = {delay}",
        "",
        _YARDSTICKS,
        "",
        _YARDSTICKS_HEADER,
        "|---|---|---|---|---|---|",
        *[_yardstick(found, delay, world) for world in worlds],
        "",
    ]


def _yardstick(found: Found, delay: int, world: str) -> str:
    def flips(when: str) -> str:
        name = f"flips_per_route_hour_{when}"
        return " / ".join(f"{found.mean(delay, world, p, name):.1f}" for p in (OURS, DELAYED))

    slo = dollars = "-"
    if found.rivals(delay, world):
        ours, best, best_s, fewest, fewest_s = slo_seconds(found, delay, world)
        mine, theirs = (found.mean(delay, world, p, "usd_per_million") for p in (OURS, fewest))
        slo = (
            f"{ours:.2g} / {best_s:.2g} ({best}) / {fewest_s:.2g} ({fewest}, "
            f"{100.0 * (theirs / mine - 1.0):+.0f} %)"
        )
        saved = saved_percent(found, delay, world)
        if saved is not None:
            dollars = f"{saved[0]:.0f} / {saved[1]:.0f}"
    back, pushed = reverts(found, delay, world)
    return (
        f"| {world} | {flips('steady')} | {flips('event')} | {slo} | {dollars} "
        f"| {back:.0f} / {pushed:.0f} |"
    )


def _rivals(found: Found, delay: int, worlds: list[str]) -> list[str]:
    policies = found.policies(delay, worlds[0])
    order = [OURS, DELAYED, *found.rivals(delay, worlds[0])]
    shown = [p for p in order if p in policies]
    regret = {w: [100.0 * found.mean(delay, w, p, "regret_instant") for p in shown] for w in worlds}
    medians = np.median(list(regret.values()), axis=0)
    return [
        f"### Regret of every policy to the instant clairvoyant, %, D = {delay}",
        "",
        f"| world | {' | '.join(shown)} |",
        f"|---{'|---' * len(shown)}|",
        *[f"| {w} | {' | '.join(f'{v:.0f}' for v in values)} |" for w, values in regret.items()],
        f"| median | {' | '.join(f'{v:.0f}' for v in medians)} |",
        "",
    ]


def larger_table(sizes: list[Found]) -> list[str]:
    """What of the small mesh holds in larger ones."""
    if not sizes:
        return []
    return [
        "## Larger meshes",
        "",
        "Without rivals; `tick` is that of the engine alone while the laboratory runs beside it.",
        "",
        _SIZES_HEADER,
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *[
            _larger_world(found, delay, world)
            for found in sizes
            for delay in found.delays
            for world in found.worlds(delay)
        ],
        "",
    ]


def _larger_world(found: Found, delay: int, world: str) -> str:
    def mean(name: str, scale: float = 1.0, policy: str = OURS) -> float:
        return scale * found.mean(delay, world, policy, name)

    flips = "flips_per_route_hour_event"
    cells = [
        found.size,
        f"{world}, {delay}",
        f"{len(found.of(delay, world))}",
        _spread(found, delay, world, "regret_instant"),
        _spread(found, delay, world, "regret_delayed"),
        _converged(found, delay, world),
        _or_dash(mean("overshoot", 100.0)),
        f"{mean(flips):.1f} / {mean(flips, policy=DELAYED):.1f}",
        f"{mean('coverage_90', 100.0):.1f} %",
        f"{mean('tick_p50_ms'):.0f} / {mean('tick_p99_ms'):.0f}",
        code(found.command(delay)),
    ]
    return f"| {' | '.join(cells)} |"


def _or_dash(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f}"
