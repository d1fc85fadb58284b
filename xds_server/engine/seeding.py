"""Where a new engine starts when history says what the last one knew.

A seed is what the last engine would know now, had it run on without telemetry: variance grows
with age as it does for a quiet provider, counted errors fade. Shares are taken over only
while sidecars still have them: later they are at the baseline, and one step from there may
not be larger than any other.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from xds_server.core import limits
from xds_server.core.estimate import DRIFT_PER_S, ERROR_FADE_S, ERROR_MEMORY, ErrorCounts
from xds_server.core.tables import Floats
from xds_server.engine.state import EngineState
from xds_server.engine.types import Problem
from xds_server.model.history import ProviderSeed, RouteSeed, Seeds
from xds_server.model.ids import RouteKey

DEMAND_FRESH_S: Final = 60.0
"""Demand that was measured longer ago says nothing about demand now."""
_UNKNOWN_VARIANCE: Final = 1.0


def plant_providers(state: EngineState, seeds: Seeds) -> None:
    """Start the provider models of a new ``state`` from what was known of them."""
    models, problem = state.models, state.problem
    known = [seeds.providers.get(name) for name in problem.providers]
    rows = np.array([j for j, seed in enumerate(known) if seed is not None], dtype=np.int64)
    found = [seed for seed in known if seed is not None]
    if not found:
        return
    age_s = np.array([s.age_s for s in found])
    sigma = np.array([s.service_sigma for s in found])
    attempts = np.array([min(s.attempts, ERROR_MEMORY) for s in found])
    attempts *= np.exp(-age_s / ERROR_FADE_S)
    failed = np.array([s.error_ratio for s in found]) * attempts
    state.models = replace(
        models,
        service=replace(
            models.service,
            mean=_put(models.service.mean, rows, np.log([s.service_s for s in found])),
            variance=_put(
                models.service.variance,
                rows,
                np.minimum(sigma**2 + DRIFT_PER_S * age_s, _UNKNOWN_VARIANCE),
            ),
        ),
        capacity=replace(
            models.capacity,
            mean=_put(
                models.capacity.mean,
                rows,
                np.log([s.capacity_factor / s.service_s for s in found])
                + np.log(problem.servers[rows]),
            ),
        ),
        cv2=_column(models.cv2, rows, found, "response_cv2"),
        tail_ratio=_column(models.tail_ratio, rows, found, "tail_ratio"),
        errors=ErrorCounts(
            _put(models.errors.failed, rows, failed),
            _put(models.errors.attempts, rows, attempts),
            models.errors.clean,
        ),
    )


def plant_routes(
    state: EngineState,
    before: Problem,
    seeds: Seeds,
    *,
    now_s: float,
    ttl_s: float,
) -> None:
    """Start routes that ``before`` did not have from what was known of them.

    ``ttl_s`` is how long sidecars keep weights that nobody renews; 0 if none were published.
    """
    problem, models = state.problem, state.models
    if not seeds.routes or not problem.routes:
        return
    known = set(before.routes)
    late_s = now_s - seeds.read_at_s
    calibration, pressure = models.calibration.copy(), models.budget_pressure.copy()
    demand, shares = models.demand.mean.copy(), state.shares.copy()
    planted = np.zeros(len(shares), dtype=bool)
    ends = np.append(problem.pairs.starts, len(shares))
    any_phase = _newest_of_any_phase(seeds.routes)
    for r, route in enumerate(problem.routes):
        origin = problem.groups[route.group].origin_phase
        inherits = origin and _in_phase(route, origin) in known
        seed = seeds.routes.get(route) or any_phase.get(_in_phase(route, ""))
        if seed is None or route in known or inherits:
            continue
        calibration[r], pressure[r] = seed.calibration_ratio, seed.budget_pressure
        if seed.age_s + late_s <= DEMAND_FRESH_S:
            demand[r] = np.log(max(seed.demand_rps, 1e-3))
        if seed.age_s + late_s <= ttl_s and seed.shares:
            mine = slice(ends[r], ends[r + 1])
            names = [problem.providers[j] for j in problem.pairs.provider[mine]]
            asked = np.array([seed.shares.get(name, 0.0) for name in names])
            if asked.sum() > 0.0:
                shares[mine], planted[mine] = asked / asked.sum(), True
    state.models = replace(
        models,
        calibration=calibration,
        budget_pressure=pressure,
        demand=replace(models.demand, mean=demand),
    )
    allowed = limits.onto_allowed(problem.pairs, shares, problem.allowed)
    state.shares = np.where(planted, allowed, state.shares)
    state.last_good = np.where(planted, allowed, state.last_good)


def _newest_of_any_phase(seeds: Mapping[RouteKey, RouteSeed]) -> dict[RouteKey, RouteSeed]:
    """By the route without its phase: after a restart, all instances seem to be new."""
    newest: dict[RouteKey, RouteSeed] = {}
    for key, seed in seeds.items():
        route = _in_phase(key, "")
        if route not in newest or seed.age_s < newest[route].age_s:
            newest[route] = seed
    return newest


def _in_phase(route: RouteKey, phase: str) -> RouteKey:
    return RouteKey(replace(route.group, phase=phase), route.service)


def _column(values: Floats, rows: np.ndarray, seeds: list[ProviderSeed], name: str) -> Floats:
    return _put(values, rows, np.array([getattr(seed, name) for seed in seeds]))


def _put(values: Floats, rows: np.ndarray, new: Floats) -> Floats:
    """Values with ``new`` in ``rows``, where it is a number."""
    out = values.copy()
    out[rows] = np.where(np.isfinite(new), new, out[rows])
    return out
