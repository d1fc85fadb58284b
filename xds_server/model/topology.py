"""The mesh as its operator declared it: services, providers, and how to serve them.

``config`` translates mesh.yaml into these records; nothing else makes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from xds_server.model.extra import ResourceSet
from xds_server.model.ids import ApplicationName, Locality, ProviderName, ServiceName
from xds_server.model.template import Call, Template


class Mode(StrEnum):
    """How far the engine may go."""

    OBSERVE = "observe"  # measure only
    RECOMMEND = "recommend"  # decide and explain, push nothing
    ENFORCE = "enforce"


class WeightsVia(StrEnum):
    """Which xDS API carries the engine's weights to a node."""

    RTDS = "rtds"
    RDS = "rds"
    AUTO = "auto"  # RTDS where the node subscribes to it, RDS elsewhere


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A TCP address, or a unix socket when ``host`` starts with ``unix:``."""

    host: str
    port: int = 0

    @property
    def is_pipe(self) -> bool:
        """Whether this is a unix domain socket."""
        return self.host.startswith("unix:")

    def __str__(self) -> str:
        if self.is_pipe:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Price:
    """What a provider charges."""

    per_million_requests_usd: float = 0.0
    per_endpoint_hour_usd: float = 0.0
    egress_per_gib_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class PriceWindow:
    """A time of day with a price of its own."""

    when: str  # cron, UTC: when it begins
    lasts_s: float
    price: Price


@dataclass(frozen=True, slots=True)
class PriceSource:
    """Which adapter knows a provider's price, with that adapter's own options."""

    adapter: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UsageSource:
    """Which adapter measures what instances or providers use, with that adapter's own options."""

    adapter: str
    every_s: float
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UsedProcess:
    """How the processes of one instance are found on this host; exactly one is given."""

    pid_file: str | None = None  # relative to mesh.yaml
    port: int | None = None  # TCP, that one of them listens on
    command: str | None = None  # a regular expression, searched in the command line


@dataclass(frozen=True, slots=True)
class Egress:
    """What responses cost from one region to another."""

    origin: str  # the provider's region; ``*``: any other than the caller's
    to: str  # the caller's region; ``*``: any other than the provider's
    per_gib_usd: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one endpoint is believed to carry until it has been observed."""

    rps_per_endpoint: float | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """The bounds within which a provider may be scaled, and by which adapter."""

    adapter: str
    min: int
    max: int
    ready_s: float


@dataclass(frozen=True, slots=True)
class DiscoverySource:
    """Which adapter finds a provider's endpoints, with that adapter's own options."""

    adapter: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Provider:
    """One way to get a service: an Envoy cluster with its endpoints and its price."""

    name: ProviderName
    service: ServiceName
    locality: Locality = Locality()
    endpoints: tuple[Address, ...] = ()
    discovery: DiscoverySource | None = None
    capabilities: frozenset[str] = frozenset()
    capacity: Capacity = Capacity()
    price: Price = Price()
    price_source: PriceSource | None = None  # what it says counts before ``price``
    scale: Scale | None = None
    standby: bool = False
    baseline_weight: int = 1


@dataclass(frozen=True, slots=True)
class Service:
    """What applications call, by function; and who provides it."""

    name: ServiceName
    providers: tuple[Provider, ...]


@dataclass(frozen=True, slots=True)
class Application:
    """What Envoy announces as ``node.cluster``."""

    name: ApplicationName
    template: Template


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine paces and bounds itself."""

    tick_s: float = 1.0
    slow_tick_s: float = 15.0
    max_shift_ratio: float = 0.25
    min_share_ratio: float = 0.002
    weights_ttl_s: float = 10.0
    weights_via: WeightsVia = WeightsVia.AUTO
    cluster_drain_s: float = 5.0


class StatsSink(StrEnum):
    """By which of Envoy's sinks sidecars report their statistics."""

    METRICS_SERVICE = "metrics_service"
    OPEN_TELEMETRY = "open_telemetry"


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """What sidecars report, and how often."""

    stats_flush_interval_s: float = 1.0
    load_report_interval_s: float = 10.0
    sink: StatsSink = StatsSink.METRICS_SERVICE
    access_log_sample_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """PEM files with which the ADS endpoint authenticates itself and its clients."""

    cert: str
    key: str
    client_ca: str | None = None
    bind_node_id: bool = False


@dataclass(frozen=True, slots=True)
class XdsLimits:
    """What connections and streams of clients are held to."""

    streams_per_s: float = 200.0
    streams_max: int = 10_000
    max_connection_age_s: float = 1800.0  # 0: any age
    keepalive_s: float = 30.0
    keepalive_timeout_s: float = 10.0
    write_timeout_s: float = 20.0
    first_request_s: float = 15.0
    auth_recheck_s: float = 300.0
    drain_s: float = 2.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the control plane listens."""

    xds: Address = Address("127.0.0.1", 18000)
    xds_tls: TlsSettings | None = None
    admin: Address = Address("127.0.0.1", 18001)
    limits: XdsLimits = XdsLimits()


@dataclass(frozen=True, slots=True)
class HistorySettings:
    """Where history is kept, and each resolution for how long."""

    path: str  # relative to mesh.yaml
    keep_s: Mapping[str, float]  # by resolution: 1s, 1m, 1h
    max_bytes: int = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Mesh:
    """All of mesh.yaml."""

    name: str
    mode: Mode
    engine: EngineSettings
    telemetry: TelemetrySettings
    services: Mapping[ServiceName, Service]
    templates: Mapping[str, Template]
    applications: Mapping[ApplicationName, Application]
    server: ServerSettings
    history: HistorySettings | None = None
    resources: tuple[ResourceSet, ...] = ()
    egress: tuple[Egress, ...] = ()
    usage: tuple[UsageSource, ...] = ()

    @property
    def providers(self) -> Mapping[ProviderName, Provider]:
        """Every provider by name; names are unique over the mesh."""
        return {p.name: p for s in self.services.values() for p in s.providers}

    def candidates(self, call: Call) -> tuple[Provider, ...]:
        """Providers of the called service that have what the call requires, in order.

        Standby providers are among them: a route names them at weight 0.
        """
        providers = self.services[call.service].providers
        return tuple(p for p in providers if call.requires <= p.capabilities)
