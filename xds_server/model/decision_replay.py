"""What another profile would have decided: the past as it is read, and the answer."""

from collections.abc import Mapping
from dataclasses import dataclass

from xds_server.model.history import Seeds
from xds_server.model.ids import (
    ApplicationName,
    PhaseName,
    ProviderName,
    RouteKey,
    ServiceName,
)


@dataclass(frozen=True, slots=True)
class PastRoute:
    """One route during one step, beside what ``Seeds`` say of it."""

    usd_per_million: float  # of the plan that was in force; NaN: unknown
    observed_latency_s: float  # NaN: no response


@dataclass(frozen=True, slots=True)
class PastStep:
    """One row of history: everything that was known at that time."""

    at_s: float  # since the epoch
    span_s: float
    seeds: Seeds  # models and demand, and the shares that were asked for
    price_usd: Mapping[ProviderName, float]  # per request
    capacity_rps: Mapping[ProviderName, float]
    routes: Mapping[RouteKey, PastRoute]


@dataclass(frozen=True, slots=True)
class PlanTotals:
    """One plan over time, by forecast; means are over calls."""

    latency_ms: float
    latency_p95_ms: float
    usd: float
    usd_per_million: float
    slo_breach_s: float  # for which the forecast p95 was above the profile's SLO


@dataclass(frozen=True, slots=True)
class ReplayPoint:
    """One route at one step."""

    at_s: float
    span_s: float
    demand_rps: float
    shares_chosen: Mapping[ProviderName, float]
    shares_replayed: Mapping[ProviderName, float]
    chosen_p95_ms: float
    replayed_p95_ms: float
    chosen_usd_per_million: float
    replayed_usd_per_million: float


@dataclass(frozen=True, slots=True)
class ReplayedRoute:
    """One route over all steps."""

    application: ApplicationName
    phase: PhaseName
    locality: str
    service: ServiceName
    calls: float
    slo_p95_ms: float  # of the profile that was tried; NaN: none
    observed_latency_ms: float  # what calls took; NaN: not known
    chosen: PlanTotals
    replayed: PlanTotals
    shares_chosen: Mapping[ProviderName, float]  # means over calls
    shares_replayed: Mapping[ProviderName, float]
    moved_ratio: float  # of the calls that would have gone elsewhere
    changed: bool
    points: tuple[ReplayPoint, ...]


@dataclass(frozen=True, slots=True)
class DecisionReplay:
    """All of ``/v1/replay-decisions``."""

    profile: PhaseName
    application: ApplicationName  # "": all that have the profile
    since_s: float
    until_s: float
    resolution: str
    steps: int
    routes: tuple[ReplayedRoute, ...]
    chosen: PlanTotals  # over ``routes``
    replayed: PlanTotals
    routes_changed: int
    notes: tuple[str, ...]  # what cannot be known, and what was left out
