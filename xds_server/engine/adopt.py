"""What is remembered, carried over to another problem: routes, providers and places come and go."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np

from xds_server.core import limits
from xds_server.core.distance import Distances, no_distances
from xds_server.core.estimate import ErrorCounts, LogFilter
from xds_server.core.power import PowerFits
from xds_server.core.tables import Floats, Ints
from xds_server.engine.models import Models
from xds_server.engine.problem import STANDBY
from xds_server.engine.state import EngineState, initial_state
from xds_server.engine.trials import PairTrials, RouteTrials, Trials
from xds_server.engine.types import Problem
from xds_server.model.ids import ProviderName, RouteKey

_Columns = TypeVar("_Columns", LogFilter, ErrorCounts, PowerFits, RouteTrials, PairTrials)


def adopt(old: EngineState, problem: Problem) -> EngineState:
    """Carry everything that still has a row over to ``problem``.

    A group that its members entered from another phase starts from that phase's shares,
    so that a change of phase moves no traffic by itself.
    """
    new = initial_state(problem)
    at = _find_rows(old.problem, problem)
    pairs = problem.pairs
    # A pair that is new in a route which had shares starts at 0, not at its baseline.
    inherited = pairs.sum_by_route((at.pair >= 0).astype(np.float64)) > 0.0
    blank = np.where(inherited[pairs.route], 0.0, problem.baseline_shares)
    carried = _take(old.shares, at.pair, blank)
    # Who goes back to standby still works: holding takes its traffic in bounded steps.
    left = np.array([why == STANDBY for why in problem.excluded_because], dtype=bool)
    shares = limits.onto_allowed(pairs, carried, problem.allowed | (left & (carried > 0.0)))
    return EngineState(
        problem,
        shares,
        limits.onto_allowed(pairs, shares, problem.allowed),
        _models(old, new, at),
        limits.onto_allowed(pairs, _take(old.last_good, at.pair, blank), problem.allowed),
        _weights(old, problem, at, carried, shares),
        _trials(old, new, at),
        _take(old.fragile, at.route, new.fragile),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where each row of the new problem was in the old one; -1: nowhere."""

    pair: Ints  # (P,)
    route: Ints  # (R,)
    provider: Ints  # (J,)
    place: Ints  # (Q,)
    link: Ints  # (K,)


def _find_rows(old: Problem, new: Problem) -> _Rows:
    before = _index(old)

    def rows(was: Sequence[Hashable], now: Sequence[Hashable]) -> Ints:
        index = {key: i for i, key in enumerate(was)}
        return np.array([index.get(key, -1) for key in now], dtype=np.int64)

    return _Rows(
        np.array([_pair_before(before, new, r, j) for r, j in _pair_names(new)], dtype=np.int64),
        rows(old.routes, new.routes),
        rows(old.providers, new.providers),
        rows(old.places, new.places),
        rows(old.links, new.links),
    )


def _weights(
    old: EngineState, problem: Problem, at: _Rows, carried: Floats, shares: Floats
) -> Ints:
    """(P,) weights that are still in force; 0 where none are."""
    pairs = problem.pairs
    same = (at.pair >= 0) & (at.route >= 0)[pairs.route]
    # A route whose shares had to change has no weights yet that say so.
    forced = pairs.any_by_route(np.abs(shares - carried) > 1e-6)
    forced &= pairs.any_by_route(problem.allowed)
    same &= ~forced[pairs.route]
    return np.where(same, _take(old.weights, at.pair, np.zeros(len(at.pair), dtype=np.int64)), 0)


def _trials(old: EngineState, new: EngineState, at: _Rows) -> Trials:
    """Trials go on, but for routes with other choices: there is nothing to go back to."""
    allowed = new.problem.allowed
    other = new.problem.pairs.any_by_route(
        (at.pair < 0) | (allowed != _take(old.problem.allowed, at.pair, allowed))
    )
    route = _carry(old.trials.route, at.route, new.trials.route)
    return Trials(
        replace(route, opened_s=np.where(other, np.nan, route.opened_s)),
        _carry(old.trials.pair, at.pair, new.trials.pair),
    )


def _models(old: EngineState, new: EngineState, at: _Rows) -> Models:
    m, fresh = old.models, new.models
    by_provider, by_route = at.provider, at.route
    return Models(
        service=replace(_carry(m.service, by_provider, fresh.service), prior=fresh.service.prior),
        capacity=_rescaled(
            _carry(m.capacity, by_provider, fresh.capacity), old.problem, new.problem, by_provider
        ),
        tail_ratio=_take(m.tail_ratio, by_provider, fresh.tail_ratio),
        rps=_take(m.rps, by_provider, fresh.rps),
        turned=_take(m.turned, by_provider, fresh.turned),
        behind_s=_take(m.behind_s, by_provider, fresh.behind_s),
        cv2=_take(m.cv2, by_provider, fresh.cv2),
        errors=_carry(m.errors, by_provider, fresh.errors),
        power=_carry(m.power, by_provider, fresh.power),
        distances=_distances(m.distances, new.problem, at),
        calibration=_take(m.calibration, by_route, fresh.calibration),
        demand=_carry(m.demand, by_route, fresh.demand),
        budget_pressure=_take(m.budget_pressure, by_route, fresh.budget_pressure),
    )


def _carry(old: _Columns, rows: Ints, blank: _Columns) -> _Columns:
    """Every column of ``old`` where ``rows`` names one of its rows, of ``blank`` elsewhere."""
    columns = {
        f.name: _take(getattr(old, f.name), rows, getattr(blank, f.name)) for f in fields(blank)
    }
    return replace(blank, **columns)


def _distances(old: Distances, problem: Problem, at: _Rows) -> Distances:
    fresh = no_distances(len(problem.places), len(problem.links))
    # A new place is as far away as its link.
    unknown = _take(old.link_s, at.link, fresh.link_s)[problem.place_link] * ~problem.place_home
    return Distances(
        _take(old.rtt_s, at.place, unknown),
        _take(old.own_s, at.place, unknown),
        _take(old.variance_s2, at.place, fresh.variance_s2),
        _take(old.link_s, at.link, fresh.link_s),
        _take(old.link_variance_s2, at.link, fresh.link_variance_s2),
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
