"""What the stages hand to each other. Axes: R routes, P pairs, J providers, Q places.

A place is a provider as seen from one locality of callers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from xds_server.core.latency import Stations
from xds_server.core.objective import PairCosts
from xds_server.core.tables import Bools, Floats, Ints, Pairs
from xds_server.model.decision import Bottleneck, Candidate, Forecast
from xds_server.model.ids import (
    ApplicationName,
    GroupKey,
    Locality,
    NodeId,
    PhaseName,
    ProviderName,
    RouteKey,
)
from xds_server.model.snapshot import Layout


@dataclass(frozen=True, slots=True)
class Group:
    """Live instances that share their weights."""

    key: GroupKey
    nodes: frozenset[NodeId]
    template: str
    origin_phase: PhaseName | None  # the phase its first member came from
    since_s: float


@dataclass(frozen=True, slots=True)
class ProfileArrays:
    """The objectives of each route's profile as numbers."""

    performance_weight: Floats  # (R,)
    cost_weight: Floats  # (R,)
    slo_s: Floats  # (R,) inf: none
    budget_usd_per_h: Floats  # (R,) inf: none
    expected_rps: Floats  # (R,) 0: none
    unpreferred: Floats  # (P,) 1 where the provider is outside the preferred regions


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything about the decision that telemetry does not change.

    Rebuilt when the configuration, the endpoints or the groups change.
    """

    routes: tuple[RouteKey, ...]
    providers: tuple[ProviderName, ...]
    pairs: Pairs
    groups: Mapping[GroupKey, Group]
    group_of_node: Mapping[NodeId, int]  # row in group_keys
    group_keys: tuple[GroupKey, ...]
    route_group: Ints  # (R,) row in group_keys
    group_ends: Ints  # (G + 1,) where each group's pairs begin, and where the last one's end
    layouts: tuple[Layout, ...]  # (G,) what a group's pairs are of; equal ones are one object
    pair_key: Ints  # (P,) group row * J + provider row, ascending
    pair_at: Ints  # (P,) pair that pair_key belongs to
    place: Ints  # (P,) row of the place
    places: tuple[tuple[Locality, ProviderName], ...]  # (Q,)
    place_provider: Ints  # (Q,)
    place_link: Ints  # (Q,) row of the link
    links: tuple[tuple[str, str], ...]  # (K,) regions of callers and providers
    place_home: Bools  # (Q,) callers in the provider's own region
    target: ProfileArrays
    origin: ProfileArrays
    since_s: Floats  # (R,) when the route's group began
    blend_s: Floats  # (R,)
    allowed: Bools  # (P,)
    excluded_because: tuple[str, ...]  # (P,) "" where allowed
    baseline_shares: Floats  # (P,)
    failure_ms: Floats  # (R,) what a failed request costs: its timeout
    egress_usd_per_byte: Floats  # (P,) 0 within the region
    declared_usd: Floats  # (J,) per request
    servers: Floats  # (J,) prior
    service_prior_s: Floats  # (J,) NaN: unknown
    capacity_prior_rps: Floats  # (J,) NaN: unknown
    members: Floats  # (R,) instances of the route's group
    survive_loss: Bools  # (R,) whether its SLO has to survive the loss of a provider
    applications: tuple[ApplicationName, ...]  # (R,)


@dataclass(frozen=True, slots=True)
class Observation:
    """What the last window showed, aggregated to pairs, routes and providers."""

    pair_rps: Floats  # (P,) attempts/s
    pair_responses: Floats  # (P,)
    route_rps: Floats  # (R,)
    route_recent_rps: Floats  # (R,) in the newest slot, where that is told apart
    route_latency_s: Floats  # (R,) NaN: no response
    route_p95_s: Floats  # (R,) NaN
    route_cv2: Floats  # (R,) squared coefficient of variation of response times; NaN
    route_responses: Floats  # (R,)
    route_bytes: Floats  # (R,) response bytes per request; NaN
    route_age_s: Floats  # (R,) of the newest sample; inf: never
    place_latency_s: Floats  # (Q,) NaN: no response
    place_responses: Floats  # (Q,)
    provider_rps: Floats  # (J,)
    provider_latency_s: Floats  # (J,) NaN
    provider_p95_s: Floats  # (J,) NaN
    provider_cv2: Floats  # (J,) squared coefficient of variation of response times; NaN
    provider_responses: Floats  # (J,)
    provider_errors: Floats  # (J,) failed attempts
    provider_attempts: Floats  # (J,)
    provider_active: Floats  # (J,) requests in flight


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The mesh as it is now, and the models that explain it."""

    now_s: float
    observation: Observation
    stations: Stations
    rtt_s: Floats  # (P,) network time beyond the provider's nearest callers'
    sigma_ratio: Floats  # (J,) relative standard deviation of the service time
    error_ratio: Floats  # (J,)
    price_usd: Floats  # (J,) per request, live
    demand_rps: Floats  # (R,)
    shares_now: Floats  # (P,) commanded
    last_step: Floats  # (P,) how shares changed when the route last moved
    allowed: Bools  # (P,)
    costs: PairCosts
    slo_s: Floats  # (R,) blended
    tau_ms: Floats  # (R,)
    usd_per_request: Floats  # (P,) price and egress
    calibration: Floats  # (R,) factor on every sigma
    measured: Bools  # (R,) whether telemetry is fresh enough to act on


@dataclass(frozen=True, slots=True)
class Bottlenecks:
    """Providers by congestion rent, dearest first, and the prices behind it."""

    found: tuple[Bottleneck, ...]
    price_ms: Floats  # (J,) marginal latency at the commanded shares


@dataclass(frozen=True, slots=True)
class Candidates:
    """What could be done; the first is always to hold.

    All lie on the line from there through the second.
    """

    proposed: tuple[Candidate, ...]
    parts: tuple[float, ...]  # of the way from the first to the second that each goes
    price_ms: Floats  # (J,) at the optimum of this step
    floor: Floats  # (P,) least shares, before they are fitted into a route
    gap_ratio: float
    iterations: int


@dataclass(frozen=True, slots=True)
class Simulated:
    """Each candidate with what it would cost in all, in the same order."""

    candidates: Candidates
    total_ms: Floats  # (C,) demand-weighted objective, ms-equivalent per second
    hold: Forecast
