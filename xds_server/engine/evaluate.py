"""Stage 1: what the mesh is doing, and models brought up to date with it."""

from dataclasses import dataclass, replace

import numpy as np

from xds_server.core import latency, objective
from xds_server.core.latency import Stations
from xds_server.core.objective import PairCosts
from xds_server.core.tables import Bools, Floats, Ints
from xds_server.engine.models import Models, stations
from xds_server.engine.observe import map_rows, observe
from xds_server.engine.state import EngineState
from xds_server.engine.types import Evaluation, Observation, Problem
from xds_server.engine.update import backlog, by_provider, update_demand, update_models
from xds_server.model.telemetry import PairWindow, ProviderLoad

FRESH_TICKS = 3.0
"""Telemetry older than this many ticks freezes a route."""
DRAIN_S = 2.0
"""Seconds that pass before weights that are decided now have changed a queue."""
BACKLOG_KEPT = 0.25
"""Part of a backlog that counts however fast it should drain."""
TAU_RATIO = 0.2
"""Reluctance to move, in mean latencies of the route (times 1 + uncertainty)."""


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
    if state.rows is None or not state.rows.fits(problem, window):
        state.rows = map_rows(problem, window)
    seen = observe(problem, window, state.rows)
    measured = seen.route_age_s <= FRESH_TICKS * tick_s
    models = _learn(state, seen, load, measured, window.window_s, tick_s)
    curves, demand = stations(problem, models), _demand(problem, models.demand_rps)
    blend = np.clip((now_s - problem.since_s) / np.maximum(problem.blend_s, 1e-9), 0.0, 1.0)
    price_usd = _live_price(problem, load)
    # A byte is charged where it crosses regions; before any response, nothing is known.
    bytes_per_request = np.nan_to_num(seen.route_bytes, nan=0.0)[problem.pairs.route]
    egress_usd = problem.egress_usd_per_byte * bytes_per_request
    usd = price_usd[problem.pairs.provider] + egress_usd
    (usd_by_route,) = problem.pairs.weigh_by_route(state.shares, usd)
    spend = demand * usd_by_route * 3600.0
    budget = _blend(problem, blend, "budget_usd_per_h")
    pressure = _budget_pressure(models.budget_pressure, spend, budget)
    models = replace(models, budget_pressure=pressure)
    planned_rps = problem.pairs.loads(state.shares, demand)
    slo_s = _blend(problem, blend, "slo_s")
    rtt_s = models.distances.rtt_s[problem.place]
    planned = _Planned(planned_rps, *latency.mean_and_p95_s(curves, planned_rps))
    costs = _costs(
        problem, curves, models, seen, price_usd, egress_usd, slo_s, blend, planned, rtt_s
    )
    evaluation = Evaluation(
        now_s=now_s,
        observation=seen,
        stations=curves,
        rtt_s=rtt_s,
        sigma_ratio=np.sqrt(models.service.variance),
        error_ratio=models.errors.ratio,
        price_usd=price_usd,
        demand_rps=demand,
        shares_now=state.shares,
        last_step=state.trials.pair.step,
        allowed=problem.allowed,
        costs=costs,
        slo_s=slo_s,
        tau_ms=_tau_ms(state, models, planned, rtt_s) * state.trials.damping(now_s),
        usd_per_request=usd,
        calibration=models.calibration,
        measured=measured,
    )
    return evaluation, models


def _learn(
    state: EngineState,
    seen: Observation,
    load: ProviderLoad,
    measured: Bools,
    window_s: float,
    tick_s: float,
) -> Models:
    """Bring models and demand up to date with the window."""
    overlap = min(1.0, tick_s / max(window_s, 1e-9))
    if seen.route_age_s.min(initial=np.inf) > window_s:
        overlap = 0.0  # nothing in it is new: what was learned from it is not learned again
    models = update_models(
        state.problem,
        state.models,
        seen,
        load,
        state.planned_rps,
        window_s,
        overlap=overlap,
        elapsed_s=tick_s,
    )
    demand = update_demand(
        models.demand, seen.route_recent_rps, window_s, overlap, measured, tick_s
    )
    return replace(models, demand=demand)


@dataclass(frozen=True, slots=True)
class _Planned:
    """What the commanded shares give, never what was measured; (J,) each."""

    rps: Floats
    mean_s: Floats  # there
    p95_s: Floats


def _tau_ms(state: EngineState, models: Models, planned: _Planned, rtt_s: Floats) -> Floats:
    """(R,) reluctance to move: in proportion to the latency, and to how uncertain it is."""
    problem = state.problem
    pairs, shares = problem.pairs, state.shares
    # Relative variance of the models behind each route's traffic.
    at_providers_s, variance = pairs.sums_by_route(shares, planned.mean_s, models.service.variance)
    (away_s,) = pairs.weigh_by_route(shares, rtt_s)
    mean_ms = 1e3 * (at_providers_s + away_s)
    uncertainty = models.calibration * np.sqrt(variance)
    tau: Floats = TAU_RATIO * np.maximum(mean_ms, 0.1) * (1.0 + uncertainty)
    return tau


def _live_price(problem: Problem, load: ProviderLoad) -> Floats:
    """(J,) dollars per request: what the provider announces, else what was declared."""
    announced = by_provider(problem, load, load.price_per_million_usd) / 1e6
    usable = np.isfinite(announced) & (announced >= 0.0)
    return np.where(usable, announced, problem.declared_usd)


def _left_of_backlog(backlog_s: Floats, capacity_rps: Floats, planned_rps: Floats) -> Floats:
    """(J,) what will be left of a backlog when what is decided now is in force, s.

    What was commanded before takes effect meanwhile, and drains it with the capacity that it
    leaves over; without that, every tick would flee the same queue once more.
    """
    spare = np.where(np.isfinite(capacity_rps), 1.0 - planned_rps / capacity_rps, 0.0)
    drained = np.maximum(backlog_s - np.maximum(spare, 0.0) * DRAIN_S, 0.0)
    # Whether it drains is a forecast, and a queue that stands is not: both count.
    return np.maximum(drained, BACKLOG_KEPT * backlog_s)


def _demand(problem: Problem, smoothed: Floats) -> Floats:
    """(R,) requests/s as measured and smoothed; before any measurement, what is expected."""
    return np.where(np.isfinite(smoothed), smoothed, problem.target.expected_rps * problem.members)


def _blend(problem: Problem, blend: Floats, name: str) -> Floats:
    """(R,) or (P,) an objective between those of the origin's phase and of this phase.

    Where only one of the two is finite (the other phase has no such objective), the new
    phase's holds at once.
    """
    old: Floats = getattr(problem.origin, name)
    new: Floats = getattr(problem.target, name)
    if np.all(blend >= 1.0):
        return new
    part = blend if old.shape == blend.shape else blend[problem.pairs.route]
    both = np.isfinite(old) & np.isfinite(new)
    safe_old, safe_new = np.where(both, old, 0.0), np.where(both, new, 0.0)
    return np.where(both, safe_old + part * (safe_new - safe_old), new)


def _budget_pressure(previous: Floats, spend_usd_per_h: Floats, budget: Floats) -> Floats:
    """(R,) dearer money while forecast spending exceeds the budget; eases when it does not."""
    over = np.where(np.isfinite(budget), spend_usd_per_h / np.maximum(budget, 1e-9), 0.0)
    step = np.clip(over - 1.0, -0.5, 1.0) * 0.2
    return np.where(np.isfinite(budget), np.clip(previous * np.exp(step), 1.0, 20.0), 1.0)


def _costs(
    problem: Problem,
    curves: Stations,
    models: Models,
    seen: Observation,
    price_usd: Floats,
    egress_usd: Floats,
    slo_s: Floats,
    blend: Floats,
    planned: _Planned,
    rtt_s: Floats,
) -> PairCosts:
    """Every load-independent term of every pair, in milliseconds; ``rtt_s`` is (P,)."""
    pairs = problem.pairs
    provider, route = pairs.provider, pairs.route
    backlog_s = _left_of_backlog(
        backlog(curves, models.capacity_rps, seen.provider_rps, seen.provider_active),
        models.capacity_rps,
        planned.rps,
    )
    idle_s, baseline_usd = pairs.sums_by_route(
        problem.baseline_shares, curves.idle_s, problem.declared_usd
    )
    (away_s,) = pairs.weigh_by_route(problem.baseline_shares, rtt_s)
    baseline_ms = 1e3 * (idle_s + away_s)
    rate = models.budget_pressure * objective.exchange_ms_per_usd(
        _blend(problem, blend, "performance_weight"),
        _blend(problem, blend, "cost_weight"),
        baseline_ms,
        baseline_usd,
    )
    p95 = planned.p95_s[provider] + rtt_s
    ms_per_usd = rate[route]
    # Each failed attempt costs the route's timeout; how many there are is the provider's.
    retries = objective.error_ms(models.errors.ratio, np.ones(pairs.providers))
    outside = _blend(problem, blend, "unpreferred")
    return PairCosts(
        distance=1e3 * rtt_s,
        backlog=_spread(1e3 * backlog_s, provider),
        error=problem.failure_ms[route] * _spread(retries, provider),
        price=ms_per_usd * price_usd[provider],
        egress=ms_per_usd * egress_usd,
        geography=(objective.PREFER_RATIO * baseline_ms)[route] * outside
        if outside.any()
        else outside,
        slo=objective.slo_ms(p95, slo_s[route]),
    )


def _spread(of_provider: Floats, provider: Ints) -> Floats:
    """(J,) -> (P,); nothing is looked up where all are alike, as backlogs and errors mostly are."""
    first = of_provider[:1]
    if (of_provider == first).all():
        return np.full(len(provider), first[0] if len(first) else 0.0)
    return of_provider[provider]
