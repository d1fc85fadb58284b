"""From the configuration and the live groups to the arrays the stages work on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from xds_server.core.tables import Bools, Floats, Ints, Pairs
from xds_server.engine.types import Group, Problem, ProfileArrays
from xds_server.model.ids import GroupKey, Locality, ProviderName, RouteKey
from xds_server.model.snapshot import Layout
from xds_server.model.template import Call, Profile, Template
from xds_server.model.topology import Address, Mesh, Provider

DEFAULT_CONCURRENCY = 8
"""Requests an endpoint is taken to serve at once until something says otherwise."""
STANDBY = "standby"
"""Why a pair is excluded that nothing but standby excludes."""
_GIB = float(2**30)
_ANY = "*"
_Cells = Mapping[tuple[str, str], float]  # dollars per GiB, by (from, to)


@dataclass(frozen=True, slots=True)
class _Row:
    """One route while the problem is being built."""

    key: RouteKey
    group: Group
    template: Template
    call: Call
    candidates: tuple[Provider, ...]


_Flat: TypeAlias = list[tuple[int, _Row, Provider]]
"""Route row, route, provider: one per pair, in the order of pairs."""


def build_problem(
    mesh: Mesh,
    endpoints: Mapping[ProviderName, tuple[Address, ...]],
    groups: Iterable[Group],
    substitutes: frozenset[ProviderName] = frozenset(),
) -> Problem:
    """Lay out routes, pairs and providers; order is by key, so it is reproducible.

    ``substitutes`` are providers on standby that may be used all the same.
    """
    ordered = sorted(groups, key=lambda g: g.key)
    rows = [row for group in ordered for row in _rows(mesh, group)]
    providers = tuple(sorted(mesh.providers))
    group_row = {group.key: i for i, group in enumerate(ordered)}
    provider_row = {name: i for i, name in enumerate(providers)}
    flat = [(r, row, p) for r, row in enumerate(rows) for p in row.candidates]
    pairs = Pairs(
        np.array([r for r, _, _ in flat], dtype=np.int64),
        np.array([provider_row[p.name] for _, _, p in flat], dtype=np.int64),
        len(rows),
        len(providers),
    )
    layouts = _layouts(rows, group_row)
    route_group = np.array([group_row[row.key.group] for row in rows], dtype=np.int64)
    keys = route_group[pairs.route] * len(providers) + pairs.provider
    order = np.argsort(keys, kind="stable").astype(np.int64)
    reasons = tuple(_exclusion(row, p, endpoints, substitutes) for _, row, p in flat)
    weights = np.array([float(p.baseline_weight) for _, _, p in flat])
    cells = {(e.origin, e.to): e.per_gib_usd for e in mesh.egress}
    profiles = [row.template.profile(row.key.group.phase) for row in rows]
    places = _places(mesh, flat)
    declared = _declare([mesh.providers[name] for name in providers], endpoints)
    return Problem(
        routes=tuple(row.key for row in rows),
        providers=providers,
        pairs=pairs,
        groups={g.key: g for g in ordered},
        group_of_node={node: i for i, g in enumerate(ordered) for node in g.nodes},
        group_keys=tuple(g.key for g in ordered),
        route_group=route_group,
        group_ends=np.cumsum([0, *(len(layout) for layout in layouts)]),
        layouts=layouts,
        pair_key=keys[order],
        pair_at=order,
        place=places.of_pair,
        places=places.keys,
        place_provider=np.array([provider_row[name] for _, name in places.keys], dtype=np.int64),
        place_link=places.link,
        links=places.links,
        place_home=places.home,
        target=_profile_arrays(profiles, flat, rows),
        origin=_profile_arrays([_origin(r) for r in rows], flat, rows),
        since_s=np.array([row.group.since_s for row in rows]),
        blend_s=np.array([row.template.phases.blend_s for row in rows]),
        allowed=np.array([not reason for reason in reasons], dtype=bool),
        excluded_because=reasons,
        baseline_shares=weights / np.maximum(pairs.sum_by_route(weights), 1e-12)[pairs.route],
        failure_ms=np.array([row.call.timeout_s * 1e3 for row in rows]),
        egress_usd_per_byte=np.array([_egress(row, p, cells) for _, row, p in flat]),
        declared_usd=declared.usd,
        servers=declared.servers,
        service_prior_s=declared.service_s,
        capacity_prior_rps=declared.capacity_rps,
        survive_loss=np.array([profile.survive_loss for profile in profiles], dtype=bool),
        members=np.array([float(len(row.group.nodes)) for row in rows]),
        applications=tuple(row.key.group.application for row in rows),
    )


@dataclass(frozen=True, slots=True)
class _Places:
    """Who is called from where; axis 0 (Q) is the place."""

    of_pair: Ints  # (P,)
    keys: tuple[tuple[Locality, ProviderName], ...]
    link: Ints
    links: tuple[tuple[str, str], ...]  # (K,)
    home: Bools


def _places(mesh: Mesh, flat: _Flat) -> _Places:
    region = {p.name: p.locality.region for p in mesh.providers.values()}
    keys = tuple(sorted({(row.key.group.locality, p.name) for _, row, p in flat}))
    ends = [(where.region, region[name]) for where, name in keys]
    links = tuple(sorted(set(ends)))
    place_of = {key: q for q, key in enumerate(keys)}
    link_of = {key: k for k, key in enumerate(links)}
    return _Places(
        np.array([place_of[row.key.group.locality, p.name] for _, row, p in flat], dtype=np.int64),
        keys,
        np.array([link_of[end] for end in ends], dtype=np.int64),
        links,
        np.array([origin == to for origin, to in ends], dtype=bool),
    )


@dataclass(frozen=True, slots=True)
class _Declared:
    """What mesh.yaml says of providers; axis 0 is J."""

    usd: Floats
    servers: Floats
    service_s: Floats  # NaN: unknown
    capacity_rps: Floats  # NaN: unknown


def _declare(
    providers: list[Provider], endpoints: Mapping[ProviderName, tuple[Address, ...]]
) -> _Declared:
    counts = np.array([float(len(endpoints.get(p.name, ()))) for p in providers])
    each = [float(p.capacity.concurrency or DEFAULT_CONCURRENCY) for p in providers]
    concurrency = np.array(each)
    rate = np.array([p.capacity.rps_per_endpoint or np.nan for p in providers])
    known = np.array([p.capacity.concurrency is not None for p in providers])
    return _Declared(
        np.array([p.price.per_million_requests_usd / 1e6 for p in providers]),
        np.maximum(counts, 1.0) * concurrency,
        np.where(known, concurrency / rate, np.nan),
        np.maximum(counts, 1.0) * rate,
    )


def _layouts(rows: list[_Row], group_row: Mapping[GroupKey, int]) -> tuple[Layout, ...]:
    """What the pairs of each group are of; routes come group by group."""
    found: list[list[tuple[str, str]]] = [[] for _ in group_row]
    for row in rows:
        mine = found[group_row[row.key.group]]
        mine.extend((row.key.service, p.name) for p in row.candidates)
    shared: dict[Layout, Layout] = {}
    return tuple(shared.setdefault(key, key) for key in map(tuple, found))


def _rows(mesh: Mesh, group: Group) -> Iterable[_Row]:
    """Yield one row per service that the group calls and that somebody provides."""
    template = mesh.templates[group.template]
    for call in template.calls:
        candidates = mesh.candidates(call)
        if candidates:
            yield _Row(RouteKey(group.key, call.service), group, template, call, candidates)


def _origin(row: _Row) -> Profile:
    """Return the profile that the group's objectives are blended from."""
    phase = row.group.origin_phase or row.key.group.phase
    names = {p.name for p in row.template.profiles}
    return row.template.profile(phase if phase in names else row.key.group.phase)


def _exclusion(
    row: _Row,
    provider: Provider,
    endpoints: Mapping[ProviderName, tuple[Address, ...]],
    substitutes: frozenset[ProviderName],
) -> str:
    """Say why a provider may not serve a route; empty when it may.

    Standby comes last: whom only that excludes may substitute.
    """
    require = row.template.profile(row.key.group.phase).geography.require
    if not endpoints.get(provider.name):
        return "no endpoints"
    if require and provider.locality.region not in require:
        return f"geography requires {', '.join(require)}"
    if provider.standby and provider.name not in substitutes:
        return STANDBY
    return ""


def _egress(row: _Row, provider: Provider, cells: _Cells) -> float:
    """Dollars per byte from the provider's region to the group's.

    The cell that names both regions counts, then those that name one, then the one for all,
    then the provider's own price. Within a region all is free that no cell prices by name.
    """
    origin, to = provider.locality.region, row.key.group.locality.region
    fitting = ((origin, to), (origin, _ANY), (_ANY, to), (_ANY, _ANY))
    for cell in fitting[:1] if origin == to else fitting:
        if cell in cells:
            return cells[cell] / _GIB
    return 0.0 if origin == to else provider.price.egress_per_gib_usd / _GIB


def _profile_arrays(profiles: list[Profile], flat: _Flat, rows: list[_Row]) -> ProfileArrays:
    calls = np.array([float(len(row.template.calls)) for row in rows])

    def outside(r: int, provider: Provider) -> float:
        prefer = profiles[r].geography.prefer
        return float(bool(prefer) and provider.locality.region not in prefer)

    def per_route(values: Iterable[float | None], absent: float) -> np.ndarray:
        return np.array([absent if v is None else v for v in values], dtype=np.float64)

    return ProfileArrays(
        performance_weight=per_route((p.performance_weight for p in profiles), 0.5),
        cost_weight=per_route((p.cost_weight for p in profiles), 0.5),
        slo_s=per_route((p.latency_p95_s for p in profiles), np.inf),
        budget_usd_per_h=per_route((p.cost_usd_per_h for p in profiles), np.inf),
        # An instance's expected throughput is over all that it calls.
        expected_rps=per_route((p.throughput_rps for p in profiles), 0.0) / np.maximum(calls, 1.0),
        unpreferred=np.array([outside(r, p) for r, _, p in flat]),
    )
