"""What operators are shown: plain records that serialise to JSON as they are."""

import math
from dataclasses import dataclass

from xds_server.model.ids import ApplicationName, NodeId, PhaseName, ProviderName, ServiceName
from xds_server.model.slow import SlowStatus


@dataclass(frozen=True, slots=True)
class TypeStatus:
    """How far one node is with one xDS type on one stream."""

    type: str  # short form: CDS
    version_sent: str
    version_acked: str
    nacks: int
    last_nack: str  # Envoy's own words; "" if it never refused
    unanswered_s: float  # since the oldest response that was neither ACKed nor NACKed; 0: none
    silent: bool  # unanswered for too long
    lacks: tuple[str, ...] = ()  # clusters that it cannot answer for: they wait for endpoints
    refused: tuple[str, ...] = ()  # resources that it refused and keeps at their last good version


@dataclass(frozen=True, slots=True)
class BandStatus:
    """One declared expectation and what was measured."""

    name: str  # e.g. call_rate_rps
    service: ServiceName  # "" where it is about the whole instance
    value: float | None
    low: float
    high: float
    state: str  # ok | breach | unmeasured


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One sidecar with an open ADS stream."""

    node_id: NodeId
    application: ApplicationName
    locality: str
    phase: PhaseName
    phase_s: float  # time in this phase
    age_s: float
    protocol: str  # sotw | delta
    weights_via: str  # rtds | rds | none
    telemetry_age_s: float | None
    rps: float
    error_ratio: float
    latency_p95_ms: float | None
    types: tuple[TypeStatus, ...]
    behaviour: tuple[BandStatus, ...]
    waiting_for: tuple[ProviderName, ...] = ()  # new there, without healthy hosts so far


@dataclass(frozen=True, slots=True)
class ShareStatus:
    """One provider of one route: what was asked for, and what the sidecars report."""

    provider: ProviderName
    weight: int  # asked for, of 10,000; the baseline's weight where nothing is published
    share: float
    baseline_share: float
    observed_share: float | None
    excluded_because: str


@dataclass(frozen=True, slots=True)
class RouteStatus:
    """One (group, service): the row that the engine decides."""

    application: ApplicationName
    phase: PhaseName
    locality: str
    service: ServiceName
    instances: int
    demand_rps: float
    latency_ms: float | None
    latency_p95_ms: float | None
    slo_p95_ms: float | None
    predicted_latency_ms: float
    usd_per_million: float
    move: str
    hold_reason: str
    providers: tuple[ShareStatus, ...]
    fragile: bool = False  # its SLO would not survive the loss of its largest provider


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """One provider over the whole mesh."""

    provider: ProviderName
    service: ServiceName
    endpoints: int
    rps: float
    latency_ms: float | None
    latency_p95_ms: float | None
    error_ratio: float
    utilisation_ratio: float
    capacity_rps: float
    price_per_million_usd: float
    capacity_sigma_ratio: float = math.nan  # its relative standard deviation


@dataclass(frozen=True, slots=True)
class BottleneckStatus:
    """A provider that delays its callers."""

    provider: ProviderName
    utilisation_ratio: float
    rent_ms_per_s: float


@dataclass(frozen=True, slots=True)
class Status:
    """All of ``/v1/status``."""

    mesh: str
    mode: str
    uptime_s: float
    ticks: int
    last_tick_age_s: float | None
    last_tick_ms: float | None
    config_path: str
    config_error: str  # why the newest change of the file was refused; "" if it was not
    inert_keys: tuple[str, ...]
    nodes: tuple[NodeStatus, ...]
    routes: tuple[RouteStatus, ...]
    providers: tuple[ProviderStatus, ...]
    bottlenecks: tuple[BottleneckStatus, ...]
    slow: tuple[SlowStatus, ...] = ()  # what slow ticks decide about
