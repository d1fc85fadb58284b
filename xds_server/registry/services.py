"""Services, providers, endpoints and instances with their runtime metadata, for people."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from xds_server.model.ids import Locality, NodeId, PhaseName, ProviderName, ServiceName
from xds_server.model.services import (
    UNKNOWN,
    EndpointStatus,
    InstanceView,
    ProviderView,
    Reading,
    ServiceView,
    Traffic,
)
from xds_server.model.snapshot import Node
from xds_server.model.status import ProviderStatus
from xds_server.model.telemetry import InstanceSignals, PairWindow, ProviderLoad
from xds_server.model.topology import Address, Mesh, Provider
from xds_server.registry.leases import ADAPTER, Lease, Leases, Said
from xds_server.registry.registry import SIGNAL_SLOTS, SLOTS, Registry
from xds_server.registry.tariffs import Tariffs
from xds_server.registry.traffic import by_node, by_provider, no_traffic, traffic

DECLARED: Final = "declared"
FAILING_RATIO: Final = 0.5
"""Errors by attempts from which an instance is shown as failing."""
STALE_S: Final = 10.0
"""Telemetry older than this is shown as none."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """What the engine's last turn says of providers, and how long ago that was."""

    of: Mapping[ProviderName, ProviderStatus]
    age_s: float | None


@dataclass(frozen=True, slots=True)
class Directory:
    """Endpoints as Envoys are given them, with what they announced."""

    mesh: Mesh
    found: Mapping[ProviderName, tuple[Address, ...]]
    leases: Leases
    now_s: float
    tariffs: Tariffs = field(default_factory=Tariffs)

    def endpoints(self, provider: Provider) -> tuple[EndpointStatus, ...]:
        """Return a provider's endpoints; none before its source has spoken."""
        held = self.leases.of(provider.name)
        return tuple(
            self._endpoint(provider, address, held.get(address))
            for address in self.found.get(provider.name, ())
        )

    def _endpoint(
        self, provider: Provider, address: Address, lease: Lease | None
    ) -> EndpointStatus:
        source = provider.discovery.adapter if provider.discovery else DECLARED
        declared_rps = _declared(provider.capacity.rps_per_endpoint)
        locality, capabilities = provider.locality, tuple(sorted(provider.capabilities))
        if source != ADAPTER or lease is None:
            return EndpointStatus(
                address, source, locality, capabilities, declared_rps, UNKNOWN, UNKNOWN
            )
        told, now_s = lease.announcement, self.now_s
        registered_s, heard_s = now_s - lease.registered_at_s, now_s - lease.heard_at_s
        capacity = told.capacity_rps
        return EndpointStatus(
            address,
            source,
            _or_declared(told.locality, locality),
            tuple(sorted(told.capabilities)) or capabilities,
            declared_rps if capacity is None else Reading(capacity, registered_s, "lease"),
            _said(lease.utilisation_ratio, now_s),
            _said(lease.price_per_million_usd, now_s),
            registered_s,
            heard_s,
            max(lease.ttl_s - heard_s, 0.0),
        )


def service_views(
    directory: Directory, registry: Registry, estimates: Estimates
) -> tuple[ServiceView, ...]:
    """Return every service, in the order of mesh.yaml."""
    windows = _windows(registry, directory.now_s)
    measured = traffic(*windows, by_provider)
    orca = registry.orca_load(directory.now_s)
    hosts = _healthy_hosts(registry, directory.now_s)
    views = []
    for service in directory.mesh.services.values():
        providers = tuple(
            _provider(
                directory,
                provider,
                measured.get(provider.name) or no_traffic(*windows),
                _Words(orca, directory, estimates, provider),
                hosts.get(provider.name, UNKNOWN),
            )
            for provider in service.providers
        )
        costs = [p.cost_usd_per_h.value for p in providers]
        known = [cost for cost in costs if cost is not None]
        total = sum(known) if len(known) == len(costs) else None
        rps = sum(p.traffic.rps.value or 0.0 for p in providers)
        views.append(ServiceView(service.name, rps, total, providers))
    return tuple(views)


def instance_views(
    registry: Registry,
    signals: Mapping[NodeId, InstanceSignals],
    phases: Mapping[NodeId, tuple[PhaseName, float]],
    prices: Mapping[ProviderName, Reading],
    now_s: float,
) -> tuple[InstanceView, ...]:
    """Return every connected instance, by node id.

    ``phases`` has names and since when; ``prices`` are of a million requests, by provider.
    """
    windows = _windows(registry, now_s)
    measured = traffic(*windows, by_node)
    costs = _costs(windows[0], prices)
    views = []
    for node_id, connected in sorted(registry.nodes.items()):
        seen = measured.get(node_id) or no_traffic(*windows)
        age_s = registry.telemetry_age_s(node_id, now_s)
        phase = phases.get(node_id)
        own = signals.get(node_id)
        views.append(
            InstanceView(
                node_id=node_id,
                application=connected.node.application,
                locality=_locality(connected.node),
                phase=phase[0] if phase else "",
                phase_s=now_s - phase[1] if phase else None,
                age_s=now_s - connected.since_s,
                health=_instance_health(seen, age_s),
                traffic=seen,
                rps_by_service=own.rps_by_service if own else {},
                cost_usd_per_h=costs.get(node_id, UNKNOWN),
            )
        )
    return tuple(views)


def prices_of(views: tuple[ServiceView, ...]) -> dict[ProviderName, Reading]:
    """Return what a million requests cost now, by provider."""
    return {p.provider: p.price_per_million_usd for s in views for p in s.providers}


@dataclass(frozen=True, slots=True)
class _Words:
    """Who says what of one provider; the first who says anything counts, as in the engine."""

    orca: ProviderLoad
    directory: Directory
    estimates: Estimates
    provider: Provider

    def utilisation_ratio(self) -> Reading:
        name, now_s = self.provider.name, self.directory.now_s
        said = _said(self.directory.leases.utilisation_ratio(name), now_s)
        first = self._orca(self.orca.utilisation_ratio[self._row])
        return _first(first, said, self._estimate("utilisation_ratio"))

    def capacity_rps(self) -> Reading:
        each = self.provider.capacity.rps_per_endpoint
        count = len(self.directory.found.get(self.provider.name, ()))
        declared = _declared(None if each is None else each * count)
        return _first(self._estimate("capacity_rps"), declared)

    def price(self) -> Reading:
        name, now_s = self.provider.name, self.directory.now_s
        said = _said(self.directory.leases.price_per_million_usd(name), now_s)
        first = self._orca(self.orca.price_per_million_usd[self._row])
        declared = _declared(self.provider.price.per_million_requests_usd)
        estimate = self._estimate("price_per_million_usd")
        if estimate.value is not None and declared.value is not None:
            same = abs(estimate.value - declared.value) <= 1e-9 * max(declared.value, 1.0)
            estimate = UNKNOWN if same else estimate
        return _first(first, said, self._tariff(), estimate, declared)

    def endpoint_hour_usd(self) -> float:
        tariff = self.directory.tariffs.of(self.provider.name)
        return (tariff or self.provider).price.per_endpoint_hour_usd

    def _tariff(self) -> Reading:
        tariff = self.directory.tariffs.of(self.provider.name)
        if tariff is None:
            return UNKNOWN
        age_s = self.directory.now_s - tariff.at_s
        return Reading(tariff.price.per_million_requests_usd, age_s, tariff.source)

    @property
    def _row(self) -> int:
        return self.orca.providers.index(self.provider.name)

    def _orca(self, value: float) -> Reading:
        if value != value:  # NaN
            return UNKNOWN
        return Reading(float(value), float(self.orca.age_s[self._row]), "provider")

    def _estimate(self, name: str) -> Reading:
        status = self.estimates.of.get(self.provider.name)
        return (
            UNKNOWN
            if status is None
            else Reading(getattr(status, name), self.estimates.age_s, "engine")
        )


def _provider(
    directory: Directory, provider: Provider, seen: Traffic, words: _Words, hosts: Reading
) -> ProviderView:
    endpoints = directory.endpoints(provider)
    price = words.price()
    hourly_usd = words.endpoint_hour_usd() * len(endpoints)
    return ProviderView(
        provider=provider.name,
        locality=provider.locality,
        capabilities=tuple(sorted(provider.capabilities)),
        standby=provider.standby,
        health=_provider_health(endpoints, hosts),
        endpoints=endpoints,
        healthy_hosts=hosts,
        traffic=seen,
        utilisation_ratio=words.utilisation_ratio(),
        capacity_rps=words.capacity_rps(),
        price_per_million_usd=price,
        cost_usd_per_h=_cost(seen.rps, price, hourly_usd),
    )


def _cost(rps: Reading, price: Reading, hourly_usd: float) -> Reading:
    """Return dollars per hour at this rate and price, as old as the older of the two."""
    if rps.value is None or price.value is None:
        return UNKNOWN
    ages = [r.age_s for r in (rps, price) if r.age_s is not None]
    usd = rps.value * 3600.0 * price.value / 1e6 + hourly_usd
    return Reading(usd, max(ages, default=None), "derived")


def _costs(window: PairWindow, prices: Mapping[ProviderName, Reading]) -> dict[NodeId, Reading]:
    """Return what each node's requests cost per hour; of priced providers only."""
    usd: dict[NodeId, float] = {}
    age_s: dict[NodeId, float] = {}
    rates = window.requests / window.covered_s.clip(min=1e-9)
    for p in range(len(rates)):
        node = window.nodes[window.node_row[p]]
        price = prices.get(window.providers[window.provider_row[p]], UNKNOWN).value
        if price is not None:
            usd[node] = usd.get(node, 0.0) + float(rates[p]) * 3600.0 * price / 1e6
            age_s[node] = max(age_s.get(node, 0.0), float(window.age_s[p]))
    return {node: Reading(value, age_s[node], "derived") for node, value in usd.items()}


def _healthy_hosts(registry: Registry, now_s: float) -> dict[ProviderName, Reading]:
    """Return the fewest healthy hosts that any sidecar counts, by provider."""
    fewest: dict[ProviderName, Reading] = {}
    for node_id in registry.nodes:
        for name, seen in registry.hosts(node_id).items():
            before = fewest.get(name)
            if before is None or before.value is None or seen.healthy < before.value:
                fewest[name] = Reading(seen.healthy, now_s - seen.at_s, "sidecars")
    return fewest


def _provider_health(endpoints: tuple[EndpointStatus, ...], hosts: Reading) -> str:
    if not endpoints:
        return "no endpoints"
    if hosts.value is None:
        return "unknown"
    return "ok" if hosts.value > 0.0 else "unhealthy"


def _instance_health(seen: Traffic, telemetry_age_s: float) -> str:
    if telemetry_age_s > STALE_S:
        return "no telemetry"
    failing = (seen.error_ratio.value or 0.0) >= FAILING_RATIO
    return "failing" if failing else "ok"


def _windows(registry: Registry, now_s: float) -> tuple[PairWindow, PairWindow]:
    return registry.window(now_s, SIGNAL_SLOTS), registry.window(now_s, SLOTS - 1)


def _first(*readings: Reading) -> Reading:
    return next((r for r in readings if r.value is not None), UNKNOWN)


def _declared(value: float | None) -> Reading:
    return UNKNOWN if value is None else Reading(value, None, DECLARED)


def _said(said: Said | None, now_s: float) -> Reading:
    return UNKNOWN if said is None else Reading(said.value, now_s - said.at_s, "lease")


def _or_declared(said: Locality, declared: Locality) -> Locality:
    return Locality(
        said.region or declared.region,
        said.zone or declared.zone,
        said.sub_zone or declared.sub_zone,
    )


def _locality(node: Node) -> Locality:
    return Locality(node.locality_region, node.locality_zone, node.locality_sub_zone)


def services_of(views: tuple[ServiceView, ...], name: ServiceName) -> tuple[ServiceView, ...]:
    """Return the one of that name. Raises KeyError."""
    found = tuple(view for view in views if view.service == name)
    if not found:
        raise KeyError(name)
    return found
