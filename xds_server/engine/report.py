"""The last turn as operators are shown it, and as metrics."""

import math
from collections.abc import Mapping

import numpy as np

from xds_server.core import latency, limits
from xds_server.engine.runner import Turn
from xds_server.engine.types import Problem
from xds_server.model.decision import HOLD_REASONS, MOVES
from xds_server.model.ids import ProviderName, ServiceName
from xds_server.model.slow import SlowKind
from xds_server.model.status import BottleneckStatus, ProviderStatus, RouteStatus, ShareStatus
from xds_server.model.topology import Address
from xds_server.observability import Metrics


def routes_status(problem: Problem, turn: Turn) -> tuple[RouteStatus, ...]:
    """One row per route."""
    return tuple(_route(problem, turn, r) for r in range(len(problem.routes)))


def providers_status(
    problem: Problem,
    turn: Turn,
    services: Mapping[ProviderName, ServiceName],
    endpoints: Mapping[ProviderName, tuple[Address, ...]],
) -> tuple[ProviderStatus, ...]:
    """One row per provider."""
    evaluation = turn.tick.evaluation
    seen = evaluation.observation
    busy = latency.utilisation_ratio(evaluation.stations, seen.provider_rps)
    capacity = evaluation.stations.capacity_rps
    known = turn.tick.lesson.models.capacity
    # Where nobody said anything of it, it follows from the service time.
    sigma_ratio = np.where(np.isfinite(known.mean), np.sqrt(known.variance), evaluation.sigma_ratio)
    return tuple(
        ProviderStatus(
            provider=name,
            service=services.get(name, ""),
            endpoints=len(endpoints.get(name, ())),
            rps=float(seen.provider_rps[j]),
            latency_ms=_known(1e3 * seen.provider_latency_s[j]),
            latency_p95_ms=_known(1e3 * seen.provider_p95_s[j]),
            error_ratio=float(evaluation.error_ratio[j]),
            utilisation_ratio=float(busy[j]),
            capacity_rps=float(capacity[j]),
            price_per_million_usd=float(1e6 * evaluation.price_usd[j]),
            capacity_sigma_ratio=float(sigma_ratio[j]),
        )
        for j, name in enumerate(problem.providers)
    )


def bottlenecks_status(turn: Turn) -> tuple[BottleneckStatus, ...]:
    """Providers that delay their callers, worst first."""
    return tuple(
        BottleneckStatus(b.provider, b.utilisation_ratio, b.rent_ms_per_s)
        for b in turn.tick.bottlenecks.found
    )


def _route(problem: Problem, turn: Turn, r: int) -> RouteStatus:
    key = problem.routes[r]
    evaluation, decision = turn.tick.evaluation, turn.tick.decision
    seen = evaluation.observation
    return RouteStatus(
        application=key.group.application,
        phase=key.group.phase,
        locality=str(key.group.locality),
        service=key.service,
        instances=len(problem.groups[key.group].nodes),
        demand_rps=float(evaluation.demand_rps[r]),
        latency_ms=_known(1e3 * seen.route_latency_s[r]),
        latency_p95_ms=_known(1e3 * seen.route_p95_s[r]),
        slo_p95_ms=_known(1e3 * evaluation.slo_s[r]),
        predicted_latency_ms=float(1e3 * decision.chosen.latency_s[r]),
        usd_per_million=float(decision.chosen.usd_per_million[r]),
        move=MOVES[decision.move[r]].value,
        hold_reason=HOLD_REASONS[decision.reason[r]].value,
        fragile=bool(decision.fragile[r]),
        providers=tuple(
            _share(problem, turn, int(p)) for p in np.flatnonzero(problem.pairs.route == r)
        ),
    )


def _share(problem: Problem, turn: Turn, p: int) -> ShareStatus:
    seen, deployed = turn.tick.evaluation.observation, turn.tick.deployment
    route_rps = float(seen.route_rps[problem.pairs.route[p]])
    share = float(deployed.shares[p])
    return ShareStatus(
        provider=problem.providers[problem.pairs.provider[p]],
        weight=round(share * limits.WEIGHT_TOTAL),
        share=share,
        baseline_share=float(problem.baseline_shares[p]),
        observed_share=float(seen.pair_rps[p]) / route_rps if route_rps > 0.0 else None,
        excluded_because=problem.excluded_because[p],
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def record_turn(metrics: Metrics, problem: Problem, turn: Turn) -> None:
    """Set every metric that a tick changes."""
    decision = turn.tick.decision
    metrics.ticks_total.inc()
    metrics.tick_duration_seconds.observe(turn.duration_s)
    metrics.solver_iterations.set(decision.iterations)
    metrics.solver_gap_ratio.set(decision.gap_ratio)
    metrics.gain_ms.set(decision.hold.total - decision.chosen.total)
    if turn.tick.deployment.published:
        metrics.weight_published_total.inc(len(decision.shares))
    for z in turn.tick.lesson.outcomes.z:
        metrics.forecast_z.observe(z)
    for reason in decision.hold_reason:
        if reason:
            metrics.holds_total.labels(reason.value).inc()
    for move in decision.move:
        metrics.decisions_total.labels(MOVES[move].value).inc()
    metrics.fragile_ratio.set(float(decision.fragile.sum()) / max(len(decision.fragile), 1))
    if (seen := turn.tick.foresight) is not None:
        metrics.foreseen_total.labels("shortened").inc(seen.shortened)
        metrics.foreseen_total.labels("held").inc(seen.held)
    metrics.reverts_total.inc(len(turn.tick.reverted))
    counted = {
        SlowKind.SUBSTITUTE: metrics.substitutions_total,
        SlowKind.FLAG: metrics.flag_switches_total,
        SlowKind.SCALE: metrics.scale_decisions_total,
    }
    for slow in turn.slow:
        if slow.enforced or slow.kind is SlowKind.SCALE:
            counted[slow.kind].labels(slow.action).inc()
    metrics.keep_routes(problem.routes)
    for r, status in enumerate(routes_status(problem, turn)):
        _record_route(metrics, status, float(turn.tick.evaluation.calibration[r]))
    for provider in providers_status(problem, turn, {}, {}):
        name = provider.provider
        metrics.provider_rps.labels(name).set(provider.rps)
        metrics.provider_latency_seconds.labels(name).set(_seconds(provider.latency_ms))
        metrics.provider_utilisation_ratio.labels(name).set(provider.utilisation_ratio)
        metrics.provider_error_ratio.labels(name).set(provider.error_ratio)
        metrics.provider_price_usd_per_million.labels(name).set(provider.price_per_million_usd)


def _record_route(metrics: Metrics, route: RouteStatus, calibration: float) -> None:
    labels = (route.application, route.phase, route.locality, route.service)
    metrics.route_demand_rps.labels(*labels).set(route.demand_rps)
    metrics.route_latency_p95_seconds.labels(*labels).set(_seconds(route.latency_p95_ms))
    metrics.route_slo_seconds.labels(*labels).set(_seconds(route.slo_p95_ms))
    metrics.calibration_ratio.labels(*labels).set(calibration)
    for share in route.providers:
        metrics.route_share.labels(*labels, share.provider).set(share.share)
        observed = math.nan if share.observed_share is None else share.observed_share
        metrics.route_observed_share.labels(*labels, share.provider).set(observed)


def _seconds(value_ms: float | None) -> float:
    return math.nan if value_ms is None else value_ms / 1e3
