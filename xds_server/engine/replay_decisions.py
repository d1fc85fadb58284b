"""The decisions of the past once more, with the objectives of another profile.

At each step of history the models are as they were, the demand is as it was, and shares go from
where this profile had brought them, as many ticks as the step lasted. Both plans, the one that
was in force and the other, are then forecast by the same models.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from xds_server.core import limits
from xds_server.core.tables import Bools, Floats
from xds_server.engine.changes import ms_per_usd
from xds_server.engine.offline import (
    imagine_endpoints,
    imagine_group,
    imagine_state,
    look,
    problem_without_routes,
)
from xds_server.engine.problem import build_problem
from xds_server.engine.select import DEADBAND_GAIN_RATIO
from xds_server.engine.settle import Settled, at_shares, settle
from xds_server.engine.simulate import forecast
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.decision import Forecast
from xds_server.model.decision_replay import (
    DecisionReplay,
    PastStep,
    PlanTotals,
    ReplayedRoute,
    ReplayPoint,
)
from xds_server.model.ids import ProviderName, RouteKey
from xds_server.model.template import Template
from xds_server.model.topology import Mesh

POINTS_MAX: Final = 20_000
"""Steps of all routes together that one answer has."""
TICKS_MAX: Final = 20
"""Ticks of one step: shares have settled by then."""
CHANGED_RATIO: Final = 0.05
"""Part of a route's calls that must go elsewhere for it to count as changed. Replayed with its own
profile, up to 3 % of calls went elsewhere (measured): models differ within a step."""
UNKNOWABLE: Final = (
    "demand would have been the same: callers do not react to latency or errors",
    "models are as they were: a provider that was given more would have been learned better",
    "both plans are forecast by these models; what was observed stands beside them",
)
_Pair = tuple[RouteKey, ProviderName]


@dataclass(slots=True)
class _Sums:
    """One route's running totals."""

    calls: float = 0.0
    moved: float = 0.0
    observed_s: float = 0.0  # times calls
    observed_calls: float = 0.0
    latency_s: list[float] = field(default_factory=lambda: [0.0, 0.0])  # times calls
    p95_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    usd: list[float] = field(default_factory=lambda: [0.0, 0.0])
    breach_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    shares: list[dict[str, float]] = field(default_factory=lambda: [{}, {}])
    slo_s: float = math.inf
    points: list[ReplayPoint] = field(default_factory=list)


def replay_decisions(
    mesh: Mesh, steps: Sequence[PastStep], profile: str, application: str, resolution: str
) -> DecisionReplay:
    """Decide every step with ``profile`` for the application's routes ("": all that have it).

    Other routes keep the shares that they had.

    Raises
    ------
    ValueError
        when no such application or profile is in the mesh, or nothing of it is in ``steps``
    """
    tried = _trying(mesh, profile, application)
    known = [_known_routes(mesh, step) for step in steps]
    mine = {key for keys in known for key in keys if key.group.application in tried}
    if not mine:
        raise ValueError(
            f"history has no decisions about {', '.join(sorted(tried))} in this time; "
            "ask for more with --since"
        )
    if sum(len(keys & mine) for keys in known) > POINTS_MAX:
        raise ValueError(
            f"more than {POINTS_MAX} decisions: ask for less time, a coarser resolution "
            "or one application"
        )
    phases = {key.group.phase for key in mine}
    past = _Past(_with_profile(mesh, tried, profile, phases), frozenset(tried))
    sums: dict[RouteKey, _Sums] = {}
    for step, keys in zip(steps, known, strict=True):
        past.replay(step, keys, sums)
    notes = [*UNKNOWABLE, *past.notes]
    skipped = {k.group.application for keys in known for k in keys} - tried
    if skipped and not application:
        notes.append(f"no profile {profile}, so their shares stay: {', '.join(sorted(skipped))}")
    return _answer(sums, steps, profile, application, resolution, notes)


class _Past:
    """Replays one step after the other; holds the shares that the profile has come to."""

    def __init__(self, mesh: Mesh, tried: frozenset[str]) -> None:
        self._mesh, self._tried = mesh, tried
        self._nothing = problem_without_routes(mesh)
        self._problem: Problem | None = None
        self._shape: object = None
        self._shares: dict[_Pair, float] = {}
        self.notes: list[str] = []

    def replay(
        self, step: PastStep, keys: frozenset[RouteKey], sums: dict[RouteKey, _Sums]
    ) -> None:
        problem = self._with_capacities(self._problem_of(step, keys), step)
        state = imagine_state(problem, self._nothing, step.seeds)
        chosen = state.shares
        settings = self._mesh.engine
        evaluation = _with_egress(
            problem, look(state, settings, step.price_usd, step.at_s).evaluation, step, chosen
        )
        fixed = np.array(
            [r.group.application not in self._tried for r in problem.routes], dtype=bool
        )
        begin = self._begin(problem, chosen, fixed)
        ticks = int(np.clip(round(step.span_s / settings.tick_s), 1, TICKS_MAX))
        settled = settle(
            problem,
            evaluation,
            begin,
            settings,
            steps=ticks,
            max_shift_ratio=settings.max_shift_ratio,
            fixed=fixed,
        )
        shares = _beyond_deadband(problem, evaluation, begin, settled)
        # Floors count as part of the step, as they do in the engine.
        most = min(1.0, ticks * settings.max_shift_ratio)
        shares = limits.limit_shift(problem.pairs, begin, shares, most)
        self._shares = dict(zip(_names(problem), shares.tolist(), strict=True))
        plans = tuple(
            forecast(problem, at_shares(problem, evaluation, plan), plan)
            for plan in (chosen, shares)
        )
        _add(problem, evaluation, step, (chosen, shares), (plans[0], plans[1]), ~fixed, sums)

    def _problem_of(self, step: PastStep, keys: frozenset[RouteKey]) -> Problem:
        shape = (keys, frozenset(step.price_usd))
        if self._problem is None or shape != self._shape:
            groups = {key.group for key in keys}
            endpoints = imagine_endpoints(self._mesh, step.price_usd)
            gone = self._mesh.providers.keys() - step.price_usd.keys()
            for name in gone:  # it was not there at that time
                endpoints[name] = ()
            self._problem = build_problem(
                self._mesh, endpoints, [imagine_group(self._mesh, g) for g in groups]
            )
            self._shape = shape
        return self._problem

    def _with_capacities(self, problem: Problem, step: PastStep) -> Problem:
        """Servers that make the capacity what it was, whatever mesh.yaml says by now."""
        servers = problem.servers.copy()
        for j, name in enumerate(problem.providers):
            seed, capacity = step.seeds.providers.get(name), step.capacity_rps.get(name)
            if seed is not None and capacity is not None and seed.capacity_factor > 0.0:
                servers[j] = max(1.0, capacity * seed.service_s / seed.capacity_factor)
        return replace(problem, servers=servers)

    def _begin(self, problem: Problem, chosen: Floats, fixed: Bools) -> Floats:
        """Start from the shares of the step before; where there is none, from what was chosen."""
        names = _names(problem)
        kept = np.array([self._shares.get(name, np.nan) for name in names])
        whole = problem.pairs.sum_by_route(np.isnan(kept).astype(np.float64)) == 0.0
        use = (whole & ~fixed)[problem.pairs.route]
        shares = np.where(use, np.nan_to_num(kept), chosen)
        return limits.onto_allowed(problem.pairs, shares, problem.allowed)


def _beyond_deadband(
    problem: Problem, evaluation: Evaluation, begin: Floats, settled: Settled
) -> Floats:
    """(P,) settled shares; those of before where a route gains too little, as the engine holds."""
    before = forecast(problem, at_shares(problem, evaluation, begin), begin).cost_ms
    gain = before - settled.forecast.cost_ms
    held = gain <= DEADBAND_GAIN_RATIO * np.abs(before)
    return np.where(held[problem.pairs.route], begin, settled.shares)


def _trying(mesh: Mesh, profile: str, application: str) -> set[str]:
    if application and application not in mesh.applications:
        names = ", ".join(sorted(mesh.applications)) or "none"
        raise ValueError(f"no application {application}; known: {names}")
    wanted = [application] if application else list(mesh.applications)
    having = {
        name
        for name in wanted
        if any(p.name == profile for p in mesh.applications[name].template.profiles)
    }
    if not having:
        known = sorted({p.name for n in wanted for p in mesh.applications[n].template.profiles})
        raise ValueError(f"no profile {profile}; known: {', '.join(known)}")
    return having


def _with_profile(mesh: Mesh, tried: set[str], profile: str, phases: set[str]) -> Mesh:
    """Return the mesh whose tried applications have the profile's objectives in every phase."""

    def rewritten(template: Template) -> Template:
        if not any(p.name == profile for p in template.profiles):
            return template
        chosen = template.profile(profile)
        names = phases | {p.name for p in template.profiles}
        return replace(
            template, profiles=tuple(replace(chosen, name=name) for name in sorted(names))
        )

    applications = {
        name: replace(a, template=rewritten(a.template)) if name in tried else a
        for name, a in mesh.applications.items()
    }
    # Templates are looked up by name: those of the tried get a name that nobody else uses.
    templates = dict(mesh.templates)
    for name in tried:
        template = replace(applications[name].template, name=f"replayed {name}")
        applications[name] = replace(applications[name], template=template)
        templates[template.name] = template
    return replace(mesh, applications=applications, templates=templates)


def _known_routes(mesh: Mesh, step: PastStep) -> frozenset[RouteKey]:
    """Routes of the step that the mesh still has, by their own template."""
    found = set()
    for key in step.routes:
        application = mesh.applications.get(key.group.application)
        if application is None or key.group.template:
            continue
        calls = {call.service for call in application.template.calls}
        if key.service in calls and key.service in mesh.services:
            found.add(key)
    return frozenset(found)


def _with_egress(
    problem: Problem, before: Evaluation, step: PastStep, chosen: Floats
) -> Evaluation:
    """Add what bytes between regions cost: as many per call as the spending of then tells."""
    pairs = problem.pairs
    asked_usd = pairs.sum_by_route(chosen * before.price_usd[pairs.provider])
    per_byte = pairs.sum_by_route(chosen * problem.egress_usd_per_byte)
    spent = np.array(
        [step.routes[r].usd_per_million / 1e6 if r in step.routes else np.nan
         for r in problem.routes]
    )  # fmt: skip
    size = np.where(per_byte > 0.0, (spent - asked_usd) / np.maximum(per_byte, 1e-30), 0.0)
    size = np.nan_to_num(np.maximum(size, 0.0))
    egress_usd = size[pairs.route] * problem.egress_usd_per_byte
    usd = before.price_usd[pairs.provider] + egress_usd
    rate = ms_per_usd(problem, before)[pairs.route]
    return replace(
        before, usd_per_request=usd, costs=replace(before.costs, egress=rate * egress_usd)
    )


def _add(
    problem: Problem,
    evaluation: Evaluation,
    step: PastStep,
    shares: tuple[Floats, Floats],
    forecasts: tuple[Forecast, Forecast],
    replayed: Bools,
    sums: dict[RouteKey, _Sums],
) -> None:
    """Add one step to the totals of each replayed route; 0 is what was chosen, 1 the other."""
    pairs = problem.pairs
    moved = limits.moved_ratio(pairs, *shares)
    ends = np.append(pairs.starts, len(pairs.route))
    for r in np.flatnonzero(replayed):
        key = problem.routes[r]
        if key not in step.routes:
            continue
        of = sums.setdefault(key, _Sums())
        demand = float(evaluation.demand_rps[r])
        calls = demand * step.span_s
        of.calls += calls
        of.moved += calls * float(moved[r])
        of.slo_s = float(evaluation.slo_s[r])
        observed_s = step.routes[key].observed_latency_s
        if math.isfinite(observed_s):
            of.observed_s += calls * observed_s
            of.observed_calls += calls
        names = [problem.providers[j] for j in pairs.provider[ends[r] : ends[r + 1]]]
        split = [
            dict(zip(names, plan[ends[r] : ends[r + 1]].tolist(), strict=True)) for plan in shares
        ]
        for i, found in enumerate(forecasts):
            of.latency_s[i] += calls * float(found.latency_s[r])
            of.p95_s[i] += calls * float(found.latency_p95_s[r])
            of.usd[i] += calls * float(found.usd_per_million[r]) / 1e6
            of.breach_s[i] += step.span_s * float(found.latency_p95_s[r] > of.slo_s)
            for name, share in split[i].items():
                of.shares[i][name] = of.shares[i].get(name, 0.0) + calls * share
        of.points.append(
            ReplayPoint(
                at_s=step.at_s,
                span_s=step.span_s,
                demand_rps=demand,
                shares_chosen=split[0],
                shares_replayed=split[1],
                chosen_p95_ms=1e3 * float(forecasts[0].latency_p95_s[r]),
                replayed_p95_ms=1e3 * float(forecasts[1].latency_p95_s[r]),
                chosen_usd_per_million=float(forecasts[0].usd_per_million[r]),
                replayed_usd_per_million=float(forecasts[1].usd_per_million[r]),
            )
        )


def _answer(
    sums: Mapping[RouteKey, _Sums],
    steps: Sequence[PastStep],
    profile: str,
    application: str,
    resolution: str,
    notes: Sequence[str],
) -> DecisionReplay:
    routes = tuple(_replayed_route(key, of) for key, of in sorted(sums.items()))
    total = _Sums()
    for of in sums.values():
        total.calls += of.calls
        for i in range(2):
            total.latency_s[i] += of.latency_s[i]
            total.p95_s[i] += of.p95_s[i]
            total.usd[i] += of.usd[i]
            total.breach_s[i] += of.breach_s[i]
    return DecisionReplay(
        profile=profile,
        application=application,
        since_s=steps[0].at_s,
        until_s=steps[-1].at_s + steps[-1].span_s,
        resolution=resolution,
        steps=len(steps),
        routes=routes,
        chosen=_totals(total, 0),
        replayed=_totals(total, 1),
        routes_changed=sum(route.changed for route in routes),
        notes=tuple(notes),
    )


def _replayed_route(key: RouteKey, of: _Sums) -> ReplayedRoute:
    calls = max(of.calls, 1e-12)
    moved = of.moved / calls
    return ReplayedRoute(
        application=key.group.application,
        phase=key.group.phase,
        locality=str(key.group.locality),
        service=key.service,
        calls=of.calls,
        slo_p95_ms=1e3 * of.slo_s if math.isfinite(of.slo_s) else math.nan,
        observed_latency_ms=1e3 * of.observed_s / of.observed_calls
        if of.observed_calls
        else math.nan,
        chosen=_totals(of, 0),
        replayed=_totals(of, 1),
        shares_chosen={name: total / calls for name, total in of.shares[0].items()},
        shares_replayed={name: total / calls for name, total in of.shares[1].items()},
        moved_ratio=moved,
        changed=moved > CHANGED_RATIO,
        points=tuple(of.points),
    )


def _totals(of: _Sums, i: int) -> PlanTotals:
    calls = max(of.calls, 1e-12)
    return PlanTotals(
        latency_ms=1e3 * of.latency_s[i] / calls,
        latency_p95_ms=1e3 * of.p95_s[i] / calls,
        usd=of.usd[i],
        usd_per_million=1e6 * of.usd[i] / calls,
        slo_breach_s=of.breach_s[i],
    )


def _names(problem: Problem) -> list[_Pair]:
    return [
        (problem.routes[r], problem.providers[j])
        for r, j in zip(problem.pairs.route, problem.pairs.provider, strict=True)
    ]
