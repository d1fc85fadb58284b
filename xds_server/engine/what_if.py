"""What the mesh would do, and gain, if something changed. Reads the engine, changes nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from xds_server.core import latency, limits
from xds_server.core.tables import Bools, Floats
from xds_server.engine.bottlenecks import find_bottlenecks
from xds_server.engine.changes import apply_changes, check_providers
from xds_server.engine.loop import Tick
from xds_server.engine.part import part_of, routes_by_service
from xds_server.engine.select import DEADBAND_GAIN_RATIO
from xds_server.engine.settle import Settled, at_shares, settle
from xds_server.engine.simulate import forecast
from xds_server.engine.state import EngineState
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.decision import Forecast
from xds_server.model.ids import ProviderName
from xds_server.model.status import BottleneckStatus
from xds_server.model.topology import EngineSettings
from xds_server.model.what_if import (
    Change,
    Prospect,
    ProviderProspect,
    Quantity,
    RouteProspect,
    ShareProspect,
    WhatIf,
)

PAIRS_MAX: Final = 100_000
"""Pairs up to which a running engine answers: a few seconds of one core beside its ticks, if one
service has them all; a tenth of a second if a hundred have."""
ROUTES_MAX: Final = 50
"""Routes that are shown: those asked about that call most, then others that move most."""
_NOTABLE_SHARE: Final = 0.005
_NOTABLE_RATIO: Final = 0.01
_BOTTLENECKS: Final = 5
_ANSWERED_MIN: Final = 1e-9
"""Part of calls below which none is answered, but for rounding."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A problem under certain shares."""

    problem: Problem
    evaluation: Evaluation  # at ``shares``
    shares: Floats  # (P,)
    forecast: Forecast
    p99_s: Floats  # (R,)
    failed: Floats  # (R,) of attempts
    rps: Floats  # (J,)


def what_if(
    state: EngineState,
    last: Tick,
    settings: EngineSettings,
    application: str,
    service: str,
    changes: Sequence[Change],
    *,
    endpoints: Mapping[ProviderName, int],
    source: str,
    notes: tuple[str, ...] = (),
) -> WhatIf:
    """Suppose ``changes`` and compare: shares of now, and the optimum re-solved until it rests.

    Until the engine reacts, calls that go to a provider that is down fail. The optimum is that
    of all routes to the service: others that share its providers move too. Routes to other services
    share none, and are taken to stay as they are.

    Parameters
    ----------
    state, last : of an engine between two ticks; read, never written
    endpoints : how many each provider has

    Raises
    ------
    KeyError
        when the application has no such route (or nothing was decided since a reload)
    ValueError
        for a change of what is no provider of that service
    """
    problem, decided = state.problem, last.deployment.shares
    asked = np.array(
        [r.group.application == application and r.service == service for r in problem.routes],
        dtype=bool,
    )
    if not asked.any() or len(decided) != len(problem.excluded_because):
        known = sorted({f"{r.group.application}/{r.service}" for r in problem.routes})
        raise KeyError(f"no route {application}/{service}; known: {', '.join(known) or 'none'}")
    serving = np.unique(problem.pairs.provider[asked[problem.pairs.route]])
    check_providers(changes, service, [problem.providers[j] for j in serving])
    now = _plan(problem, last.evaluation, decided)
    then, supposed = apply_changes(problem, last.evaluation, changes, endpoints, asked)
    held = _plan(then, supposed, decided)
    part = part_of(then, supposed, routes_by_service(problem)[service])
    # A route that nobody may serve keeps its shares: its calls go on to fail, which is no gain.
    lost = part.problem.pairs.sum_by_route(part.evaluation.allowed.astype(np.float64)) == 0.0
    kept = decided[part.pairs]
    settled = settle(part.problem, part.evaluation, kept, settings, fixed=lost)
    wanted = np.where(lost[part.problem.pairs.route], kept, settled.shares)
    optimum = _plan(then, supposed, part.put(decided, wanted))
    chosen, left_out = _notable(asked, now, held, optimum)
    return WhatIf(
        application=application,
        service=service,
        changes=tuple(change.text for change in changes),
        source=source,
        routes=tuple(_route(r, bool(asked[r]), now, held, optimum) for r in chosen),
        routes_left_out=left_out,
        providers=tuple(_provider(int(j), now, held, optimum) for j in serving),
        bottlenecks_now=_bottlenecks(now),
        bottlenecks_then=_bottlenecks(optimum),
        iterations=settled.iterations,
        settled=settled.done,
        gap_ratio=settled.gap_ratio,
        notes=(
            *notes,
            *_without_effect(problem, asked, changes),
            *_remarks(then, supposed, asked, changes, settled),
        ),
    )


def _plan(problem: Problem, evaluation: Evaluation, shares: Floats) -> _Plan:
    pairs, here = problem.pairs, at_shares(problem, evaluation, shares)
    rps = pairs.sum_by_provider(here.demand_rps[pairs.route] * shares)
    p99_s = latency.p99_s(here.stations, rps)[pairs.provider] + here.rtt_s
    return _Plan(
        problem,
        here,
        shares,
        forecast(problem, here, shares),
        pairs.sum_by_route(shares * p99_s),
        pairs.sum_by_route(shares * here.error_ratio[pairs.provider]),
        rps,
    )


def _notable(asked: Bools, now: _Plan, held: _Plan, optimum: _Plan) -> tuple[list[int], int]:
    """Rows of the routes to show, and how many more there would be."""
    moved = limits.moved_ratio(now.problem.pairs, now.shares, optimum.shares)

    def changed(before: Floats, after: Floats) -> Bools:
        return np.abs(after - before) > _NOTABLE_RATIO * np.maximum(np.abs(before), 1e-9)

    notable = moved > _NOTABLE_SHARE
    for plan in (held, optimum):
        notable |= changed(now.forecast.latency_s, plan.forecast.latency_s)
        notable |= changed(now.forecast.usd_per_million, plan.forecast.usd_per_million)
    others = np.flatnonzero(notable & ~asked & (optimum.evaluation.demand_rps > 0.0))
    demand = optimum.evaluation.demand_rps
    mine = np.flatnonzero(asked)
    first = mine[np.argsort(-demand[mine], kind="stable")]
    then = others[np.argsort(-(moved * demand)[others], kind="stable")]
    found = [*first.tolist(), *then.tolist()]
    return found[:ROUTES_MAX], len(found[ROUTES_MAX:])


def _route(r: int, asked: bool, now: _Plan, held: _Plan, optimum: _Plan) -> RouteProspect:
    key, pairs = now.problem.routes[r], now.problem.pairs
    mine = np.flatnonzero(pairs.route == r)
    before, after = _terms(held, mine), _terms(optimum, mine)
    gains = {
        name: float(held.shares[mine] @ before[name] - optimum.shares[mine] @ after[name])
        for name in before
    }
    marginal = 1e3 * latency.marginal_s(optimum.evaluation.stations, optimum.rps)[0]
    mean = 1e3 * latency.mean_s(optimum.evaluation.stations, optimum.rps)
    slo_s = float(optimum.evaluation.slo_s[r])
    gain_ms = float(held.forecast.cost_ms[r] - optimum.forecast.cost_ms[r])
    return RouteProspect(
        application=key.group.application,
        phase=key.group.phase,
        locality=str(key.group.locality),
        service=key.service,
        asked=asked,
        demand_now_rps=float(now.evaluation.demand_rps[r]),
        demand_rps=float(optimum.evaluation.demand_rps[r]),
        slo_p95_ms=1e3 * slo_s if np.isfinite(slo_s) else np.nan,
        now=_prospect(now, r),
        held=_prospect(held, r),
        optimum=_prospect(optimum, r),
        gain_ms=gain_ms,
        gain_terms_ms=gains,
        would_move=gain_ms > DEADBAND_GAIN_RATIO * abs(float(held.forecast.cost_ms[r])),
        moved_ratio=float(0.5 * np.abs(optimum.shares[mine] - now.shares[mine]).sum()),
        providers=tuple(
            ShareProspect(
                provider=now.problem.providers[j],
                share_now=float(now.shares[p]),
                share_then=float(optimum.shares[p]),
                excluded_because=optimum.problem.excluded_because[p],
                terms_ms={name: float(values[i]) for name, values in after.items()},
                total_ms=float(sum(values[i] for values in after.values())),
                marginal_ms=float(sum(v[i] for v in after.values()) + marginal[j] - mean[j]),
            )
            for i, p in enumerate(mine)
            for j in (int(pairs.provider[p]),)
        ),
    )


def _terms(plan: _Plan, mine: np.ndarray) -> dict[str, Floats]:
    """What a request costs with each pair of a route, by term, ms-equivalent."""
    evaluation, provider = plan.evaluation, plan.problem.pairs.provider[mine]
    mean = 1e3 * latency.mean_s(evaluation.stations, plan.rps)[provider]
    costs = evaluation.costs
    return {"latency": mean} | {f.name: getattr(costs, f.name)[mine] for f in fields(costs)}


def _prospect(plan: _Plan, r: int) -> Prospect:
    """Per answered call for latencies: what is down adds no time, and is taken out here.

    NaN where no call is answered.
    """
    pairs, evaluation = plan.problem.pairs, plan.evaluation
    mine = pairs.route == r
    dead = evaluation.error_ratio[pairs.provider[mine]] >= 1.0
    answered = 1.0 - float(plan.shares[mine][dead].sum())
    answered = answered if answered > _ANSWERED_MIN else np.nan
    found, slo_s = plan.forecast, float(evaluation.slo_s[r])
    p95_s = float(found.latency_p95_s[r]) / answered
    usd = float(found.usd_per_million[r])
    return Prospect(
        latency_ms=1e3 * float(found.latency_s[r]) / answered,
        latency_p95_ms=1e3 * p95_s,
        latency_p99_ms=1e3 * float(plan.p99_s[r]) / answered,
        usd_per_million=usd,
        usd_per_h=usd * float(evaluation.demand_rps[r]) * 3600.0 / 1e6,
        failed_ratio=float(plan.failed[r]),
        cost_ms=float(found.cost_ms[r]),
        slo_breached=p95_s > slo_s,
    )


def _provider(j: int, now: _Plan, held: _Plan, optimum: _Plan) -> ProviderProspect:
    def busy(plan: _Plan) -> float:
        return float(latency.utilisation_ratio(plan.evaluation.stations, plan.rps)[j])

    return ProviderProspect(
        provider=now.problem.providers[j],
        capacity_rps=float(optimum.evaluation.stations.capacity_rps[j]),
        rps_now=float(now.rps[j]),
        rps_held=float(held.rps[j]),
        rps_optimum=float(optimum.rps[j]),
        utilisation_now=busy(now),
        utilisation_held=busy(held),
        utilisation_optimum=busy(optimum),
    )


def _bottlenecks(plan: _Plan) -> tuple[BottleneckStatus, ...]:
    found = find_bottlenecks(plan.problem, replace(plan.evaluation, shares_now=plan.shares)).found
    return tuple(
        BottleneckStatus(b.provider, b.utilisation_ratio, b.rent_ms_per_s)
        for b in found[:_BOTTLENECKS]
    )


def _without_effect(problem: Problem, asked: Bools, changes: Sequence[Change]) -> Iterator[str]:
    """Say of whom a change was supposed that no such route may use, whatever it costs."""
    for name in dict.fromkeys(change.provider for change in changes if change.provider):
        j, pairs = problem.providers.index(name), problem.pairs
        reasons = {
            problem.excluded_because[p]
            for p in np.flatnonzero((pairs.provider == j) & asked[pairs.route])
        }
        if all(reasons) and "no endpoints" not in reasons:
            yield f"{name} is not used, whatever changes there: {', '.join(sorted(reasons))}"


def _remarks(
    problem: Problem,
    evaluation: Evaluation,
    asked: Bools,
    changes: Sequence[Change],
    settled: Settled,
) -> tuple[str, ...]:
    pairs, found = problem.pairs, []
    choices = pairs.sum_by_route(evaluation.allowed.astype(np.float64))
    if np.any(asked & (choices == 0.0)):
        found.append("no provider would be left: the route keeps its baseline, and calls fail")
    if np.all(evaluation.demand_rps[asked] <= 0.0):
        none = [c.text for c in changes if c.quantity is Quantity.DEMAND and c.value == 0.0]
        found += [
            f"{text} leaves no calls to plan for: figures are those of one call alone"
            for text in none
        ]
        if not none:
            found.append("nothing calls at present: add --set demand=RPS")
    if not settled.done:
        found.append(f"shares still moved after {settled.iterations} steps: the figures are near")
    return tuple(found)
