"""What the engine remembers from tick to tick: shares, models, forecasts.

Rows follow the current ``Problem``; ``adopt`` carries them over when routes come and go.
"""

from collections import deque
from dataclasses import dataclass, field, fields, replace
from typing import Final, TypeVar

import numpy as np

from xds_server.core import limits
from xds_server.core.distance import Distances, no_distances
from xds_server.core.estimate import ErrorCounts, LogFilter
from xds_server.core.power import PowerFits
from xds_server.core.tables import Bools, Floats, Ints
from xds_server.engine.deploy import NOTHING, Deployment
from xds_server.engine.models import Models, initial_models
from xds_server.engine.observe import RowMap
from xds_server.engine.problem import STANDBY
from xds_server.engine.trials import PairTrials, RouteTrials, Trials, no_trials
from xds_server.engine.types import Problem
from xds_server.model.ids import ProviderName, RouteKey
from xds_server.model.snapshot import Overlay

FORECASTS_KEPT: Final = 4
"""Deployments whose outcome is still awaited; the oldest is dropped."""
_Rows = TypeVar("_Rows", LogFilter, ErrorCounts, PowerFits, RouteTrials, PairTrials)
_WINDOW_PLANS: Final = 2
"""Plans that were in force during one window."""


@dataclass(slots=True)
class EngineState:
    """The engine's memory. Bounded by the problem's size times a constant."""

    problem: Problem
    shares: Floats  # (P,) commanded
    wanted: Floats  # (P,) where steps that were too small to push would have led
    models: Models
    last_good: Floats  # (P,) shares whose outcome was as forecast and within the SLO
    weights: Ints  # (P,) last published; all 0 before the first
    trials: Trials
    fragile: Bools  # (R,) would not survive the loss of a provider, when last looked at
    overlay: Overlay = NOTHING  # last published
    rows: RowMap | None = None  # of the newest window
    pending: deque[Deployment] = field(default_factory=lambda: deque(maxlen=FORECASTS_KEPT))

    @property
    def planned_rps(self) -> Floats:
        """(K, J) load under each plan of the newest window at today's demand; NaN if none."""
        pairs, demand = self.problem.pairs, self.models.demand_rps
        plans = [d.shares for d in list(self.pending)[-_WINDOW_PLANS:]]
        if not plans:
            return np.full((1, pairs.providers), np.nan)
        return np.stack([pairs.sum_by_provider(demand[pairs.route] * plan) for plan in plans])

    def remember(
        self, deployment: Deployment, wanted: Floats, models: Models, last_good: Floats
    ) -> None:
        """Take over the results of a tick."""
        self.wanted = wanted
        self.shares, self.weights = deployment.shares, deployment.weights
        self.overlay = deployment.overlay
        self.models, self.last_good = models, last_good
        self.pending.append(deployment)


def initial_state(problem: Problem) -> EngineState:
    """Start at the baseline, knowing only priors."""
    shares = limits.onto_allowed(problem.pairs, problem.baseline_shares, problem.allowed)
    return EngineState(
        problem,
        shares,
        shares,
        initial_models(problem),
        shares,
        np.zeros(len(shares), dtype=np.int64),
        no_trials(problem.pairs.routes, len(shares)),
        np.zeros(problem.pairs.routes, dtype=bool),
    )


def adopt(old: EngineState, problem: Problem) -> EngineState:
    """Carry everything that still has a row over to ``problem``.

    A group that its members entered from another phase starts from that phase's shares,
    so that a change of phase moves no traffic by itself.
    """
    new = initial_state(problem)
    before = _index(old.problem)
    pair_from = np.array(
        [_pair_before(before, problem, r, j) for r, j in _pair_names(problem)], dtype=np.int64
    )
    route_index = {key: i for i, key in enumerate(old.problem.routes)}
    route_from = np.array([route_index.get(key, -1) for key in problem.routes], dtype=np.int64)
    provider_index = {name: i for i, name in enumerate(old.problem.providers)}
    provider_from = np.array([provider_index.get(n, -1) for n in problem.providers], dtype=np.int64)

    # A pair that is new in a route which had shares starts at 0, not at its baseline.
    inherited = problem.pairs.sum_by_route((pair_from >= 0).astype(np.float64)) > 0.0
    blank = np.where(inherited[problem.pairs.route], 0.0, problem.baseline_shares)
    carried = _take(old.shares, pair_from, blank)
    # Who goes back to standby still works: holding takes its traffic in bounded steps.
    left = np.array([why == STANDBY for why in problem.excluded_because], dtype=bool)
    shares = limits.onto_allowed(problem.pairs, carried, problem.allowed | (left & (carried > 0.0)))
    good = limits.onto_allowed(
        problem.pairs, _take(old.last_good, pair_from, blank), problem.allowed
    )
    same = np.array(
        [
            p >= 0 and route_from[r] >= 0
            for p, r in zip(pair_from, problem.pairs.route, strict=True)
        ],
        dtype=bool,
    )
    # A route whose shares had to change has no weights yet that say so.
    forced = problem.pairs.any_by_route(np.abs(shares - carried) > 1e-6)
    forced &= problem.pairs.any_by_route(problem.allowed)
    same &= ~forced[problem.pairs.route]
    weights = np.where(
        same, _take(old.weights, pair_from, np.zeros(len(pair_from), dtype=np.int64)), 0
    )
    m, fresh = old.models, new.models
    models = Models(
        service=replace(_carry(m.service, provider_from, fresh.service), prior=fresh.service.prior),
        capacity=_rescaled(
            _carry(m.capacity, provider_from, fresh.capacity), old.problem, problem, provider_from
        ),
        tail_ratio=_take(m.tail_ratio, provider_from, fresh.tail_ratio),
        rps=_take(m.rps, provider_from, fresh.rps),
        turned=_take(m.turned, provider_from, fresh.turned),
        behind_s=_take(m.behind_s, provider_from, fresh.behind_s),
        cv2=_take(m.cv2, provider_from, fresh.cv2),
        errors=_carry(m.errors, provider_from, fresh.errors),
        power=_carry(m.power, provider_from, fresh.power),
        distances=_carried_distances(m.distances, old.problem, problem),
        calibration=_take(m.calibration, route_from, fresh.calibration),
        demand=_carry(m.demand, route_from, fresh.demand),
        budget_pressure=_take(m.budget_pressure, route_from, fresh.budget_pressure),
    )
    wanted = limits.onto_allowed(problem.pairs, shares, problem.allowed)
    # Other choices than before: what was before them is nothing to go back to.
    other = problem.pairs.any_by_route(
        (pair_from < 0)
        | (problem.allowed != _take(old.problem.allowed, pair_from, problem.allowed))
    )
    fragile = _take(old.fragile, route_from, new.fragile)
    route_trials = _carry(old.trials.route, route_from, new.trials.route)
    trials = Trials(
        replace(route_trials, opened_s=np.where(other, np.nan, route_trials.opened_s)),
        _carry(old.trials.pair, pair_from, new.trials.pair),
    )
    return EngineState(problem, shares, wanted, models, good, weights, trials, fragile)


def _carry(old: _Rows, rows: Ints, blank: _Rows) -> _Rows:
    """Every column of ``old`` where ``rows`` names one of its rows, of ``blank`` elsewhere."""
    columns = {
        f.name: _take(getattr(old, f.name), rows, getattr(blank, f.name)) for f in fields(blank)
    }
    return replace(blank, **columns)


def _carried_distances(old: Distances, before: Problem, problem: Problem) -> Distances:
    place_index = {key: i for i, key in enumerate(before.places)}
    link_index = {key: i for i, key in enumerate(before.links)}
    place = np.array([place_index.get(key, -1) for key in problem.places], dtype=np.int64)
    link = np.array([link_index.get(key, -1) for key in problem.links], dtype=np.int64)
    fresh = no_distances(len(problem.places), len(problem.links))
    # A new place is as far away as its link.
    unknown = _take(old.link_s, link, fresh.link_s)[problem.place_link] * ~problem.place_home
    return Distances(
        _take(old.rtt_s, place, unknown),
        _take(old.own_s, place, unknown),
        _take(old.variance_s2, place, fresh.variance_s2),
        _take(old.link_s, link, fresh.link_s),
        _take(old.link_variance_s2, link, fresh.link_variance_s2),
    )


def _rescaled(capacity: LogFilter, old: Problem, new: Problem, rows: Ints) -> LogFilter:
    """What endpoints come or go, capacity comes or goes with, before anybody measures it."""
    factor = np.where(rows >= 0, new.servers / old.servers[np.maximum(rows, 0)], 1.0)
    return replace(capacity, mean=capacity.mean + np.log(factor))


def _take(old: np.ndarray, rows: Ints, blank: np.ndarray) -> np.ndarray:
    """Old values where ``rows`` names one, ``blank`` where it is -1."""
    if len(old) == 0:
        return blank
    known = (rows >= 0).reshape(-1, *[1] * (old.ndim - 1))
    return np.where(known, old[np.maximum(rows, 0)], blank)


def _pair_names(problem: Problem) -> list[tuple[RouteKey, ProviderName]]:
    return [
        (problem.routes[r], problem.providers[j])
        for r, j in zip(problem.pairs.route, problem.pairs.provider, strict=True)
    ]


def _index(problem: Problem) -> dict[tuple[RouteKey, ProviderName], int]:
    return {names: i for i, names in enumerate(_pair_names(problem))}


def _pair_before(
    before: dict[tuple[RouteKey, ProviderName], int],
    problem: Problem,
    route: RouteKey,
    provider: ProviderName,
) -> int:
    """Row of the same pair before, else of the phase its group came from, else -1."""
    row = before.get((route, provider))
    group = problem.groups[route.group]
    if row is None and group.origin_phase is not None:
        origin = replace(route.group, phase=group.origin_phase)
        row = before.get((RouteKey(origin, route.service), provider))
    return -1 if row is None else row
