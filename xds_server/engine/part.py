"""A service with its routes and providers, as a mesh of its own.

A provider belongs to one service and a route calls one, so services share nothing: what one of
them would do is found by settling it alone, and what a change of it is worth is the difference
over its own routes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from xds_server.core.objective import PairCosts
from xds_server.core.tables import Floats, Ints, Pairs
from xds_server.engine.types import Evaluation, Observation, Problem, ProfileArrays
from xds_server.model.ids import ServiceName
from xds_server.model.snapshot import Layout


@dataclass(frozen=True, slots=True)
class Part:
    """Some routes with all of their providers; rows are those of the whole, ascending."""

    problem: Problem
    evaluation: Evaluation
    routes: Ints  # (r,) rows of R
    providers: Ints  # (j,) rows of J
    pairs: Ints  # (p,) rows of P

    def put(self, whole: Floats, values: Floats) -> Floats:
        """(P,) of the whole with this part's values (p,) in their place."""
        found = whole.copy()
        found[self.pairs] = values
        return found


def routes_by_service(problem: Problem) -> Mapping[ServiceName, Ints]:
    """Rows of the routes that call each service, ascending."""
    rows: dict[ServiceName, list[int]] = {}
    for r, key in enumerate(problem.routes):
        rows.setdefault(key.service, []).append(r)
    return {name: np.array(found, dtype=np.int64) for name, found in rows.items()}


def part_of(problem: Problem, evaluation: Evaluation, routes: Ints) -> Part:
    """Cut out these routes (r,), rows in ascending order, with their providers.

    Raises
    ------
    ValueError
        when other routes use the same providers: such a part would not be a mesh of its own
    """
    rows = _rows(problem, routes)
    return Part(
        _problem(problem, rows),
        _evaluation(evaluation, rows),
        rows.routes,
        rows.providers,
        rows.pairs,
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is kept of each axis, and the new numbers of what is referred to."""

    routes: Ints
    providers: Ints
    pairs: Ints
    places: Ints
    groups: Ints
    links: Ints
    table: Pairs


def _rows(problem: Problem, routes: Ints) -> _Rows:
    whole = problem.pairs
    new_route = np.full(whole.routes, -1, dtype=np.int64)
    new_route[routes] = np.arange(len(routes))
    pairs = np.flatnonzero(new_route[whole.route] >= 0)
    used = np.zeros(whole.providers, dtype=bool)
    used[whole.provider[pairs]] = True
    if int(np.count_nonzero(used[whole.provider])) != len(pairs):
        raise ValueError("other routes use the same providers")
    providers = np.flatnonzero(used)
    places = np.unique(problem.place[pairs])
    table = Pairs(
        new_route[whole.route[pairs]],
        np.searchsorted(providers, whole.provider[pairs]),
        len(routes),
        len(providers),
    )
    groups = np.unique(problem.route_group[routes])
    links = np.unique(problem.place_link[places])
    return _Rows(routes, providers, pairs, places, groups, links, table)


def _problem(whole: Problem, rows: _Rows) -> Problem:
    r, j, p, q = rows.routes, rows.providers, rows.pairs, rows.places
    keys = tuple(whole.group_keys[g] for g in rows.groups)
    route_group = np.searchsorted(rows.groups, whole.route_group[r])
    of_pair = route_group[rows.table.route]
    pair_key = of_pair * len(j) + rows.table.provider
    order = np.argsort(pair_key, kind="stable")
    group_row = {key: g for g, key in enumerate(keys)}
    routes = tuple(whole.routes[i] for i in r)
    return Problem(
        routes=routes,
        providers=tuple(whole.providers[i] for i in j),
        pairs=rows.table,
        groups={key: whole.groups[key] for key in keys},
        group_of_node={node: group_row[key] for key in keys for node in whole.groups[key].nodes},
        group_keys=keys,
        route_group=route_group,
        group_ends=np.searchsorted(of_pair, np.arange(len(keys) + 1)),
        layouts=_layouts(whole, rows),
        pair_key=pair_key[order],
        pair_at=order,
        place=np.searchsorted(q, whole.place[p]),
        places=tuple(whole.places[i] for i in q),
        place_provider=np.searchsorted(j, whole.place_provider[q]),
        place_link=np.searchsorted(rows.links, whole.place_link[q]),
        links=tuple(whole.links[k] for k in rows.links),
        place_home=whole.place_home[q],
        target=_profiles(whole.target, rows),
        origin=_profiles(whole.origin, rows),
        since_s=whole.since_s[r],
        blend_s=whole.blend_s[r],
        allowed=whole.allowed[p],
        excluded_because=tuple(whole.excluded_because[i] for i in p.tolist()),
        baseline_shares=whole.baseline_shares[p],
        failure_ms=whole.failure_ms[r],
        egress_usd_per_byte=whole.egress_usd_per_byte[p],
        declared_usd=whole.declared_usd[j],
        servers=whole.servers[j],
        service_prior_s=whole.service_prior_s[j],
        capacity_prior_rps=whole.capacity_prior_rps[j],
        members=whole.members[r],
        survive_loss=whole.survive_loss[r],
        applications=tuple(whole.applications[i] for i in r),
    )


def _layouts(whole: Problem, rows: _Rows) -> tuple[Layout, ...]:
    """What the pairs of each group are of; equal ones are one object, as in the whole."""
    found: list[list[tuple[str, str]]] = [[] for _ in rows.groups]
    of_pair = np.searchsorted(rows.groups, whole.route_group[whole.pairs.route[rows.pairs]])
    begins = whole.group_ends[rows.groups]
    for g, p in zip(of_pair.tolist(), rows.pairs.tolist(), strict=True):
        found[g].append(whole.layouts[rows.groups[g]][p - begins[g]])
    shared: dict[Layout, Layout] = {}
    return tuple(shared.setdefault(key, key) for key in map(tuple, found))


def _profiles(whole: ProfileArrays, rows: _Rows) -> ProfileArrays:
    kept = {
        f.name: getattr(whole, f.name)[rows.pairs if f.name == "unpreferred" else rows.routes]
        for f in fields(ProfileArrays)
    }
    return ProfileArrays(**kept)


def _evaluation(whole: Evaluation, rows: _Rows) -> Evaluation:
    r, j, p = rows.routes, rows.providers, rows.pairs
    costs = {f.name: getattr(whole.costs, f.name)[p] for f in fields(PairCosts)}
    return Evaluation(
        now_s=whole.now_s,
        observation=_observation(whole.observation, rows),
        stations=whole.stations.rows(j),
        rtt_s=whole.rtt_s[p],
        sigma_ratio=whole.sigma_ratio[j],
        error_ratio=whole.error_ratio[j],
        price_usd=whole.price_usd[j],
        demand_rps=whole.demand_rps[r],
        shares_now=whole.shares_now[p],
        last_step=whole.last_step[p],
        allowed=whole.allowed[p],
        costs=PairCosts(**costs),
        slo_s=whole.slo_s[r],
        tau_ms=whole.tau_ms[r],
        usd_per_request=whole.usd_per_request[p],
        calibration=whole.calibration[r],
        measured=whole.measured[r],
    )


def _observation(whole: Observation, rows: _Rows) -> Observation:
    axes = {
        "pair": rows.pairs,
        "route": rows.routes,
        "place": rows.places,
        "provider": rows.providers,
    }
    kept = {
        f.name: getattr(whole, f.name)[axes[f.name.partition("_")[0]]] for f in fields(Observation)
    }
    return Observation(**kept)
