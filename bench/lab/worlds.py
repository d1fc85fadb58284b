"""The named worlds: what happens to demand, providers, prices and telemetry, tick by tick."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from bench.lab.layout import Layout
from xds_server.core.tables import Floats, Ints

TICKS: Final = 160
WARM: Final = 30
"""Ticks before figures count: every policy starts at equal shares and knows only priors."""
EVENT: Final = 60
END: Final = 115
"""Where worlds that recover do."""
CV: Final = 0.7
"""Coefficient of variation of the lognormal service times."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong with telemetry. Ticks are half-open ranges."""

    dropped_ratio: float = 0.0  # of all nodes' reports, each tick
    stale: tuple[int, int] = (0, 0)  # reports arrive only at the end of the range
    blackout: tuple[int, int] = (0, 0)  # nothing arrives and nothing is kept
    liar: int = -1  # provider whose utilisation is told
    lie_ratio: float = 1.0  # as that part of the truth


@dataclass(frozen=True, slots=True)
class World:
    """One experiment's schedules. T ticks, R routes, J providers, G shared stations."""

    name: str
    layout: Layout
    ticks: int
    event: int
    demand_rps: Floats  # (T, R)
    slowness: Floats  # (T, J) factor on service times
    error_ratio: Floats  # (T, J) answered at once with an error
    price_usd: Floats  # (T, J)
    bimodal: bool = False
    burst_cv: float = 0.0  # gamma-modulated demand of every route and tick
    retries: int = 0
    shared_of: Ints | None = None  # (J,) row of the shared station, -1: none
    shared_s: Floats | None = None  # (T, G) service time there
    shared_servers: int = 4
    faults: Faults = Faults()

    @property
    def shared(self) -> Ints:
        """(J,) row of the shared station, -1 where there is none."""
        blank = np.full(len(self.layout.servers), -1, dtype=np.int64)
        return blank if self.shared_of is None else self.shared_of

    def shared_service_s(self, tick: int) -> Floats:
        """(G,) service times of the shared stations; one that nobody needs where there is none."""
        none: Floats = np.zeros(1)
        return none if self.shared_s is None else self.shared_s[tick]

    @property
    def service_cv2(self) -> float:
        """Squared coefficient of variation of service times."""
        return 2.25 if self.bimodal else CV**2


def make_world(name: str, layout: Layout, seed: int, ticks: int = TICKS) -> World:
    """Build one world; times scale where ``ticks`` is not ``TICKS``."""
    count = len(layout.servers)
    scale = ticks / TICKS
    world = World(
        name,
        layout,
        ticks,
        round(EVENT * scale),
        np.tile(layout.demand_rps, (ticks, 1)),
        np.ones((ticks, count)),
        np.zeros((ticks, count)),
        np.tile(layout.price_usd, (ticks, 1)),
    )
    return WORLDS[name](world, np.random.default_rng([seed, 2]), scale)


def _step(world: World, _: np.random.Generator, scale: float) -> World:
    """Demand of one region grows by 1.8."""
    world.demand_rps[world.event :, world.layout.region == 0] *= 1.8
    return world


def _degraded(world: World, rng: np.random.Generator, scale: float) -> World:
    """15 % of providers keep 45 % of their capacity."""
    world.slowness[world.event :, _some(world, rng, 0.15)] = 1.0 / 0.45
    return world


def _brown_out(world: World, rng: np.random.Generator, scale: float) -> World:
    """10 % of providers become three times as slow over 30 ticks, and recover at once."""
    until = round(END * scale)
    ramp = np.clip(np.arange(1, until - world.event + 1) / (30.0 * scale), 0.0, 1.0)
    world.slowness[world.event : until, _some(world, rng, 0.1)] = (1.0 + 2.0 * ramp)[:, None]
    return world


def _price_spike(world: World, rng: np.random.Generator, scale: float) -> World:
    """A quarter of the providers charge three times as much for a while."""
    until = round(END * scale)
    world.price_usd[world.event : until, _some(world, rng, 0.25)] *= 3.0
    return world


def _outage(world: World, rng: np.random.Generator, scale: float) -> World:
    """One provider in twenty refuses everything, and comes back."""
    until = round(END * scale)
    world.error_ratio[world.event : until, _some(world, rng, 0.05)] = 1.0
    return world


def _flash_crowd(world: World, rng: np.random.Generator, scale: float) -> World:
    """A tenth of the routes want 2.4 times as much, within 3 ticks, for a minute; in bursts."""
    until = round(END * scale)
    hot = rng.random(world.demand_rps.shape[1]) < 0.1
    ramp = np.clip(np.arange(1, until - world.event + 1) / 3.0, 0.0, 1.0)
    world.demand_rps[world.event : until, hot] *= (1.0 + 1.4 * ramp)[:, None]
    return replace(world, burst_cv=0.3)


def _slow_start(world: World, rng: np.random.Generator, scale: float) -> World:
    """A tenth of the providers restart: 4 ticks away, then cold for 30."""
    away = max(1, round(4 * scale))
    chosen = _some(world, rng, 0.1)
    back = world.event + away
    world.error_ratio[world.event : back, chosen] = 1.0
    warm = np.clip(np.arange(world.ticks - back) / (30.0 * scale), 0.0, 1.0)
    world.slowness[back:, chosen] = (4.0 - 3.0 * warm)[:, None]
    return world


def _noisy_neighbour(world: World, rng: np.random.Generator, scale: float) -> World:
    """Every 15 ticks another tenth of the providers is twice as slow."""
    for begin in range(world.event, world.ticks, max(2, round(15 * scale))):
        world.slowness[begin : begin + max(2, round(15 * scale)), _some(world, rng, 0.1)] = 2.0
    return world


def _moving_region(world: World, _: np.random.Generator, scale: float) -> World:
    """Demand travels around the regions, once in 100 ticks, in all the same."""
    layout = world.layout
    turn = np.arange(world.ticks)[:, None] / (100.0 * scale) - layout.region[None] / 4.0
    return replace(world, demand_rps=world.demand_rps * (1.0 + 0.6 * np.cos(2.0 * np.pi * turn)))


def _diurnal(world: World, _: np.random.Generator, scale: float) -> World:
    """All demand rises and falls by a third, a day in 100 ticks."""
    day = np.sin(2.0 * np.pi * np.arange(world.ticks) / (100.0 * scale))
    return replace(world, demand_rps=world.demand_rps * (1.0 + 0.33 * day)[:, None])


def _dropped(world: World, rng: np.random.Generator, scale: float) -> World:
    """``step`` with 30 % of reports lost."""
    return replace(_step(world, rng, scale), faults=Faults(dropped_ratio=0.3))


def _stale(world: World, rng: np.random.Generator, scale: float) -> World:
    """``step``; from 6 ticks after it reports are up to 12 ticks late."""
    begin = world.event + round(6 * scale)
    return replace(_step(world, rng, scale), faults=Faults(stale=(begin, begin + 12)))


def _blackout(world: World, rng: np.random.Generator, scale: float) -> World:
    """``step``; from 10 ticks after it no telemetry for 30 ticks."""
    begin = world.event + round(10 * scale)
    faults = Faults(blackout=(begin, begin + round(30 * scale)))
    return replace(_step(world, rng, scale), faults=faults)


def _liar(world: World, rng: np.random.Generator, scale: float) -> World:
    """One provider loses four fifths of its capacity and says that it idles."""
    liar = int(rng.choice(_carried(world)))
    world.slowness[world.event :, liar] = 5.0
    return replace(world, faults=Faults(liar=liar, lie_ratio=0.05))


def _hidden(world: World, rng: np.random.Generator, scale: float) -> World:
    """Two providers of each service need one database, which becomes slow."""
    layout = world.layout
    services = int(layout.provider_service.max()) + 1
    shared = np.full(len(layout.servers), -1, dtype=np.int64)
    service_s = np.empty((world.ticks, services))
    capacity = layout.servers / layout.service_s
    for s in range(services):
        two = rng.choice(np.flatnonzero(layout.provider_service == s), 2, replace=False)
        shared[two] = s
        # Room for all that the two can do; from the event on for 45 % of it.
        service_s[:, s] = world.shared_servers / (1.2 * capacity[two].sum())
    service_s[world.event :] *= 1.2 / 0.45
    return replace(world, shared_of=shared, shared_s=service_s)


def _bimodal(world: World, rng: np.random.Generator, scale: float) -> World:
    """One request in ten takes 11 times as long as the others; then ``degraded_15``."""
    return replace(_degraded(world, rng, scale), bimodal=True)


def _retry_storm(world: World, rng: np.random.Generator, scale: float) -> World:
    """A fifth of the providers at 40 % and failing 10 %; callers try twice again."""
    until = round(END * scale)
    chosen = _some(world, rng, 0.2)
    world.slowness[world.event : until, chosen] = 2.5
    world.error_ratio[world.event : until, chosen] = 0.1
    return replace(world, retries=2)


def _some(world: World, rng: np.random.Generator, ratio: float) -> Ints:
    """Some of the providers, at least one."""
    count = len(world.layout.servers)
    return rng.choice(count, max(1, round(ratio * count)), replace=False)


def _carried(world: World) -> Ints:
    """Providers that everyone may use."""
    users = np.bincount(world.layout.problem.pairs.provider)
    return np.flatnonzero(users == users.max())


WORLDS: Final[dict[str, Callable[[World, np.random.Generator, float], World]]] = {
    "step": _step,
    "degraded_15": _degraded,
    "brown_out": _brown_out,
    "price_spike": _price_spike,
    "outage": _outage,
    "flash_crowd": _flash_crowd,
    "slow_start": _slow_start,
    "noisy_neighbour": _noisy_neighbour,
    "moving_region": _moving_region,
    "diurnal": _diurnal,
    "telemetry_dropped": _dropped,
    "telemetry_stale": _stale,
    "telemetry_blackout": _blackout,
    "liar": _liar,
    "hidden_bottleneck": _hidden,
    "bimodal": _bimodal,
    "retry_storm": _retry_storm,
}
"""By name."""
