"""What a plan would be like over the next seconds, as far as the models may be wrong.

Providers are simulated (``core.fluid``) from what is queued now, over draws of their service times,
capacities and loads from the models' own variances. The draws are the same for all plans, so plans
differ by what they do and not by chance. Axes: J' providers, D draws, M routes, K pairs of these.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.sparse import csr_array
from scipy.special import ndtri

from xds_server.core import fluid, latency
from xds_server.core.fluid import Grid
from xds_server.core.latency import PowerCurves, Stations
from xds_server.core.tables import Bools, Floats, Ints
from xds_server.engine.gain import prices_between
from xds_server.engine.models import UNKNOWN_VARIANCE, Models
from xds_server.engine.types import Evaluation, Problem
from xds_server.engine.update import backlog

DRAWS: Final = 20
"""One of them is 5 %, two are the worst tenth."""
STEPS: Final = 60
STEPS_PER_TICK: Final = 4
DELAY_TICKS: Final = 2
"""From a decision until it changes what providers get. The ticks simulated are 15, so a queue
that later ticks could still prevent has the time to be seen."""
WARM_S: Final = 30.0
COLD_PART: Final = 0.5
"""A cold provider has that part of its capacity at first, and after so long all of it."""
COLD_RATIO: Final = 0.02
"""Who has been used to less of its capacity than this is cold."""
_WORST: Final = round(0.1 * DRAWS)
_UNMOVED_RATIO: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What is believed of each provider, and how surely; axis 0 (J). Sigmas are of logarithms."""

    stations: Stations
    capacity_rps: Floats  # NaN where it follows from the service time
    service_sigma: Floats
    capacity_sigma: Floats
    load_sigma: Floats
    load_rps: Floats  # if all routes hold
    answered_rps: Floats  # of late: its capacity is not less
    queued: Floats  # requests that wait now
    warm: Floats  # part of its capacity that it has at first


@dataclass(frozen=True, slots=True)
class Draws:
    """What providers may be like."""

    stations: Stations  # (J * D,)
    capacity_rps: Floats  # (J, D) of these
    load_factor: Floats  # (J, D) load over what is believed

    def stations_of(self, who: Ints) -> Stations:
        """(J' * D,) those of some providers."""
        if len(who) == len(self.load_factor):
            return self.stations
        return self.stations.rows((who[:, None] * DRAWS + np.arange(DRAWS)).ravel())


@dataclass(frozen=True, slots=True)
class World:
    """Where plans are simulated; ``hold`` (P,) are the shares of the one that moves nothing."""

    problem: Problem
    evaluation: Evaluation
    beliefs: Beliefs
    draws: Draws
    hold: Floats
    grid: Grid


@dataclass(frozen=True, slots=True)
class Risks:
    """Response times of routes over the draws; axis 0 (M)."""

    mean_s: Floats
    worst_s: Floats  # mean of the worst tenth of draws (CVaR10)
    breach_ratio: Floats  # of draws in which the p95 is above the SLO


@dataclass(frozen=True, slots=True)
class Offer:
    """What the providers ``who`` are asked for under one plan; (J', D)."""

    who: Ints  # (J',) ascending
    rps: Floats  # (J',) load as believed
    offered_rps: Floats
    capacity_rps: Floats

    @property
    def overload_ratio(self) -> Floats:
        """(J',) of draws in which more is offered than the provider has capacity for."""
        over = self.offered_rps > self.capacity_rps
        ratio: Floats = np.count_nonzero(over, axis=1) / over.shape[1]
        return ratio

    def of(self, who: Ints) -> "Offer":
        """Return that of some of the providers."""
        at = np.searchsorted(self.who, who)
        return Offer(who, self.rps[at], self.offered_rps[at], self.capacity_rps[at])


@dataclass(frozen=True, slots=True)
class Course:
    """How long the providers ``who`` take under one plan; (J', D)."""

    offer: Offer
    mean_s: Floats
    p95_s: Floats

    def of(self, who: Ints) -> "Course":
        """Return that of some of the providers."""
        at = np.searchsorted(self.offer.who, who)
        return Course(self.offer.of(who), self.mean_s[at], self.p95_s[at])


def make_world(
    problem: Problem, evaluation: Evaluation, models: Models, hold: Floats, tick_s: float
) -> World:
    """Gather what is believed and how surely, at the present moment."""
    grid = Grid(tick_s / STEPS_PER_TICK, STEPS, DELAY_TICKS * STEPS_PER_TICK, WARM_S)
    beliefs = _believe(problem, evaluation, models, hold)
    return World(problem, evaluation, beliefs, _draw(beliefs), hold, grid)


def _believe(problem: Problem, evaluation: Evaluation, models: Models, hold: Floats) -> Beliefs:
    """Believe what the models do; ``hold`` (P,) are the shares if all routes hold."""
    pairs, seen, stations = problem.pairs, evaluation.observation, evaluation.stations
    demand = evaluation.demand_rps
    load = pairs.loads(hold, demand)
    used = np.maximum(load, 1e-9)
    variance = pairs.loads(hold**2, demand**2 * models.demand.variance)
    # Where forecasts do not come true, models are as much less sure as calibration says.
    doubt = pairs.loads(hold, demand * evaluation.calibration) / used
    doubt = np.where(load > 0.0, doubt, 1.0)
    # A capacity that nobody has measured is the operator's word: how wrong it is, nobody knows.
    measured = models.capacity.variance < UNKNOWN_VARIANCE
    sigma = np.where(measured, np.sqrt(models.capacity.variance), 0.0)
    waits_s = backlog(stations, models.capacity_rps, seen.provider_rps, seen.provider_active)
    answered = seen.provider_responses / np.maximum(seen.provider_attempts, 1.0)
    return Beliefs(
        stations=stations,
        capacity_rps=models.capacity_rps,
        service_sigma=doubt * evaluation.sigma_ratio,
        capacity_sigma=doubt * sigma,
        load_sigma=np.sqrt(variance) / used,
        load_rps=load,
        answered_rps=seen.provider_rps * np.minimum(answered, 1.0),
        queued=waits_s * stations.capacity_rps,
        warm=np.where(seen.provider_rps < COLD_RATIO * stations.capacity_rps, COLD_PART, 1.0),
    )


def ask(world: World, who: Ints, shares: Floats) -> Offer:
    """Say what the providers ``who`` (J',) are asked for where all routes have ``shares`` (P,)."""
    rps = world.problem.pairs.loads(shares, world.evaluation.demand_rps)[who]
    offered = rps[:, None] * world.draws.load_factor[who]
    return Offer(who, rps, offered, world.draws.capacity_rps[who])


def run(world: World, offer: Offer) -> Course:
    """Simulate providers from what they are asked for."""
    known, who, shape = world.beliefs, offer.who, offer.offered_rps.shape
    found = fluid.simulate(
        world.draws.stations_of(who),
        _spread(known.queued[who]),
        (known.load_rps[who, None] * world.draws.load_factor[who]).ravel(),
        offer.offered_rps.ravel(),
        _spread(known.warm[who]),
        world.grid,
    )
    return Course(offer, found.mean_s.reshape(shape), found.p95_s.reshape(shape))


@dataclass(frozen=True, slots=True)
class View:
    """Some routes, all of whose providers are among those that were simulated."""

    world: World
    routes: Ints  # (M,) ascending
    rows: Ints  # (K,) pairs, by route
    ends: Ints  # (M + 1,) where each route's begin in ``rows``, and where the last one's end
    column: Ints  # (K,) of the provider, among those simulated

    def risks(self, shares: Floats, course: Course) -> Risks:
        """Risks (M,) of the routes with these ``shares`` (P,)."""
        mean = self._times_s(shares, course.mean_s)
        return Risks(mean.mean(axis=1), _worst(mean), self.breach_ratio(shares, course))

    def breach_ratio(self, shares: Floats, course: Course) -> Floats:
        """(M,) part of the draws in which a route's p95 is above its SLO."""
        slo_s = self.world.evaluation.slo_s[self.routes, None]
        ratio: Floats = (self._times_s(shares, course.p95_s) > slo_s).mean(axis=1)
        return ratio

    def _times_s(self, shares: Floats, of_providers: Floats) -> Floats:
        """(J', D) -> (M, D) response times, network included."""
        mine = shares[self.rows]
        away = self.sum(mine * self.world.evaluation.rtt_s[self.rows])[:, None]
        return self._by_route(mine, of_providers) + away

    def worse_ms(self, shares: Floats, before: Course, after: Course) -> Floats:
        """(M,) by how much each route's move makes its worst tenth of draws dearer, ms-equivalent.

        Requests cost what they cost all who use a provider, as in ``engine.gain`` but draw by draw:
        who relieves a provider counts as well as who loads it, so in each draw the routes' gains
        add up to what the mesh gains.
        """
        costs, hold = self.world.evaluation.costs, self.world.hold
        # The queue that waits is simulated, and so is not counted as a cost besides.
        fixed = (costs.total - costs.backlog)[self.rows]
        price = _price_ms(self.world, before, after)

        def worst(shares: Floats) -> Floats:
            mine = shares[self.rows]
            level = self._by_route(mine, price) + self.sum(mine * fixed)[:, None]
            return _worst(level)

        return worst(shares) - worst(hold)

    def sum(self, values: Floats) -> Floats:
        """(K,) -> (M,)."""
        total: Floats = np.add.reduceat(values, self.ends[:-1])
        return total

    def any(self, flags: Bools) -> Bools:
        """(K,) -> (M,)."""
        some: Bools = np.logical_or.reduceat(flags, self.ends[:-1])
        return some

    def _by_route(self, weight: Floats, values: Floats) -> Floats:
        """(K,) and (J', N) -> (M, N)."""
        shape = (len(self.routes), len(values))
        total: Floats = csr_array((weight, self.column, self.ends), shape=shape) @ values
        return total


def _worst(values: Floats) -> Floats:
    """(M, D) -> (M,) mean of the highest tenth."""
    mean: Floats = np.partition(values, -_WORST, axis=1)[:, -_WORST:].mean(axis=1)
    return mean


def providers_of(world: World, routes: Ints) -> Ints:
    """(J',) rows of the providers that routes may use, ascending."""
    pairs = world.problem.pairs
    used = np.zeros(pairs.providers, dtype=bool)
    used[pairs.provider[_rows(world, routes)]] = True
    return np.flatnonzero(used)


def view(world: World, routes: Ints, who: Ints) -> View:
    """Look at ``routes`` (M,), ascending, where the providers ``who`` (J',) were simulated."""
    pairs, rows = world.problem.pairs, _rows(world, routes)
    number = np.zeros(pairs.providers, dtype=np.int64)
    number[who] = np.arange(len(who))
    ends = np.append(np.searchsorted(pairs.route[rows], routes), len(rows))
    return View(world, routes, rows, ends, number[pairs.provider[rows]])


def _rows(world: World, routes: Ints) -> Ints:
    pairs = world.problem.pairs
    chosen = np.zeros(pairs.routes, dtype=bool)
    chosen[routes] = True
    return np.flatnonzero(chosen[pairs.route])


def _price_ms(world: World, before: Course, after: Course) -> Floats:
    """(J', D) what a request costs all who use a provider, mean over the change of its load."""
    then, now = before.offer, after.offer
    rise = now.offered_rps - then.offered_rps
    moved = np.abs(rise) > _UNMOVED_RATIO * (now.offered_rps + then.offered_rps + 1.0)
    total = now.offered_rps * after.mean_s - then.offered_rps * before.mean_s
    # Where the load stays, the price is at the margin.
    mine = world.beliefs.stations.rows(now.who)
    rent_ms = prices_between(mine, then.rps, now.rps).rent_ms[:, None]
    mean_ms = 1e3 * total / np.where(moved, rise, 1.0)
    return np.where(moved, mean_ms, 1e3 * after.mean_s + rent_ms)


@lru_cache(maxsize=2)
def _normals(providers: int) -> Floats:
    """(3, J, D) standard normal numbers: of service times, capacities and loads.

    The same in every tick, so that no move is made in one and refused in the next by chance; each
    row has one draw from each twentieth of the distribution (Latin hypercube).
    """
    ranks = np.tile(np.arange(DRAWS), (3, providers, 1))
    uniform = (np.random.default_rng(1).permuted(ranks, axis=2) + 0.5) / DRAWS
    normal: Floats = ndtri(uniform)
    normal.flags.writeable = False
    return normal


def _spread(values: Floats) -> Floats:
    """(J',) -> (J' * D,)."""
    return np.repeat(values, DRAWS)


def _draw(known: Beliefs) -> Draws:
    """Draw what the providers may be like."""
    base, believed = known.stations, known.capacity_rps
    of_service, of_capacity, of_load = _normals(len(believed))
    slower = np.exp(known.service_sigma[:, None] * of_service).ravel()
    capacity = believed[:, None] * np.exp(known.capacity_sigma[:, None] * of_capacity)
    # Who answers that much has that capacity, unless not even what is believed of it has.
    capacity = np.maximum(capacity, np.minimum(known.answered_rps, believed)[:, None])
    stations = latency.station_of(
        slower * _spread(base.service_s),
        capacity.ravel(),
        _spread(base.servers),
        _spread(base.tail_ratio),
        _draw_power(base.power, slower),
        variability=_spread(base.variability),
    )
    return Draws(
        stations,
        stations.capacity_rps.reshape(of_load.shape),
        np.exp(known.load_sigma[:, None] * of_load),
    )


def _draw_power(power: PowerCurves | None, slower: Floats) -> PowerCurves | None:
    if power is None or not power.chosen.any():
        return None
    return PowerCurves(
        np.repeat(power.chosen, DRAWS),
        slower * _spread(power.base_s),
        slower[:, None] * np.repeat(power.rise_s, DRAWS, axis=0),
        _spread(power.scale_rps),
        power.exponents,
    )
