"""What operators are shown of services and instances: each value with its age and its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from xds_server.model.ids import (
    ApplicationName,
    Locality,
    NodeId,
    PhaseName,
    ProviderName,
    ServiceName,
)
from xds_server.model.topology import Address


@dataclass(frozen=True, slots=True)
class Reading:
    """One value, how old it is, whose word it is, and how far to trust it.

    ``source`` is one of: sidecars (measured), provider (ORCA), lease (a registered endpoint's
    heartbeat), the adapter of a price or of usage, access log (a sample of calls), engine
    (estimated), declared (mesh.yaml), derived, or "" where nobody knows.

    ``samples`` and ``standard_error`` say what chance may have done to the value; neither says
    anything of a source that is wrong. ``standard_error`` is in the value's own unit: if what is
    measured goes on as it is, two values in three are this near to what many more measurements
    would give. 0 is somebody's word, taken as it is.
    """

    value: float | None
    age_s: float | None  # None: it has no age (declared), or there is no value
    source: str
    samples: float | None = None  # requests, responses or nodes behind it; None: not counted
    standard_error: float | None = None  # None: not known
    stale: bool = False  # older than its source's words are good for


UNKNOWN = Reading(None, None, "")


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """One endpoint that Envoys are given."""

    address: Address
    source: str  # declared, or the adapter that found it
    locality: Locality
    capabilities: tuple[str, ...]
    capacity_rps: Reading
    utilisation_ratio: Reading
    price_per_million_usd: Reading
    registered_s: float | None = None  # these three: of announced endpoints alone
    heard_s: float | None = None
    expires_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was measured over the newest ``window_s``; availability over ``availability_s``."""

    window_s: float
    availability_s: float
    rps: Reading
    in_flight: Reading
    latency_p50_ms: Reading
    latency_p95_ms: Reading
    latency_p99_ms: Reading
    error_ratio: Reading
    availability_ratio: Reading  # successes / attempts; unknown without attempts


@dataclass(frozen=True, slots=True)
class SampledCalls:
    """What the access log's sample says of calls over about the newest ``window_s``.

    A response time is the provider's, from the first byte that was sent to it to the last of its
    answer; a duration is the caller's, from its first byte to the last that it was sent.
    """

    window_s: float
    calls: float  # how many were sampled
    read_ratio: Reading  # GET, HEAD and OPTIONS
    failed_ratio: Reading  # 5xx, or broken off
    request_bytes: Reading  # these two: mean per call, headers and body
    response_bytes: Reading
    latency_p50_ms: Reading
    latency_p99_ms: Reading
    latency_mean_ms: Reading
    duration_mean_ms: Reading
    flags: Mapping[str, int]  # calls by Envoy's response flag, of those that were raised


@dataclass(frozen=True, slots=True)
class ProviderView:
    """One provider, over all that call it."""

    provider: ProviderName
    locality: Locality
    capabilities: tuple[str, ...]
    standby: bool
    health: str  # ok | no endpoints | unhealthy | unknown
    endpoints: tuple[EndpointStatus, ...]
    healthy_hosts: Reading  # the fewest that any sidecar counts
    traffic: Traffic
    utilisation_ratio: Reading
    capacity_rps: Reading  # of all its endpoints
    price_per_million_usd: Reading
    cost_usd_per_h: Reading
    cpu_ratio: Reading = UNKNOWN  # these two: as a source of usage measures its processes
    memory_bytes: Reading = UNKNOWN
    sampled: SampledCalls | None = None  # None: no call was sampled lately


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service: its providers, and what they do together."""

    service: ServiceName
    rps: float
    cost_usd_per_h: float | None  # None: of some provider it is not known
    providers: tuple[ProviderView, ...]


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One running instance, as its sidecar reports it."""

    node_id: NodeId
    application: ApplicationName
    locality: Locality
    phase: PhaseName  # "" before the first tick, and for applications that are not configured
    phase_s: float | None
    age_s: float  # since its stream opened
    health: str  # ok | no telemetry | failing
    traffic: Traffic
    rps_by_service: Mapping[ServiceName, float]
    cost_usd_per_h: Reading
    cpu_ratio: Reading = UNKNOWN
    memory_bytes: Reading = UNKNOWN
    sampled: SampledCalls | None = None
    sampled_by_service: Mapping[ServiceName, float] = field(default_factory=dict)  # calls
