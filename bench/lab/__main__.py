"""``python -m bench.lab``: every world, every policy, every seed; figures as JSON."""

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from bench.arguments import comma_separated, file_to_write, integer, name_of, positive_integer
from bench.lab.figures import INSTANT, LEAST_TICKS, figures
from bench.lab.layout import SIZES
from bench.lab.policies import POLICIES
from bench.lab.run import Series, run
from bench.lab.worlds import TICKS, WORLDS
from bench.output import dumped

_DRAWN = ("ours", INSTANT)
"""Policies whose shares are drawn."""
_Job = tuple[str, tuple[str, ...], str, int, int, int]


def main(arguments: list[str] | None = None) -> None:
    """Parse, run, write."""
    options = _parse(arguments)
    jobs: list[_Job] = [
        (world, options.policies, options.size, delay, seed, options.ticks)
        for delay in options.delay
        for world in options.worlds
        for seed in range(1, options.seeds + 1)
    ]
    begun = time.perf_counter()
    results = []
    for done in _all(jobs, options.jobs):
        results.append(done)
        print(
            f"\r{len(results)}/{len(jobs)} {time.perf_counter() - begun:.0f} s "
            f"{done['world']} D={done['delay']} seed {done['seed']}      ",
            end="",
            file=sys.stderr,
        )
    print(file=sys.stderr)
    found = {
        "command": _said(arguments),
        "size": options.size,
        "ticks": options.ticks,
        "seeds": options.seeds,
        "seconds": round(time.perf_counter() - begun),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, numpy {np.__version__}",
        "runs": results,
    }
    if options.json:
        options.json.write_text(dumped(found))
    summarise(results)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.lab", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--worlds", type=_names(WORLDS), default=tuple(WORLDS), help="all or a,b")
    parser.add_argument("--policies", type=_names(POLICIES), default=tuple(POLICIES))
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument(
        "--delay", type=comma_separated(integer(0, 100)), default=(2,), help="ticks, e.g. 0,2,5"
    )
    parser.add_argument("--seeds", type=positive_integer, default=5)
    parser.add_argument("--ticks", type=integer(LEAST_TICKS, 10_000), default=TICKS)
    parser.add_argument("--jobs", type=integer(1, 256), default=2, help="processes")
    parser.add_argument("--json", type=file_to_write, metavar="FILE")
    return parser.parse_args(arguments)


def _said(arguments: list[str] | None) -> str:
    """Return the command, without what changes no figure."""
    words = iter(sys.argv[1:] if arguments is None else arguments)
    kept = []
    for word in words:
        flag, given, _ = word.partition("=")
        if flag not in ("--json", "--jobs"):
            kept.append(word)
        elif not given:
            next(words)
    return shlex.join(["python", "-m", "bench.lab", *kept])


def _names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    names = tuple(known)
    some = comma_separated(name_of(names))
    return lambda text: names if text == "all" else some(text)


def _all(jobs: list[_Job], processes: int) -> Iterable[dict[str, Any]]:
    if processes <= 1:
        yield from map(_run, jobs)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(_run, jobs)


def _run(job: _Job) -> dict[str, Any]:
    """One world, seed and delay; figures and the series that plots show."""
    name, policies, size, delay, seed, ticks = job
    world, series = run(name, policies, size=size, delay=delay, seed=seed, ticks=ticks)
    touched = _touched(series)
    return {
        "world": name,
        "seed": seed,
        "delay": delay,
        "event": world.event,
        "policies": {
            policy: {
                "figures": figures(world, delay, series, policy),
                "series": _columns(mine, touched if policy in _DRAWN else touched[:0]),
            }
            for policy, mine in series.items()
        },
    }


def _columns(mine: Series, providers: np.ndarray) -> dict[str, Any]:
    """Series for the pictures, rounded."""
    share = mine.load_rps[:, providers] / mine.load_rps.sum(axis=1, keepdims=True)
    return {
        "cost_ms": np.round(mine.cost_ms, 2).tolist(),
        "latency_ms": np.round(mine.latency_ms, 2).tolist(),
        "usd_per_million": np.round(1e6 * mine.usd / mine.requests, 4).tolist(),
        "shares": np.round(share, 4).tolist(),
    }


def _touched(series: Mapping[str, Series]) -> np.ndarray:
    """The four providers whose share changes most under the clairvoyant, else the first."""
    load = series.get(INSTANT, next(iter(series.values()))).load_rps
    share = load / load.sum(axis=1, keepdims=True)
    found: np.ndarray = np.argsort(-np.ptp(share, axis=0), kind="stable")[:4]
    return found


def summarise(results: list[dict[str, Any]]) -> None:
    """Print means over seeds, a line for each world and policy."""
    keys = list(dict.fromkeys((r["delay"], r["world"]) for r in results))
    print(
        f"{'':20}{'regret':>8}{'delayed':>8}{'steady':>8}{'p99tick':>8}{'conv':>6}{'over':>6}"
        f"{'ms':>7}{'p99':>7}{'$/M':>6}{'slo':>6}{'flip0':>6}{'flip1':>7}{'push':>6}{'cov':>6}"
        f"{'tick':>6}"
    )
    for delay, world in keys:
        mine = [r for r in results if (r["delay"], r["world"]) == (delay, world)]
        print(f"{world} D={delay}")
        for policy in mine[0]["policies"]:
            each = [r["policies"][policy]["figures"] for r in mine]

            def mean(name: str, each: list[dict[str, float]] = each) -> float:
                values = np.array([f.get(name, np.nan) for f in each])
                values = values[~np.isnan(values)]
                return float(np.mean(values)) if len(values) else float("nan")

            print(
                f"  {policy:18}{100 * mean('regret_instant'):8.2f}"
                f"{100 * mean('regret_delayed'):8.2f}{100 * mean('regret_instant_steady'):8.2f}"
                f"{100 * mean('regret_instant_p99_tick'):8.1f}{mean('converged_ticks'):6.1f}"
                f"{mean('overshoot'):6.2f}{mean('latency_ms'):7.1f}{mean('p99_ms'):7.0f}"
                f"{mean('usd_per_million'):6.2f}{mean('slo_minutes'):6.3f}"
                f"{mean('flips_per_route_hour_steady'):6.1f}"
                f"{mean('flips_per_route_hour_event'):7.1f}"
                f"{mean('pushes_per_route_minute'):6.1f}{mean('coverage_90'):6.2f}"
                f"{mean('tick_p50_ms'):6.2f}"
            )


if __name__ == "__main__":
    main()
