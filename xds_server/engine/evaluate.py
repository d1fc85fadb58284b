"""Stage 1: what the mesh is doing, and models brought up to date with it."""

from dataclasses import replace

import numpy as np

from xds_server.core import estimate, latency, objective
from xds_server.core.latency import Stations
from xds_server.core.objective import PairCosts
from xds_server.core.tables import Bools, Floats
from xds_server.engine.observe import observe
from xds_server.engine.state import EngineState, Models
from xds_server.engine.types import Evaluation, Observation, Problem
from xds_server.model.telemetry import PairWindow, ProviderLoad

FRESH_TICKS = 3.0
"""Telemetry older than this many ticks freezes a route."""
TAU_RATIO = 0.7
"""Reluctance to move, in mean latencies of the route (times 1 + uncertainty)."""
DEMAND_SMOOTHING = 0.6
"""Weight of the newest window in the demand."""
_SERVICE_CV2 = 0.5
"""Squared coefficient of variation assumed of one response time."""
_UNKNOWN_SERVICE_S = 0.05
"""Service time of a provider that nobody has measured or declared, s."""


def evaluate(
    state: EngineState, window: PairWindow, load: ProviderLoad, *, now_s: float, tick_s: float
) -> tuple[Evaluation, Models]:
    """Aggregate the window, update the provider models, and price every pair.

    Parameters
    ----------
    window : what the sidecars reported over the last ``window.window_s``
    load : what the providers say of themselves
    tick_s : time since the last tick, s

    Returns
    -------
    the evaluation, and the models to keep for the next tick
    """
    problem = state.problem
    seen = observe(problem, window)
    overlap = min(1.0, tick_s / max(window.window_s, 1e-9))
    models = _update_models(state, seen, load, overlap, tick_s)
    stations = _stations(problem, models)
    price_usd = _live_price(problem, load)
    measured = seen.route_age_s <= FRESH_TICKS * tick_s
    demand = _demand(problem, models.demand_rps, seen, measured)
    blend = np.clip((now_s - problem.since_s) / np.maximum(problem.blend_s, 1e-9), 0.0, 1.0)
    # A byte is charged where it crosses regions; before any response, nothing is known.
    bytes_per_request = np.nan_to_num(seen.route_bytes, nan=0.0)[problem.pairs.route]
    egress_usd = problem.egress_usd_per_byte * bytes_per_request
    usd = price_usd[problem.pairs.provider] + egress_usd
    spend = demand * problem.pairs.sum_by_route(state.shares * usd) * 3600.0
    pressure = _budget_pressure(
        models.budget_pressure, spend, _blend(problem, blend, "budget_usd_per_h")
    )
    models = replace(
        models, demand_rps=np.where(measured, demand, models.demand_rps), budget_pressure=pressure
    )
    slo_s = _blend(problem, blend, "slo_s")
    costs = _costs(state, stations, models, price_usd, egress_usd, slo_s, blend, demand)
    uncertainty = _route_uncertainty(state, models)
    mean_ms = 1e3 * problem.pairs.sum_by_route(
        state.shares * latency.mean_s(stations, _planned_rps(state, demand))[problem.pairs.provider]
    )
    evaluation = Evaluation(
        now_s=now_s,
        observation=seen,
        stations=stations,
        sigma_ratio=np.sqrt(models.service.variance),
        error_ratio=models.errors.ratio,
        price_usd=price_usd,
        demand_rps=demand,
        shares_now=state.shares,
        allowed=problem.allowed,
        costs=costs,
        slo_s=slo_s,
        tau_ms=TAU_RATIO * np.maximum(mean_ms, 0.1) * (1.0 + uncertainty),
        usd_per_request=usd,
        calibration=models.calibration,
        measured=measured,
    )
    return evaluation, models


def _update_models(
    state: EngineState, seen: Observation, load: ProviderLoad, overlap: float, elapsed_s: float
) -> Models:
    """Explain the observed response times by service times; take in utilisation."""
    problem, models = state.problem, state.models
    rps, observed = seen.provider_rps, seen.provider_latency_s
    heard = np.isfinite(observed)
    ones = np.ones_like(rps)
    service = latency.infer_service_s(
        np.where(heard, np.maximum(observed, 1e-4), 1.0), rps, problem.servers, models.kappa, ones
    )
    # A window reaches over several ticks: each sample may count once.
    samples = np.where(heard, seen.provider_responses * overlap, 0.0)
    start = np.where(models.known, models.service.mean, np.where(heard, np.log(service), np.nan))
    service_filter, _ = estimate.update(
        replace(models.service, mean=start),
        np.log(service),
        samples,
        _SERVICE_CV2 * ones,
        elapsed_s,
    )
    believed = np.exp(
        np.where(np.isfinite(service_filter.mean), service_filter.mean, np.log(_UNKNOWN_SERVICE_S))
    )
    first = heard & ~models.known & np.isfinite(problem.capacity_prior_rps)
    kappa = np.where(first, problem.capacity_prior_rps * believed / problem.servers, models.kappa)
    busy = _utilisation(problem, load)
    measured_kappa = rps * believed / (problem.servers * np.maximum(busy, 1e-3))
    usable = np.isfinite(busy) & (busy > 0.05) & (rps > 1.0)
    kappa = np.where(usable, kappa + 0.2 * (measured_kappa - kappa), kappa)
    wait = latency.wait_s(Stations(believed, problem.servers, kappa, ones, ones), rps)
    tail = (np.nan_to_num(seen.provider_p95_s, nan=0.0) - latency.WAIT_P95_RATIO * wait) / believed
    tail_weight = np.where(np.isfinite(seen.provider_p95_s), samples / (samples + 50.0), 0.0)
    return replace(
        models,
        service=service_filter,
        kappa=np.clip(kappa, 0.1, 20.0),
        tail_ratio=models.tail_ratio + tail_weight * (np.clip(tail, 1.0, 10.0) - models.tail_ratio),
        errors=estimate.count_errors(
            models.errors,
            seen.provider_errors * overlap,
            np.maximum(seen.provider_attempts, seen.provider_errors) * overlap,
            elapsed_s,
        ),
    )


def _stations(problem: Problem, models: Models) -> Stations:
    ones = np.ones(problem.pairs.providers)
    mean = np.where(models.known, models.service.mean, np.log(_UNKNOWN_SERVICE_S))
    return Stations(np.exp(mean), problem.servers, models.kappa, ones, models.tail_ratio)


def _by_provider(problem: Problem, load: ProviderLoad, values: Floats) -> Floats:
    """(J,) a column of the load reports in the problem's order; NaN where absent."""
    index = {name: i for i, name in enumerate(load.providers)}
    rows = [index.get(name, -1) for name in problem.providers]
    padded = np.append(values, np.nan)
    taken: Floats = padded[np.array(rows, dtype=np.int64)]
    return taken


def _utilisation(problem: Problem, load: ProviderLoad) -> Floats:
    return _by_provider(problem, load, load.utilisation_ratio)


def _live_price(problem: Problem, load: ProviderLoad) -> Floats:
    """(J,) dollars per request: what the provider announces, else what was declared."""
    announced = _by_provider(problem, load, load.price_per_million_usd) / 1e6
    usable = np.isfinite(announced) & (announced >= 0.0)
    return np.where(usable, announced, problem.declared_usd)


def _demand(problem: Problem, smoothed: Floats, seen: Observation, measured: Bools) -> Floats:
    """(R,) requests/s: measured and smoothed; before any measurement, what is expected."""
    start = np.where(np.isfinite(smoothed), smoothed, seen.route_rps)
    fresh = start + DEMAND_SMOOTHING * (seen.route_rps - start)
    members = np.array([float(len(problem.groups[r.group].nodes)) for r in problem.routes])
    expected = problem.target.expected_rps * members
    known = np.where(np.isfinite(smoothed), smoothed, expected)
    return np.where(measured, fresh, known)


def _blend(problem: Problem, blend: Floats, name: str) -> Floats:
    """(R,) or (P,) an objective between those of the origin's phase and of this phase.

    Where only one of the two is finite (the other phase has no such objective), the new
    phase's holds at once.
    """
    old: Floats = getattr(problem.origin, name)
    new: Floats = getattr(problem.target, name)
    part = blend if old.shape == blend.shape else blend[problem.pairs.route]
    both = np.isfinite(old) & np.isfinite(new)
    safe_old, safe_new = np.where(both, old, 0.0), np.where(both, new, 0.0)
    return np.where(both, safe_old + part * (safe_new - safe_old), new)


def _budget_pressure(previous: Floats, spend_usd_per_h: Floats, budget: Floats) -> Floats:
    """(R,) dearer money while forecast spending exceeds the budget; eases when it does not."""
    over = np.where(np.isfinite(budget), spend_usd_per_h / np.maximum(budget, 1e-9), 0.0)
    step = np.clip(over - 1.0, -0.5, 1.0) * 0.2
    return np.where(np.isfinite(budget), np.clip(previous * np.exp(step), 1.0, 20.0), 1.0)


def _planned_rps(state: EngineState, demand: Floats) -> Floats:
    """(J,) load that the commanded shares give, never the load that was measured."""
    pairs = state.problem.pairs
    return pairs.sum_by_provider(demand[pairs.route] * state.shares)


def _costs(
    state: EngineState,
    stations: Stations,
    models: Models,
    price_usd: Floats,
    egress_usd: Floats,
    slo_s: Floats,
    blend: Floats,
    demand: Floats,
) -> PairCosts:
    """Every load-independent term of every pair, in milliseconds."""
    problem, pairs = state.problem, state.problem.pairs
    provider, route = pairs.provider, pairs.route
    baseline_ms = 1e3 * pairs.sum_by_route(problem.baseline_shares * stations.service_s[provider])
    baseline_usd = pairs.sum_by_route(problem.baseline_shares * problem.declared_usd[provider])
    rate = models.budget_pressure * objective.exchange_ms_per_usd(
        _blend(problem, blend, "performance_weight"),
        _blend(problem, blend, "cost_weight"),
        baseline_ms,
        baseline_usd,
    )
    p95 = latency.p95_s(stations, _planned_rps(state, demand))[provider]
    return PairCosts(
        error=objective.error_ms(models.errors.ratio[provider], problem.failure_ms[route]),
        price=rate[route] * price_usd[provider],
        egress=rate[route] * egress_usd,
        geography=objective.PREFER_RATIO
        * baseline_ms[route]
        * _blend(problem, blend, "unpreferred"),
        slo=objective.slo_ms(p95, slo_s[route]),
    )


def _route_uncertainty(state: EngineState, models: Models) -> Floats:
    """(R,) relative standard deviation of the models behind each route's traffic."""
    pairs = state.problem.pairs
    variance = pairs.sum_by_route(state.shares * models.service.variance[pairs.provider])
    uncertainty: Floats = models.calibration * np.sqrt(variance)
    return uncertainty
