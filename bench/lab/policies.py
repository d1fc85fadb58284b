"""Who competes: the engine, its rivals, and those for whom nothing is hidden."""

from collections.abc import Callable
from typing import Final, Protocol

from bench.lab.clairvoyant import Oracle
from bench.lab.feed import Seen
from bench.lab.ours import Ours
from bench.lab.rivals import (
    L3,
    Equal,
    Failover,
    GreedyCheapest,
    GreedyFastest,
    LeastRequest,
    LoadAwareLocality,
    Stepper,
    Waterfall,
    WeightedRoundRobin,
)
from bench.lab.worlds import World
from xds_server.core.tables import Floats


class Policy(Protocol):
    """Something that splits traffic."""

    name: str
    in_data_plane: bool
    """Whether it acts in the sidecar, and so at once: the delay of actuation is not its own."""
    least_request: bool
    """Whether the truth picks the least loaded provider, request by request."""

    def start(self, world: World) -> Floats:
        """Return the first shares (P,)."""

    def step(self, seen: Seen) -> Floats:
        """Return the next shares (P,)."""


class StaticOptimum(Equal):
    """The optimum for the demand at the beginning, and no change."""

    name = "static_optimum"

    def start(self, world: World) -> Floats:
        """Solve once."""
        super().start(world)
        self.shares = Oracle(world).solve(0).copy()
        return self.shares


class Clairvoyant(Equal):
    """The optimum of every tick, in force in that very tick."""

    name = "clairvoyant"

    def start(self, world: World) -> Floats:
        """Solve the first tick."""
        super().start(world)
        self.oracle = Oracle(world)
        self.shares = self.oracle.solve(0)
        return self.shares

    def at(self, tick: int) -> Floats:
        """Return the shares for that tick."""
        self.shares = self.oracle.solve(tick)
        return self.shares


class DelayedClairvoyant(Clairvoyant):
    """Knows the tick that has just ended, queues too; acts as late as every controller."""

    name = "clairvoyant_delayed"


POLICIES: Final[dict[str, Callable[[], Policy]]] = {
    kind.name: kind
    for kind in (
        Ours,
        Clairvoyant,
        DelayedClairvoyant,
        Equal,
        StaticOptimum,
        LeastRequest,
        WeightedRoundRobin,
        LoadAwareLocality,
        L3,
        Waterfall,
        Failover,
        Stepper,
        GreedyFastest,
        GreedyCheapest,
    )
}
"""By name."""
