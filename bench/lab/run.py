"""One world, all policies side by side: the same requests, tick by tick, in turn."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from bench.lab.feed import Feed, Noise, draw_noise
from bench.lab.layout import make_layout
from bench.lab.ours import Ours
from bench.lab.policies import POLICIES, Clairvoyant, DelayedClairvoyant, Policy
from bench.lab.serve import FAILED, LATENCY_S, PRICE_MS, REQUESTS, SLOW, USD
from bench.lab.truth import Arrivals, Truth, draw_arrivals
from bench.lab.worlds import TICKS, World, make_world
from xds_server.core.tables import Floats
from xds_server.model.topology import EngineSettings

_MOVED: Final = 0.01
"""Total variation from which a route's change counts as a move."""
_BACKLOG_S: Final = 0.1
"""A queue longer than this is a backlog, not chance."""


_COLUMNS: Final = (
    "requests", "latency_ms", "error_ms", "price_ms", "usd", "failed", "slow_cells", "moves",
    "flips",
)  # fmt: skip


class Series:
    """What one policy did to one world. T ticks, J providers."""

    def __init__(self, policy: str, ticks: int, providers: int, detail: np.ndarray) -> None:
        self.policy, self.detail = policy, detail
        for name in _COLUMNS:
            setattr(self, name, np.zeros(ticks))
        self.load_rps = np.zeros((ticks, providers))
        self.tick_ms, self.z, self.reverts, self.terms_off = [], [], [], []

    policy: str
    requests: Floats  # (T,)
    latency_ms: Floats  # (T,) mean over all requests, failures without theirs
    error_ms: Floats  # (T,)
    price_ms: Floats  # (T,)
    usd: Floats  # (T,) sum
    failed: Floats  # (T,)
    slow_cells: Floats  # (T,) cells in which more than 5 % were slower than the SLO, or failed
    detail: np.ndarray  # (T, DETAIL)
    load_rps: Floats  # (T, J) by the shares in force and the expected demand
    moves: Floats  # (T,) routes whose shares changed
    flips: Floats  # (T,) routes that moved against their last move
    tick_ms: list[float]
    z: list[Floats]
    reverts: list[int]
    terms_off: list[Floats]

    @property
    def cost_ms(self) -> Floats:
        """(T,) the objective, ms-equivalent per request."""
        return self.latency_ms + self.error_ms + self.price_ms


class _Lane:
    """One policy in its copy of the world."""

    def __init__(self, name: str, world: World, delay: int) -> None:
        self.policy: Policy = POLICIES[name]()
        self.world, self.delay = world, delay
        self.truth = Truth(world, least_request=self.policy.least_request)
        self.feed = Feed(world)
        first = self.policy.start(world)
        # Shares on their way: one for each tick until they are in force.
        late = 0 if self.policy.in_data_plane else delay
        self.coming: list[Floats] = [first.copy() for _ in range(late + 1)]
        self.shares = first
        self._last_move = np.zeros(len(first))
        ticks, count = world.ticks, len(world.layout.servers)
        self.series = Series(name, ticks, count, self.truth.detail)

    def tick(self, tick: int, arrivals: Arrivals, noise: Noise) -> None:
        """Let the world run for one tick, and the policy act on what it saw."""
        before, policy = self.shares, self.policy
        self.shares = self.coming.pop(0)
        if type(policy) is Clairvoyant:
            self.shares = policy.at(tick).copy()
        slot = self.truth.run(tick, arrivals, self.shares)
        self._count(tick, before)
        if isinstance(policy, DelayedClairvoyant):
            found = policy.oracle.solve(tick, wait_s=self._backlog_s(tick))
        else:
            found = policy.step(self.feed.see(tick, slot, noise))
        self.coming.append(found.copy())

    def _backlog_s(self, tick: int) -> Floats:
        """(J,) what will be left of today's queues when the next shares are in force."""
        world, layout = self.world, self.world.layout
        pairs, wait = layout.problem.pairs, self.truth.wait_s(tick + 1.0)
        demand = world.demand_rps[tick][pairs.route]
        for shares in self.coming[: self.delay]:
            rps = pairs.sum_by_provider(demand * shares) * (1.0 - world.error_ratio[tick])
            rho = rps * layout.service_s * world.slowness[tick] / layout.servers
            wait = np.clip(wait + rho - 1.0, 0.0, layout.timeout_s)
        return np.where(wait > _BACKLOG_S, wait, 0.0)

    def _count(self, tick: int, before: Floats) -> None:
        out, cells = self.series, self.truth.scalars
        total = np.maximum(cells.sum(axis=0), 1e-9)
        out.requests[tick] = total[REQUESTS]
        out.latency_ms[tick] = 1e3 * total[LATENCY_S] / total[REQUESTS]
        out.error_ms[tick] = self.world.layout.failure_ms * total[FAILED] / total[REQUESTS]
        out.price_ms[tick] = total[PRICE_MS] / total[REQUESTS]
        out.usd[tick], out.failed[tick] = total[USD], total[FAILED]
        out.slow_cells[tick] = np.mean(cells[:, SLOW] > 0.05 * np.maximum(cells[:, REQUESTS], 1.0))
        pairs = self.world.layout.problem.pairs
        flow = self.world.demand_rps[tick][pairs.route] * self.shares
        out.load_rps[tick] = pairs.sum_by_provider(flow)
        change = self.shares - before
        size = 0.5 * pairs.sum_by_route(np.abs(change))
        out.moves[tick] = np.sum(size > 1e-4)
        moved = size > _MOVED
        against = moved & (pairs.sum_by_route(change * self._last_move) < 0.0)
        out.flips[tick] = against.sum()
        self._last_move = np.where(moved[pairs.route], change, self._last_move)


def run(
    name: str,
    policies: Sequence[str],
    *,
    size: str = "S",
    delay: int = 2,
    seed: int = 1,
    ticks: int = TICKS,
    settings: EngineSettings | None = None,
) -> tuple[World, dict[str, Series]]:
    """Run one world under each policy; the order of turns rotates.

    Parameters
    ----------
    delay : ticks between a decision and its effect, beyond the next tick
    """
    world = make_world(name, make_layout(size, seed, settings), seed, ticks)
    lanes = [_Lane(policy, world, delay) for policy in policies]
    for tick in range(ticks):
        arrivals, noise = draw_arrivals(world, seed, tick), draw_noise(world, seed, tick)
        for i in range(len(lanes)):
            lanes[(tick + i) % len(lanes)].tick(tick, arrivals, noise)
    for lane in lanes:
        if isinstance(lane.policy, Ours):
            mine, ours = lane.series, lane.policy
            mine.tick_ms, mine.z = ours.tick_ms, ours.z
            mine.reverts, mine.terms_off = ours.reverts, ours.terms_off
    return world, {lane.series.policy: lane.series for lane in lanes}
