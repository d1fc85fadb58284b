"""mesh.yaml as pydantic models: every key, its type, its bounds, its default.

What a value means is its ``description``; docs/configuration.md has every key in prose.
Rules that need more than one key are in ``checks``.
"""

import types
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo

from xds_server.config.fields import (
    Band,
    Duration,
    EndpointHost,
    IpAddress,
    NotNegative,
    Port,
    Positive,
    Ratio,
    RatioBand,
    SocketAddress,
    Word,
    check_metadata,
)
from xds_server.config.schema_sources import (
    DiscoverySection,
    EgressSection,
    PriceSection,
    UsageSection,
)
from xds_server.config.section import Section, keys_of
from xds_server.config.source import KeyPath
from xds_server.model.topology import Address


class EngineSection(Section):
    """How the engine paces and bounds itself."""

    tick_s: Annotated[float, Field(ge=0.05, le=3600.0)] = 1.0
    slow_tick_s: Annotated[float, Field(ge=0.05, le=86400.0)] = 15.0
    max_shift_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    min_share_ratio: Annotated[float, Field(ge=0.0, le=0.1)] = 0.002
    weights_ttl_s: Annotated[float, Field(gt=0.0, le=86400.0)] = 10.0
    weights_via: Literal["rtds", "rds", "auto"] = "auto"
    cluster_drain_s: Annotated[float, Field(ge=0.0, le=3600.0)] = 5.0


class TelemetrySection(Section):
    """What sidecars report, and how often."""

    stats_flush_interval_s: Annotated[float, Field(ge=0.1, le=300.0)] = 1.0
    load_report_interval_s: Annotated[float, Field(ge=0.1, le=300.0)] = 10.0
    sink: Literal["metrics_service", "open_telemetry"] = "metrics_service"
    access_log_sample_ratio: Ratio = 0.0


class LocalitySection(Section):
    """Where a provider runs."""

    region: Word = Field(default="", examples=["us-east-1"])
    zone: Word = Field(default="", examples=["a"])
    sub_zone: Word = Field(default="", examples=["a1"])


class EndpointSection(Section):
    """One address of a provider."""

    address: EndpointHost = Field(examples=["127.0.0.1"])
    port: Port | None = Field(default=None, examples=[9101])


class CapacitySection(Section):
    """What one endpoint is believed to carry until it has been observed."""

    rps_per_endpoint: Positive | None = Field(default=None, examples=[120])
    concurrency: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, examples=[8]
    )


class ScaleSection(Section):
    """The bounds within which a provider may be scaled."""

    adapter: Word = Field(examples=["process"])
    min: Annotated[int, Field(ge=0, le=100_000)] = 1
    max: Annotated[int, Field(ge=1, le=100_000)] = Field(examples=[6])
    ready_s: NotNegative = 0.0


class ProviderSection(Section):
    """One way to get a service."""

    locality: LocalitySection = LocalitySection()
    endpoints: tuple[EndpointSection, ...] | None = Field(
        default=None, examples=["[{address: 127.0.0.1, port: 9101}]"]
    )
    discovery: DiscoverySection | None = None
    capabilities: tuple[Word, ...] = Field(default=(), examples=["[fulltext]"])
    capacity: CapacitySection = CapacitySection()
    price: PriceSection = PriceSection()
    scale: ScaleSection | None = None
    standby: bool = False
    baseline_weight: Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        default=None, examples=[60]
    )


class ServiceSection(Section):
    """What applications call, by function; and who provides it."""

    providers: dict[str, ProviderSection] = Field(
        examples=["{search-east: {endpoints: [{address: 127.0.0.1, port: 9101}]}}"]
    )


class CallSection(Section):
    """One service that the application calls."""

    requires: tuple[Word, ...] = Field(default=(), examples=["[fulltext]"])
    # Envoy counts whole milliseconds, and takes 0 for no timeout at all.
    timeout_s: Annotated[float, Field(ge=0.001, le=86400.0)] = 15.0
    retries: Annotated[int, Field(ge=0, le=100)] = 0
    idempotent: bool = True
    listener: IpAddress | None = Field(default=None, examples=["127.0.0.1:15001"])


class GeographySection(Section):
    """Regions that may serve, and regions that should."""

    require: tuple[Word, ...] = Field(default=(), examples=["[us-east-1]"])
    prefer: tuple[Word, ...] = Field(default=(), examples=["[us-east-1]"])


class WeightsSection(Section):
    """Performance against cost."""

    performance: Ratio | None = Field(default=None, examples=[0.7])
    cost: Ratio | None = Field(default=None, examples=[0.3])


class ProfileSection(Section):
    """The expectations for one phase of an application's life."""

    when: str | None = Field(default=None, examples=["instance.age_s < 30.0"])
    latency_p95_s: Positive | None = Field(default=None, examples=[0.3])
    throughput_rps: Positive | None = Field(default=None, examples=[50])
    cost_usd_per_h: NotNegative | None = Field(default=None, examples=[0.5])
    geography: GeographySection = GeographySection()
    weights: WeightsSection = WeightsSection()
    survive_loss: bool = False


class PhasesSection(Section):
    """What keeps phases from flapping and objectives from jumping."""

    min_dwell_s: NotNegative = 10.0
    blend_s: NotNegative = 6.0


class BehaviourSection(Section):
    """What is normal."""

    call_rate_rps: dict[str, Band] = Field(default={}, examples=["{search: [2, 120]}"])
    call_mix: dict[str, Ratio] = Field(default={}, examples=["{search: 0.8, payments: 0.2}"])
    response_bytes: dict[str, Band] = Field(default={}, examples=["{search: [500, 60000]}"])
    read_ratio: RatioBand | None = Field(default=None, examples=["[0.7, 1.0]"])
    error_ratio: RatioBand | None = Field(default=None, examples=["[0.0, 0.02]"])
    cpu_ratio: RatioBand | None = Field(default=None, examples=["[0.05, 0.8]"])
    memory_bytes: Band | None = Field(default=None, examples=["[20000000, 800000000]"])


class FlagSection(Section):
    """A feature of the application."""

    default: bool = Field(examples=["true"])
    owner: Literal["engine", "operator"] = "engine"
    saves: dict[str, Ratio] = Field(default={}, examples=["{search: 0.3}"])
    worth_usd_per_h: NotNegative = 0.0


class TemplateSection(Section):
    """Everything an application declares about itself."""

    calls: dict[str, CallSection] = Field(examples=["{search: {timeout_s: 1.0}}"])
    profiles: dict[str, ProfileSection] = Field(examples=["{steady: {latency_p95_s: 0.3}}"])
    phases: PhasesSection = PhasesSection()
    behaviour: BehaviourSection = BehaviourSection()
    flags: dict[str, FlagSection] = Field(default={})


class ApplicationSection(Section):
    """What Envoy announces as ``node.cluster``."""

    template: str = Field(examples=["storefront"])


class TlsSection(Section):
    """PEM files."""

    cert: Word = Field(examples=["./server.pem"])
    key: Word = Field(examples=["./server.key"])
    client_ca: Word | None = Field(default=None, examples=["./clients.pem"])
    bind_node_id: bool = False


class XdsSection(Section):
    """Where sidecars connect, and what they are held to."""

    address: SocketAddress = Field(
        default=Address("127.0.0.1", 18000), examples=["127.0.0.1:18000"]
    )
    tls: TlsSection | None = None
    streams_per_s: Annotated[float, Field(ge=0.1, le=100_000.0)] = 200.0
    streams_max: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    max_connection_age_s: Annotated[float, Field(ge=0.0, le=604_800.0)] = 1800.0
    keepalive_s: Annotated[float, Field(ge=0.1, le=3600.0)] = 30.0
    keepalive_timeout_s: Annotated[float, Field(ge=0.1, le=300.0)] = 10.0
    write_timeout_s: Annotated[float, Field(ge=0.1, le=3600.0)] = 20.0
    first_request_s: Annotated[float, Field(ge=0.1, le=300.0)] = 15.0
    auth_recheck_s: Annotated[float, Field(ge=0.1, le=86_400.0)] = 300.0
    drain_s: Annotated[float, Field(ge=0.0, le=300.0)] = 2.0


class AdminSection(Section):
    """Where operators look."""

    address: SocketAddress = Field(
        default=Address("127.0.0.1", 18001), examples=["127.0.0.1:18001"]
    )


class ServerSection(Section):
    """Where the control plane listens."""

    xds: XdsSection = XdsSection()
    admin: AdminSection = AdminSection()


class HistorySection(Section):
    """Where history is kept, and each resolution for how long."""

    path: Word = Field(examples=["./history.duckdb"])
    keep: dict[str, Duration] = Field(
        default={"1s": 3600.0, "1m": 604800.0, "1h": 34560000.0},
        examples=["{1s: 1h, 1m: 7d, 1h: 400d}"],
    )
    max_bytes: Annotated[int, Field(ge=16 * 2**20, le=2**50)] = 4_294_967_296


class NodesSection(Section):
    """Which nodes get the resources: those that match all that is given."""

    id: Word | None = Field(default=None, examples=["edge-*"])
    cluster: Word | None = Field(default=None, examples=["checkout"])
    locality: LocalitySection = LocalitySection()
    metadata: Annotated[dict[str, object], AfterValidator(check_metadata)] = Field(
        default={}, examples=["{tier: gold}"]
    )


class ResourcesSection(Section):
    """A file, or a folder of files, with Envoy resources of the operator's own."""

    path: Word = Field(examples=["./envoy/extra.yaml"])
    nodes: NodesSection = NodesSection()
    on_demand: bool = False
    known_clusters: tuple[Word, ...] = Field(default=(), examples=["[local_app]"])


class MeshFile(Section):
    """All of mesh.yaml."""

    mesh: str = Field(examples=["shop"])
    mode: Literal["observe", "recommend", "enforce"] = "observe"
    engine: EngineSection = EngineSection()
    telemetry: TelemetrySection = TelemetrySection()
    services: dict[str, ServiceSection] = Field(examples=["{search: {providers: {...}}}"])
    templates: dict[str, TemplateSection] = Field(
        examples=["{storefront: {calls: {...}, profiles: {...}}}"]
    )
    applications: dict[str, ApplicationSection] = Field(
        examples=["{checkout: {template: storefront}}"]
    )
    resources: tuple[ResourcesSection, ...] = Field(
        default=(), examples=["[{path: ./envoy/extra.yaml}]"]
    )
    egress: tuple[EgressSection, ...] = Field(
        default=(), examples=["[{from: us-east-1, to: us-west-2, per_gib_usd: 0.02}]"]
    )
    usage: tuple[UsageSection, ...] = Field(
        default=(), examples=["[{adapter: psutil, processes: {checkout-1: {port: 8080}}}]"]
    )
    server: ServerSection = ServerSection()
    history: HistorySection | None = None


WILDCARD: Final = "*"


def section_at(at: KeyPath) -> type[Section] | None:
    """Return the model whose keys are written at that path; None where there is none."""
    annotation: Any = MeshFile
    for key in at:
        annotation = _child(annotation, key)
    annotation = _bare(annotation)
    return annotation if _is_section(annotation) else None


def is_mapping(at: KeyPath) -> bool:
    """Whether keys are expected at that path, so that nothing means ``{}``."""
    annotation: Any = MeshFile
    for key in at:
        annotation = _child(annotation, key)
    annotation = _bare(annotation)
    return _is_section(annotation) or get_origin(annotation) is dict


def field_at(at: KeyPath) -> FieldInfo | None:
    """Return the field that the last key of a path names."""
    section = section_at(at[:-1]) if at else None
    return keys_of(section).get(str(at[-1])) if section is not None else None


def schema_keys() -> dict[str, FieldInfo]:
    """Return every key there is, dotted, with ``*`` for a name that operators choose."""
    return dict(_walk(MeshFile, ()))


def _walk(section: type[Section], at: tuple[str, ...]) -> list[tuple[str, FieldInfo]]:
    out: list[tuple[str, FieldInfo]] = []
    for name, field in keys_of(section).items():
        out.append((".".join((*at, name)), field))
        inner, path = _bare(field.annotation), (*at, name)
        while get_origin(inner) in (dict, tuple):
            if get_origin(inner) is dict:
                path = (*path, WILDCARD)
            inner = _bare(get_args(inner)[1 if get_origin(inner) is dict else 0])
        if _is_section(inner):
            out += _walk(inner, path)
    return out


def _child(annotation: Any, key: str | int) -> Any:
    annotation = _bare(annotation)
    if _is_section(annotation):
        field = keys_of(annotation).get(str(key))
        return field.annotation if field is not None else None
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    return get_args(annotation)[0] if get_origin(annotation) is tuple else None


def _bare(annotation: Any) -> Any:
    """Without ``Annotated`` and ``| None`` around it."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            annotation = next(a for a in get_args(annotation) if a is not type(None))
        else:
            return annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
