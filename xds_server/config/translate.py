"""The checked file as records of ``model``; nothing can fail here."""

from dataclasses import asdict, fields, replace

from xds_server.config.schema import (
    BehaviourSection,
    CallSection,
    EndpointSection,
    MeshFile,
    ProfileSection,
    ProviderSection,
    ServerSection,
    TemplateSection,
)
from xds_server.config.schema_sources import (
    DISCOVERY_KEYS,
    PRICE_KEYS,
    USAGE_KEYS,
    DiscoverySection,
    PriceSection,
    UsageSection,
)
from xds_server.model.ids import Locality
from xds_server.model.template import (
    Behaviour,
    Call,
    Flag,
    Geography,
    Phases,
    Profile,
    Template,
)
from xds_server.model.topology import (
    Address,
    Application,
    Capacity,
    DiscoverySource,
    Egress,
    EngineSettings,
    HistorySettings,
    Mesh,
    Mode,
    Price,
    PriceSource,
    PriceWindow,
    Provider,
    Scale,
    ServerSettings,
    Service,
    StatsSink,
    TelemetrySettings,
    TlsSettings,
    UsageSource,
    UsedProcess,
    WeightsVia,
    XdsLimits,
)

FIRST_LISTENER_PORT = 15001


def translate(file: MeshFile) -> Mesh:
    """Return the mesh that a file without problems declares."""
    engine = file.engine.model_dump() | {"weights_via": WeightsVia(file.engine.weights_via)}
    templates = {name: _template(name, t) for name, t in file.templates.items()}
    history = file.history
    return Mesh(
        name=file.mesh,
        mode=Mode(file.mode),
        engine=EngineSettings(**engine),
        telemetry=TelemetrySettings(
            **file.telemetry.model_dump() | {"sink": StatsSink(file.telemetry.sink)}
        ),
        services={
            name: Service(name, tuple(_provider(n, name, p) for n, p in s.providers.items()))
            for name, s in file.services.items()
        },
        templates=templates,
        applications={
            name: Application(name, templates[a.template]) for name, a in file.applications.items()
        },
        server=_server(file.server),
        history=HistorySettings(history.path, dict(history.keep), history.max_bytes)
        if history
        else None,
        egress=tuple(Egress(**cell.model_dump()) for cell in file.egress),
        usage=tuple(_usage(section) for section in file.usage),
    )


def _provider(name: str, service: str, section: ProviderSection) -> Provider:
    default_weight = 0 if section.standby else 1
    weight = section.baseline_weight
    return Provider(
        name=name,
        service=service,
        locality=Locality(**section.locality.model_dump()),
        endpoints=tuple(_endpoint(e) for e in section.endpoints or ()),
        discovery=_discovery(section.discovery) if section.discovery is not None else None,
        capabilities=frozenset(section.capabilities),
        capacity=Capacity(**section.capacity.model_dump()),
        price=_price(section.price),
        price_source=_price_source(section.price),
        scale=Scale(**section.scale.model_dump()) if section.scale is not None else None,
        standby=section.standby,
        baseline_weight=default_weight if weight is None else weight,
    )


def _endpoint(section: EndpointSection) -> Address:
    return Address(section.address, section.port or 0)


def _discovery(section: DiscoverySection) -> DiscoverySource:
    said = {key: getattr(section, key) for key in DISCOVERY_KEYS[section.adapter]}
    return DiscoverySource(section.adapter, {k: v for k, v in said.items() if v is not None})


def _price(section: PriceSection) -> Price:
    return Price(**section.model_dump(include={f.name for f in fields(Price)}))


def _price_source(section: PriceSection) -> PriceSource | None:
    source, declared = section.source, _price(section)
    if source is not None:
        keys = set(PRICE_KEYS[source.adapter])
        return PriceSource(source.adapter, source.model_dump(include=keys, exclude_none=True))
    windows = tuple(
        PriceWindow(
            w.when,
            w.lasts_s,
            replace(declared, **w.model_dump(include=set(asdict(declared)), exclude_none=True)),
        )
        for w in section.schedule
    )
    return PriceSource("schedule", {"windows": windows}) if windows else None


def _usage(section: UsageSection) -> UsageSource:
    keys = set(USAGE_KEYS[section.adapter]) - {"every_s", "processes"}
    options = section.model_dump(include=keys, exclude_none=True)
    if section.processes:
        options["processes"] = {
            node_id: UsedProcess(**process.model_dump())
            for node_id, process in section.processes.items()
        }
    return UsageSource(section.adapter, section.every_s, options)


def _template(name: str, section: TemplateSection) -> Template:
    return Template(
        name=name,
        calls=_calls(section.calls),
        profiles=tuple(_profile(n, p) for n, p in section.profiles.items()),
        phases=Phases(**section.phases.model_dump()),
        behaviour=_behaviour(section.behaviour),
        flags=tuple(Flag(name=n, **f.model_dump()) for n, f in section.flags.items()),
    )


def _calls(sections: dict[str, CallSection]) -> tuple[Call, ...]:
    """Give every call a listener: its own, or the first free port from its place on."""
    taken = {s.listener.port for s in sections.values() if s.listener is not None}
    calls: list[Call] = []
    for index, (service, section) in enumerate(sections.items()):
        listener = section.listener
        if listener is None:
            port = FIRST_LISTENER_PORT + index
            while port in taken:
                port += 1
            taken.add(port)
            listener = Address("127.0.0.1", port)
        calls.append(
            Call(
                service=service,
                listener=str(listener),
                requires=frozenset(section.requires),
                timeout_s=section.timeout_s,
                retries=section.retries,
                idempotent=section.idempotent,
            )
        )
    return tuple(calls)


def _profile(name: str, section: ProfileSection) -> Profile:
    performance, cost = section.weights.performance, section.weights.cost
    if performance is None and cost is None:
        performance = cost = 0.5
    elif performance is None:
        performance = 1.0 - (cost or 0.0)
    elif cost is None:
        cost = 1.0 - performance
    total = performance + (cost or 0.0)
    return Profile(
        name=name,
        when=section.when,
        latency_p95_s=section.latency_p95_s,
        throughput_rps=section.throughput_rps,
        cost_usd_per_h=section.cost_usd_per_h,
        geography=Geography(section.geography.require, section.geography.prefer),
        performance_weight=performance / total,
        cost_weight=(cost or 0.0) / total,
        survive_loss=section.survive_loss,
    )


def _behaviour(section: BehaviourSection) -> Behaviour:
    return Behaviour(**section.model_dump())


def _server(section: ServerSection) -> ServerSettings:
    tls = section.xds.tls
    limits = {field.name: getattr(section.xds, field.name) for field in fields(XdsLimits)}
    return ServerSettings(
        xds=section.xds.address,
        xds_tls=TlsSettings(**tls.model_dump()) if tls is not None else None,
        admin=section.admin.address,
        limits=XdsLimits(**limits),
    )
