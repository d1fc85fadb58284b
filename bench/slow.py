"""What slow decisions add to a turn of the engine, with all of them declared for every service.

A turn is one tick and what slow ticks decide beside it. Every provider has bounds for scaling, one
of each service is on standby, and every application has a feature that the engine may switch.
Meshes of the same sizes as ``bench.tick``; ratios are to the ordinary tick of the same run.
"""

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from bench.arguments import positive_integer
from bench.output import dumped
from bench.tick import SIZES, World, timed_ms
from xds_server.cache.publisher import Publisher
from xds_server.engine.loop import Tick
from xds_server.engine.problem import build_problem
from xds_server.engine.slow import SlowLoop
from xds_server.engine.state import initial_state
from xds_server.model.slow import SlowDecision
from xds_server.model.telemetry import PairWindow
from xds_server.model.template import Flag
from xds_server.model.topology import Application, Mesh, Scale, Service
from xds_server.resources.mesh import MeshResources

TURNS = 90
ENDPOINTS = 4
_T = TypeVar("_T")


class SlowWorld(World):
    """The world of ``bench.tick`` with everything declared that slow ticks decide about."""

    def __init__(self, routes: int, providers: int) -> None:
        super().__init__(routes, providers)
        groups = list(self.state.problem.groups.values())
        self.mesh = _declaring(self.mesh)
        endpoints = {p.name: p.endpoints for p in self.mesh.providers.values()}
        self.state = initial_state(build_problem(self.mesh, endpoints, groups))
        self.publisher = Publisher(self.mesh, MeshResources(self.mesh, endpoints))
        self.counts = dict.fromkeys(self.state.problem.providers, ENDPOINTS)
        self.slow = SlowLoop()
        self.slow.set_mesh(self.mesh)

    def _observe(self, rows: int) -> PairWindow:
        with np.errstate(divide="ignore"):  # who is on standby has no load
            return super()._observe(rows)

    def decide(self, done: Tick) -> tuple[SlowDecision, ...]:
        """What slow ticks decide after that tick."""
        return self.slow.run(self.mesh, self.state.problem, done, self.counts, self.now_s)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.slow", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--size", choices=SIZES, default="L")
    parser.add_argument("--turns", type=positive_integer, default=TURNS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = measure(*SIZES[options.size], options.turns)
    result["size"] = options.size
    result["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
    if options.json:
        print(dumped(result))
        return
    for key, value in result.items():
        print(f"{key:18} {value}")


def measure(routes: int, providers: int, turns: int = TURNS) -> dict[str, object]:
    """Run a drifting mesh for that many turns; times in milliseconds."""
    world = SlowWorld(routes, providers)
    for _ in range(3):  # the first are cold
        world.decide(world.tick())
    ticks, slow = [], []
    decided: list[tuple[SlowDecision, ...]] = []
    for _ in range(turns):
        world.drift()
        done: list[Tick] = []
        ticks.append(timed_ms(partial(_keep, done, world.tick)))
        slow.append(timed_ms(partial(_keep, decided, partial(world.decide, done[0]))))
    turn, tick_ms = np.add(ticks, slow), float(np.median(ticks))
    p50, p99 = np.percentile(turn, [50, 99])
    return {
        "pairs": len(world.state.problem.pairs.route),
        "tick_p50_ms": round(tick_ms, 2),
        "tick_p99_ms": round(float(np.percentile(ticks, 99)), 2),
        "turn_p50_ms": round(float(p50), 2),
        "turn_p99_ms": round(float(p99), 2),
        "turn_max_ms": round(float(turn.max()), 2),
        "slow_p50_ms": round(float(np.median(slow)), 2),
        "slow_p99_ms": round(float(np.percentile(slow, 99)), 2),
        "slow_max_ms": round(float(max(slow)), 2),
        "slow_p50_ratio": round(float(np.median(slow)) / tick_ms, 2),
        "slow_p99_ratio": round(float(np.percentile(slow, 99)) / tick_ms, 2),
        "slow_max_ratio": round(float(max(slow)) / tick_ms, 2),
        "turn_p50_ratio": round(float(p50) / tick_ms, 2),
        "turn_p99_ratio": round(float(p99) / tick_ms, 2),
        "decisions": sum(map(len, decided)),
    }


def _keep(found: list[_T], call: Callable[[], _T]) -> None:
    found.append(call())


def _declaring(mesh: Mesh) -> Mesh:
    """Scale bounds everywhere, the last provider of each service on standby, a feature each."""
    services = {}
    for name, service in mesh.services.items():
        *used, spare = (
            replace(
                p,
                scale=Scale("process", 1, 2 * ENDPOINTS, 2.0),
                price=replace(p.price, per_endpoint_hour_usd=0.2),
            )
            for p in service.providers
        )
        spare = replace(spare, standby=True, baseline_weight=0)
        services[name] = Service(name, (*used, spare))
    templates = {
        name: replace(
            template,
            flags=(
                Flag(
                    "extra",
                    default=True,
                    saves={template.calls[0].service: 0.3},
                    worth_usd_per_h=50.0,
                ),
            ),
        )
        for name, template in mesh.templates.items()
    }
    applications = {
        name: Application(name, templates[application.template.name])
        for name, application in mesh.applications.items()
    }
    return replace(mesh, services=services, templates=templates, applications=applications)


if __name__ == "__main__":
    main()
