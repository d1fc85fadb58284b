"""A service alone is what it is in the whole mesh."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xds_server.core import latency
from xds_server.core.latency import PowerCurves, Stations
from xds_server.core.objective import PairCosts, slo_ms
from xds_server.core.solver import GAP_RATIO
from xds_server.engine.optima import Optima, Worth
from xds_server.engine.part import part_of, routes_by_service
from xds_server.engine.problem import build_problem
from xds_server.engine.settle import at_shares, settle
from xds_server.engine.simulate import forecast
from xds_server.engine.types import Evaluation, Group, Observation, Problem
from xds_server.engine.work import done_at_once
from xds_server.model.ids import GroupKey, Locality
from xds_server.model.template import Call, Profile, Template
from xds_server.model.topology import (
    Address,
    Application,
    Capacity,
    Egress,
    EngineSettings,
    Mesh,
    Mode,
    Price,
    Provider,
    ServerSettings,
    Service,
    TelemetrySettings,
)

SERVICES = ("auth", "mail", "search")
REGIONS = ("east", "west")
SETTINGS = EngineSettings(min_share_ratio=0.002)
EXACT = 1e-9
"""Gap of a step's solution where shares themselves are compared: they are flat at the optimum."""

KNEE_RATIO = 0.02


def mesh_of(rng: np.random.Generator) -> tuple[Mesh, list[Group]]:
    """Three services of two to four providers; templates that call some of them."""
    services = {
        name: Service(name, tuple(_provider(rng, name, i) for i in range(rng.integers(2, 5))))
        for name in SERVICES
    }
    called = (SERVICES, SERVICES[:2], SERVICES[1:])
    templates = {
        f"t{i}": Template(
            f"t{i}",
            tuple(Call(name, f"127.0.0.1:{15001 + n}") for n, name in enumerate(names)),
            (Profile("steady", latency_p95_s=float(rng.uniform(0.05, 0.3))),),
        )
        for i, names in enumerate(called)
    }
    applications = {f"a{i}": Application(f"a{i}", t) for i, t in enumerate(templates.values())}
    groups = [
        Group(
            GroupKey(f"a{i}", "steady", Locality(region)),
            frozenset({f"n{i}-{region}-{n}" for n in range(rng.integers(1, 3))}),
            f"t{i}",
            None,
            float(rng.uniform(0.0, 9.0)),
        )
        for i in range(len(called))
        for region in REGIONS
    ]
    mesh = Mesh(
        "test",
        Mode.ENFORCE,
        SETTINGS,
        TelemetrySettings(),
        services,
        templates,
        applications,
        ServerSettings(),
        egress=(Egress("*", "*", 0.02),),
    )
    return mesh, groups


def _provider(rng: np.random.Generator, service: str, i: int) -> Provider:
    return Provider(
        f"{service}-{i}",
        service,
        locality=Locality(REGIONS[i % 2]),
        endpoints=(Address("127.0.0.1", 9000 + i),),
        capacity=Capacity(float(rng.uniform(50, 500)), int(rng.integers(1, 16))),
        price=Price(float(rng.uniform(0.1, 3.0))),
        standby=bool(i == 0 and rng.random() < 0.5),
        baseline_weight=int(rng.integers(1, 9)),
    )


def problem_of(mesh: Mesh, groups: list[Group]) -> Problem:
    endpoints = {name: p.endpoints for name, p in mesh.providers.items()}
    return build_problem(mesh, endpoints, groups)


def evaluation_of(
    rng: np.random.Generator, problem: Problem, load: float, *, slo_ratio: float = 0.5
) -> Evaluation:
    """Any state at about that load; ``slo_ratio`` of routes have an objective of latency.

    Some providers follow power curves.
    """
    pairs = problem.pairs
    r, j, p, q = pairs.routes, pairs.providers, len(pairs.route), len(problem.places)
    axes = {"pair": p, "route": r, "place": q, "provider": j}
    seen = {f.name: rng.random(axes[f.name.partition("_")[0]]) for f in fields(Observation)}
    service_s, servers = rng.uniform(0.005, 0.05, j), rng.integers(1, 16, j).astype(float)
    base_s = rng.uniform(0.01, 0.05, j)
    power = PowerCurves(
        rng.random(j) < 0.3,
        base_s,
        0.3 * base_s[:, None] * rng.uniform(0.0, 1.0, (j, 2)),
        servers / service_s,
        (2.0, 4.0),
    )
    ones = np.ones(j)
    stations = Stations(service_s, servers, ones, ones, 2.0 * ones, power)
    demand = rng.uniform(0.5, 2.0, r)
    for rows in routes_by_service(problem).values():
        mine = np.unique(pairs.provider[np.isin(pairs.route, rows) & problem.allowed])
        demand[rows] *= load * stations.capacity_rps[mine].sum() / demand[rows].sum()
    slo_s = np.where(rng.random(r) < slo_ratio, rng.uniform(0.1, 0.5, r), np.inf)
    shares = rng.uniform(0.2, 1.0, p) * problem.allowed
    shares /= np.maximum(pairs.sum_by_route(shares), 1e-9)[pairs.route]
    usd = rng.uniform(1e-7, 3e-6, p)
    rtt_s = rng.uniform(0.0, 0.02, p)
    rps = pairs.sum_by_provider(demand[pairs.route] * shares)
    zeros = np.zeros(p)
    costs = PairCosts(
        1e3 * rtt_s,
        zeros,
        zeros,
        usd * 1e7,
        zeros,
        zeros,
        slo_ms(latency.p95_s(stations, rps)[pairs.provider] + rtt_s, slo_s[pairs.route]),
    )
    return Evaluation(
        now_s=1.0,
        observation=Observation(**seen),
        stations=stations,
        rtt_s=rtt_s,
        sigma_ratio=rng.uniform(0.0, 0.3, j),
        error_ratio=rng.uniform(0.0, 0.2, j),
        price_usd=rng.uniform(1e-7, 3e-6, j),
        demand_rps=demand,
        shares_now=shares,
        last_step=rng.normal(size=p),
        allowed=problem.allowed,
        costs=costs,
        slo_s=slo_s,
        tau_ms=rng.uniform(1.0, 9.0, r),
        usd_per_request=usd,
        calibration=rng.uniform(1.0, 2.0, r),
        measured=rng.random(r) < 0.9,
    )


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Records, arrays and mappings are equal, field by field."""
    if is_dataclass(expected) and any(
        isinstance(getattr(expected, f.name), np.ndarray) for f in fields(expected)
    ):
        for f in fields(expected):
            assert_same(getattr(found, f.name), getattr(expected, f.name), f"{where}.{f.name}")
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected, where)
    else:
        assert found == expected, where


@given(st.integers(0, 10_000), st.sampled_from(SERVICES))
@settings(max_examples=25, deadline=None)
def test_a_part_is_the_problem_of_a_mesh_that_has_that_service_alone(
    seed: int, service: str
) -> None:
    mesh, groups = mesh_of(np.random.default_rng(seed))
    whole = problem_of(mesh, groups)
    rows = routes_by_service(whole)[service]
    evaluation = evaluation_of(np.random.default_rng(seed), whole, 0.6)
    part = part_of(whole, evaluation, rows)

    templates = {
        name: replace(t, calls=tuple(c for c in t.calls if c.service == service))
        for name, t in mesh.templates.items()
    }
    alone = replace(mesh, services={service: mesh.services[service]}, templates=templates)
    callers = [g for g in groups if templates[g.template].calls]
    assert_same(part.problem, problem_of(alone, callers))


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_part_keeps_what_was_evaluated(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = problem_of(*mesh_of(rng))
    evaluation = evaluation_of(rng, whole, 0.6)
    for rows in routes_by_service(whole).values():
        part = part_of(whole, evaluation, rows)
        at = {
            len(evaluation.demand_rps): part.routes,
            len(evaluation.price_usd): part.providers,
            len(evaluation.shares_now): part.pairs,
        }
        places = [whole.places.index(place) for place in part.problem.places]
        for f in fields(Observation):
            axis = f.name.partition("_")[0]
            of_axis = {"route": part.routes, "provider": part.providers, "pair": part.pairs}
            kept = getattr(evaluation.observation, f.name)[of_axis.get(axis, places)]
            np.testing.assert_array_equal(getattr(part.evaluation.observation, f.name), kept)
        if len(at) < 3:
            continue  # axes of one length cannot be told apart here
        for f in fields(Evaluation):
            value = getattr(evaluation, f.name)
            if isinstance(value, np.ndarray):
                kept = value[at[len(value)]]
                np.testing.assert_array_equal(getattr(part.evaluation, f.name), kept, f.name)
        names = [whole.providers[j] for j in part.providers]
        assert list(part.problem.providers) == names
        rps = rng.uniform(1.0, 100.0, len(evaluation.price_usd))
        np.testing.assert_array_equal(
            latency.mean_s(part.evaluation.stations, rps[part.providers]),
            latency.mean_s(evaluation.stations, rps)[part.providers],
        )


@given(st.integers(0, 10_000), st.floats(0.2, 0.9), st.sampled_from([0.0, 0.5]))
@settings(max_examples=15, deadline=None)
def test_services_settle_alone_where_they_settle_together(
    seed: int, load: float, slo_ratio: float
) -> None:
    rng = np.random.default_rng(seed)
    whole = problem_of(*mesh_of(rng))
    evaluation = evaluation_of(rng, whole, load, slo_ratio=slo_ratio)
    now, steps = evaluation.shares_now, 200
    together = settle(whole, evaluation, now, SETTINGS, steps=steps, gap_ratio=EXACT)
    for rows in routes_by_service(whole).values():
        part = part_of(whole, evaluation, rows)
        problem, here = part.problem, part.evaluation
        alone = settle(problem, here, here.shares_now, SETTINGS, steps=steps, gap_ratio=EXACT)
        shares = together.shares[part.pairs]
        among_all = forecast(problem, at_shares(problem, here, shares), shares).total
        # At an objective's knee no step may gain, which stops a service early, or all of them:
        # the whole was worse by up to 9 % (measured), a service alone by 0.6 %.
        assert alone.forecast.total <= among_all * (1.0 + (KNEE_RATIO if slo_ratio else GAP_RATIO))
        if slo_ratio == 0.0:
            assert alone.forecast.total == pytest.approx(among_all, rel=GAP_RATIO)
            # The optimum has one load per provider, while routes may trade theirs.
            flow = here.demand_rps[problem.pairs.route] * (alone.shares - shares)
            moved_rps = np.abs(problem.pairs.sum_by_provider(flow)).sum()
            assert moved_rps < 0.03 * here.demand_rps.sum()


@given(st.integers(0, 10_000), st.sampled_from(SERVICES), st.floats(0.3, 0.85))
@settings(max_examples=15, deadline=None)
def test_a_change_of_a_service_is_worth_the_same_over_the_whole_mesh(
    seed: int, service: str, load: float
) -> None:
    rng = np.random.default_rng(seed)
    whole = problem_of(*mesh_of(rng))
    evaluation = evaluation_of(rng, whole, load, slo_ratio=0.0)
    rows = routes_by_service(whole)[service]
    calm = Worth()
    calm.update(whole, evaluation)
    asked = np.isin(np.arange(len(evaluation.demand_rps)), rows)

    def worth(problem: Problem, here: Evaluation, routes: np.ndarray, rates: np.ndarray) -> float:
        optima = Optima(problem, here, SETTINGS, rates, here.shares_now)
        less = replace(here, demand_rps=np.where(routes, 0.7, 1.0) * here.demand_rps)
        now = done_at_once(optima.now())
        return optima.usd_per_h(now, done_at_once(optima.of(problem, less)))

    rates = calm.of(whole)
    over_all = worth(whole, evaluation, asked, rates)
    part = part_of(whole, evaluation, rows)
    alone = worth(part.problem, part.evaluation, np.ones(len(rows), dtype=bool), rates[rows])
    # Each optimum is known to the solver's gap, as a part of the whole mesh's objective.
    cost_ms = forecast(whole, evaluation, evaluation.shares_now).cost_ms
    spent = 3600.0 * float(np.sum(evaluation.demand_rps * cost_ms / rates))
    assert alone == pytest.approx(over_all, rel=0.01, abs=0.5 * GAP_RATIO * spent)


def test_what_shares_a_provider_is_no_part() -> None:
    rng = np.random.default_rng(1)
    whole = problem_of(*mesh_of(rng))
    evaluation = evaluation_of(rng, whole, 0.5)
    rows = routes_by_service(whole)["mail"]
    with pytest.raises(ValueError, match="same providers"):
        part_of(whole, evaluation, rows[:-1])
