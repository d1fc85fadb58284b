"""What would become of the mesh if something changed: plain records that serialise to JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from xds_server.model.ids import ApplicationName, PhaseName, ProviderName, ServiceName
from xds_server.model.status import BottleneckStatus


class Quantity(StrEnum):
    """What can be supposed to change; all but demand are a provider's."""

    PRICE = "price"  # dollars per million requests
    CAPACITY = "capacity"  # requests/s, of all its endpoints
    LATENCY = "latency"  # a factor on what a request takes there without load
    ENDPOINTS = "endpoints"
    DOWN = "down"
    DEMAND = "demand"  # calls/s of the application to the service


@dataclass(frozen=True, slots=True)
class Change:
    """One supposition: ``value`` is new, or a factor on what is."""

    provider: ProviderName  # "" for demand
    quantity: Quantity
    value: float
    is_factor: bool
    text: str  # as it was written


@dataclass(frozen=True, slots=True)
class Prospect:
    """What one route may expect of one plan; latencies are of calls that are answered."""

    latency_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    usd_per_million: float
    usd_per_h: float
    failed_ratio: float  # attempts that fail
    cost_ms: float  # objective per request, ms-equivalent
    slo_breached: bool


@dataclass(frozen=True, slots=True)
class ShareProspect:
    """One provider of one route: its shares, and the terms of its cost at the optimum."""

    provider: ProviderName
    share_now: float
    share_then: float
    excluded_because: str  # "" where it may be used then
    terms_ms: Mapping[str, float]  # by name; they add up to ``total_ms``
    total_ms: float
    marginal_ms: float  # what one more request costs everybody


@dataclass(frozen=True, slots=True)
class RouteProspect:
    """One route now, after the change with the shares of now, and at the optimum then."""

    application: ApplicationName
    phase: PhaseName
    locality: str
    service: ServiceName
    asked: bool  # one of those the question is about; others share providers with them
    demand_now_rps: float
    demand_rps: float
    slo_p95_ms: float  # NaN: none
    now: Prospect
    held: Prospect
    optimum: Prospect
    gain_ms: float  # objective per request, held less optimum
    gain_terms_ms: Mapping[str, float]  # add up to ``gain_ms``
    would_move: bool  # whether the gain is beyond the engine's deadband
    moved_ratio: float  # of the route's traffic, from the shares of now to the optimum
    providers: tuple[ShareProspect, ...]


@dataclass(frozen=True, slots=True)
class ProviderProspect:
    """One provider of the service under the three plans."""

    provider: ProviderName
    capacity_rps: float  # then
    rps_now: float
    rps_held: float
    rps_optimum: float
    utilisation_now: float
    utilisation_held: float
    utilisation_optimum: float


@dataclass(frozen=True, slots=True)
class WhatIf:
    """All of ``/v1/what-if``."""

    application: ApplicationName
    service: ServiceName
    changes: tuple[str, ...]
    source: str  # what the models are from
    routes: tuple[RouteProspect, ...]  # those asked about first
    routes_left_out: int  # more that would change as well
    providers: tuple[ProviderProspect, ...]
    bottlenecks_now: tuple[BottleneckStatus, ...]
    bottlenecks_then: tuple[BottleneckStatus, ...]
    iterations: int
    settled: bool  # whether shares had stopped moving after so many
    gap_ratio: float  # the solver's duality gap at the last of them
    notes: tuple[str, ...]  # what was assumed
