"""A mesh to experiment on: who calls what, who provides it, how far apart, at what price."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from xds_server.core.tables import Bools, Floats, Ints
from xds_server.engine.problem import build_problem
from xds_server.engine.types import Group, Problem
from xds_server.model.ids import GroupKey, Locality, RouteKey
from xds_server.model.template import Call, Profile, Template
from xds_server.model.topology import (
    Address,
    Application,
    Capacity,
    EngineSettings,
    Mesh,
    Mode,
    Price,
    Provider,
    ServerSettings,
    Service,
    TelemetrySettings,
)

SIZES: Final = {"XS": (20, 8), "S": (200, 40), "M": (2_000, 200), "L": (10_000, 1_000)}
"""Routes and providers."""
REGIONS: Final = 4
PROVIDERS_PER_SERVICE: Final = 8
CALLS: Final = 5
RPS_PER_PROVIDER: Final = 100.0
LOAD_RATIO: Final = 0.5
"""Demand over the capacity of all providers of a service."""
SLO_S: Final = 0.3
EGRESS_USD_PER_GIB: Final = 0.02
RESPONSE_BYTES: Final = 20_000.0
TIMEOUT_S: Final = 1.0
_CAPACITY_ERROR: Final = 0.1
"""Standard deviation of the logarithm by which declared capacities are wrong."""
_PROFILES: Final = (("latency", 0.9, 0.1), ("balanced", 0.7, 0.3), ("cost", 0.5, 0.5))


@dataclass(frozen=True, slots=True)
class Layout:
    """The mesh and the truth about it at rest. R routes, P pairs, J providers."""

    mesh: Mesh
    problem: Problem
    nodes: tuple[str, ...]  # one for each group
    node_row: Ints  # (P,)
    region: Ints  # (R,) of the callers
    service: Ints  # (R,)
    home: Ints  # (J,) region of the provider
    provider_service: Ints  # (J,)
    endpoints: Ints  # (J,)
    service_s: Floats  # (J,) mean
    servers: Ints  # (J,)
    declared_rps: Floats  # (J,) capacity as mesh.yaml has it: not quite the truth
    price_usd: Floats  # (J,) per request
    rtt_s: Floats  # (P,) between callers and provider
    egress_usd: Floats  # (P,) per response
    demand_rps: Floats  # (R,)
    ms_per_usd: Floats  # (R,) the profile's exchange rate, at rest
    failure_ms: float
    timeout_s: float

    @property
    def local(self) -> Bools:
        """(P,) whether the provider is in the callers' region."""
        pairs = self.problem.pairs
        found: Bools = self.region[pairs.route] == self.home[pairs.provider]
        return found


def make_layout(size: str, seed: int, settings: EngineSettings | None = None) -> Layout:
    """Draw a mesh of that size; the same for the same seed."""
    routes, count = SIZES[size]
    rng = np.random.default_rng([seed, 1])
    services = count // PROVIDERS_PER_SERVICE
    calls = min(CALLS, services)
    groups = routes // calls
    total = RPS_PER_PROVIDER * PROVIDERS_PER_SERVICE
    weight = rng.uniform(0.7, 1.3, (services, PROVIDERS_PER_SERVICE))
    capacity = (total / LOAD_RATIO * weight / weight.sum(axis=1, keepdims=True)).ravel()
    endpoints = rng.integers(1, 4, count)
    wanted_s = rng.uniform(0.015, 0.06, count)
    each = np.maximum(np.round(capacity * wanted_s / endpoints), 1.0)
    servers = (each * endpoints).astype(np.int64)
    service_s = servers / capacity
    price = np.exp(rng.normal(0.0, 0.4, count)) * np.sqrt(0.035 / service_s)
    where = np.arange(count) % REGIONS
    provider_service = np.arange(count) // PROVIDERS_PER_SERVICE
    declared = capacity / endpoints * np.exp(rng.normal(0.0, _CAPACITY_ERROR, count))
    names = [f"s{provider_service[j]:03d}-p{j:04d}" for j in range(count)]
    offered = [
        Provider(
            names[j],
            f"s{provider_service[j]:03d}",
            locality=Locality(f"r{where[j]}"),
            endpoints=tuple(Address("127.0.0.1", 9000 + k) for k in range(endpoints[j])),
            # One provider in each service lacks what half of the callers need.
            capabilities=frozenset(() if j % PROVIDERS_PER_SERVICE == 0 else ("full",)),
            capacity=Capacity(float(declared[j]), int(each[j])),
            price=Price(float(price[j]), egress_per_gib_usd=EGRESS_USD_PER_GIB),
        )
        for j in range(count)
    ]
    mesh, live = _mesh(offered, services, calls, groups, settings or EngineSettings())
    problem = build_problem(mesh, {p.name: p.endpoints for p in offered}, live)
    return _measure(
        mesh,
        problem,
        rng,
        where,
        provider_service,
        endpoints,
        service_s,
        servers,
        declared * endpoints,
        price / 1e6,
    )


def _mesh(
    offered: list[Provider], services: int, calls: int, groups: int, settings: EngineSettings
) -> tuple[Mesh, list[Group]]:
    """Applications over all regions, profiles and blocks of services."""
    templates: dict[str, Template] = {}
    applications, live = {}, []
    for g in range(groups):
        block = (g // (REGIONS * len(_PROFILES))) % max(1, services // calls)
        profile, performance, cost = _PROFILES[(g // REGIONS) % len(_PROFILES)]
        requires = frozenset(("full",)) if g % 2 else frozenset[str]()
        name = f"b{block}-{profile}-{'full' if requires else 'any'}"
        if name not in templates:
            called = [f"s{block * calls + i:03d}" for i in range(calls)]
            templates[name] = Template(
                name,
                tuple(
                    Call(s, f"127.0.0.1:{15000 + i}", requires, timeout_s=TIMEOUT_S)
                    for i, s in enumerate(called)
                ),
                (
                    Profile(
                        "steady",
                        latency_p95_s=SLO_S,
                        performance_weight=performance,
                        cost_weight=cost,
                    ),
                ),
            )
        application = f"a{g:05d}"
        applications[application] = Application(application, templates[name])
        key = GroupKey(application, "steady", Locality(f"r{g % REGIONS}"))
        live.append(Group(key, frozenset({f"n{g:05d}"}), name, None, 0.0))
    by_service: dict[str, list[Provider]] = {}
    for provider in offered:
        by_service.setdefault(provider.service, []).append(provider)
    mesh = Mesh(
        "lab",
        Mode.ENFORCE,
        settings,
        TelemetrySettings(),
        {name: Service(name, tuple(found)) for name, found in by_service.items()},
        templates,
        applications,
        ServerSettings(),
    )
    return mesh, live


def _node_of(route: RouteKey) -> str:
    """Name of the one node of a route's group."""
    return f"n{route.group.application[1:]}"


def _measure(
    mesh: Mesh,
    problem: Problem,
    rng: np.random.Generator,
    home: Ints,
    provider_service: Ints,
    endpoints: Ints,
    service_s: Floats,
    servers: Ints,
    declared_rps: Floats,
    price_usd: Floats,
) -> Layout:
    """Distances, demand, and what a dollar is worth; rows follow ``problem``."""
    pairs = problem.pairs
    place = rng.uniform(0.0, 1.0, (REGIONS, 2))
    apart = np.linalg.norm(place[:, None] - place[None], axis=2)
    rtt = np.where(np.eye(REGIONS, dtype=bool), 0.0015, 0.012 + 0.05 * apart)
    region = np.array([int(r.group.locality.region[1:]) for r in problem.routes])
    service = np.array([int(r.service[1:]) for r in problem.routes])
    rtt_s = rtt[region[pairs.route], home[pairs.provider]]
    remote = region[pairs.route] != home[pairs.provider]
    egress = np.where(remote, RESPONSE_BYTES * EGRESS_USD_PER_GIB / 2**30, 0.0)
    demand = np.exp(rng.normal(0.0, 0.5, pairs.routes)) * rng.uniform(0.6, 1.4, REGIONS)[region]
    called = np.bincount(service, demand, int(provider_service.max()) + 1)
    demand *= RPS_PER_PROVIDER * PROVIDERS_PER_SERVICE / called[service]
    baseline = problem.baseline_shares
    idle_ms = 1e3 * pairs.sum_by_route(baseline * (service_s[pairs.provider] + rtt_s))
    usd = pairs.sum_by_route(baseline * price_usd[pairs.provider])
    profiles = [
        mesh.applications[r.group.application].template.profile("steady") for r in problem.routes
    ]
    ratio = np.array([p.cost_weight / p.performance_weight for p in profiles])
    nodes = tuple(sorted({_node_of(r) for r in problem.routes}))
    row = {node: i for i, node in enumerate(nodes)}
    node_row = np.array([row[_node_of(r)] for r in problem.routes], dtype=np.int64)
    return Layout(
        mesh,
        problem,
        nodes,
        node_row[pairs.route],
        region,
        service,
        home,
        provider_service,
        endpoints,
        service_s,
        servers,
        declared_rps,
        price_usd,
        rtt_s,
        egress,
        demand,
        ratio * idle_ms / usd,
        1e3 * TIMEOUT_S,
        TIMEOUT_S,
    )
