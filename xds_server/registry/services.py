"""Services, providers, endpoints and instances with their runtime metadata, for people."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from xds_server.model.ids import Locality, ProviderName, ServiceName
from xds_server.model.services import (
    UNKNOWN,
    EndpointStatus,
    ProviderView,
    Reading,
    SampledCalls,
    ServiceView,
    Traffic,
)
from xds_server.model.status import ProviderStatus
from xds_server.model.telemetry import PairWindow, ProviderLoad
from xds_server.model.topology import Address, Mesh, Provider
from xds_server.registry.leases import ADAPTER, Lease, Leases, Said
from xds_server.registry.registry import SIGNAL_SLOTS, SLOTS, Registry
from xds_server.registry.sampled import calls_by_provider, sampled_calls
from xds_server.registry.tariffs import Tariffs
from xds_server.registry.traffic import by_provider, no_traffic, traffic

DECLARED: Final = "declared"
STALE_S: Final = 10.0
"""Telemetry older than this, and than three flushes of a sidecar, is shown as none."""
VALID_LOOKS: Final = 3
"""Flushes, load reports and looks at a price or at usage for which what was said is not stale:
two of them may fail."""
VALID_TICKS: Final = 5
"""Ticks for which the engine's estimates are not stale."""
PRICE_LOOK_S: Final = 60.0
"""How often a price is taken to be confirmed that has no ``refresh_s``."""


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

    @property
    def telemetry_valid_s(self) -> float:
        """How long what sidecars report is not stale."""
        return max(STALE_S, VALID_LOOKS * self.mesh.telemetry.stats_flush_interval_s)

    @property
    def load_valid_s(self) -> float:
        """How long what providers say of their load is not stale."""
        return load_valid_s(self.mesh)

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
            _said(lease.utilisation_ratio, now_s, self.load_valid_s),
            _word(_said(lease.price_per_million_usd, now_s)),
            registered_s,
            heard_s,
            max(lease.ttl_s - heard_s, 0.0),
        )


def service_views(
    directory: Directory, registry: Registry, estimates: Estimates
) -> tuple[ServiceView, ...]:
    """Return every service, in the order of mesh.yaml."""
    windows = both_windows(registry, directory.now_s)
    measured = traffic(*windows, by_provider, directory.telemetry_valid_s)
    orca = registry.orca_load(directory.now_s)
    hosts = _healthy_hosts(registry, directory.now_s, directory.telemetry_valid_s)
    calls = registry.calls.window(directory.now_s)
    sampled = sampled_calls(calls, calls_by_provider, directory.telemetry_valid_s)
    views = []
    for service in directory.mesh.services.values():
        providers = tuple(
            _provider(
                measured.get(provider.name) or no_traffic(*windows),
                _Words(registry, orca, directory, estimates, provider),
                hosts.get(provider.name, UNKNOWN),
                sampled.get(provider.name),
            )
            for provider in service.providers
        )
        costs = [p.cost_usd_per_h.value for p in providers]
        known = [cost for cost in costs if cost is not None]
        total = sum(known) if len(known) == len(costs) else None
        rps = sum(p.traffic.rps.value or 0.0 for p in providers)
        views.append(ServiceView(service.name, rps, total, providers))
    return tuple(views)


def load_valid_s(mesh: Mesh) -> float:
    """Return how long what providers say of their load is not stale."""
    return VALID_LOOKS * mesh.telemetry.load_report_interval_s


def prices_of(views: tuple[ServiceView, ...]) -> dict[ProviderName, Reading]:
    """Return what a million requests cost now, by provider."""
    return {p.provider: p.price_per_million_usd for s in views for p in s.providers}


@dataclass(frozen=True, slots=True)
class _Words:
    """Who says what of one provider; the first whose word is valid counts, as in the engine."""

    registry: Registry
    orca: ProviderLoad
    directory: Directory
    estimates: Estimates
    provider: Provider

    def utilisation_ratio(self) -> Reading:
        name, now_s = self.provider.name, self.directory.now_s
        leased = self.directory.leases.utilisation_ratio(name)
        said = _said(leased, now_s, self.directory.load_valid_s)
        orca = self._orca(self.orca.utilisation_ratio[self._row])
        if orca.value is not None:
            ratios = self.registry.utilisations(name, now_s)
            spread = float(np.std(ratios, ddof=1)) if len(ratios) > 1 else None
            error = None if spread is None else spread / math.sqrt(len(ratios))
            orca = replace(orca, samples=float(len(ratios)), standard_error=error)
        return _first(orca, said, self.usage("utilisation_ratio"),
                      self._estimate("utilisation_ratio"))  # fmt: skip

    def capacity_rps(self) -> Reading:
        each = self.provider.capacity.rps_per_endpoint
        count = len(self.directory.found.get(self.provider.name, ()))
        declared = _declared(None if each is None else each * count)
        return _first(_unless_same(self._estimate("capacity_rps"), declared), declared)

    def price(self) -> Reading:
        name, now_s = self.provider.name, self.directory.now_s
        said = _said(self.directory.leases.price_per_million_usd(name), now_s)
        first = self._orca(self.orca.price_per_million_usd[self._row])
        declared = _declared(self.provider.price.per_million_requests_usd)
        estimate = _unless_same(self._estimate("price_per_million_usd"), declared)
        # A price holds until another one is said, however old it is.
        known = (r for r in (first, said, self._tariff(), estimate, declared))
        return _word(next((r for r in known if r.value is not None), UNKNOWN))

    def usage(self, field: str) -> Reading:
        name, now_s = self.provider.name, self.directory.now_s
        return self.registry.usages.reading(name, field, now_s, is_provider=True)

    def endpoint_hour_usd(self) -> float:
        tariff = self.directory.tariffs.of(self.provider.name)
        return (tariff or self.provider).price.per_endpoint_hour_usd

    def _tariff(self) -> Reading:
        tariff = self.directory.tariffs.of(self.provider.name)
        if tariff is None:
            return UNKNOWN
        age_s = self.directory.now_s - tariff.at_s
        source = self.provider.price_source
        look_s = source.options.get("refresh_s") if source is not None else None
        stale = age_s > VALID_LOOKS * (look_s or PRICE_LOOK_S)
        usd = tariff.price.per_million_requests_usd
        return Reading(usd, age_s, tariff.source, stale=stale)

    @property
    def _row(self) -> int:
        return self.orca.providers.index(self.provider.name)

    def _orca(self, value: float) -> Reading:
        if value != value:  # NaN
            return UNKNOWN
        return Reading(float(value), float(self.orca.age_s[self._row]), "provider")

    def _estimate(self, name: str) -> Reading:
        status, age_s = self.estimates.of.get(self.provider.name), self.estimates.age_s
        if status is None:
            return UNKNOWN
        value, sigma_ratio = getattr(status, name), status.capacity_sigma_ratio
        error = value * sigma_ratio if math.isfinite(sigma_ratio) else None
        old = age_s is not None and age_s > VALID_TICKS * self.directory.mesh.engine.tick_s
        return Reading(value, age_s, "engine", standard_error=error, stale=old)


def _provider(
    seen: Traffic, words: _Words, hosts: Reading, sampled: SampledCalls | None
) -> ProviderView:
    provider = words.provider
    endpoints = words.directory.endpoints(provider)
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
        cpu_ratio=words.usage("cpu_ratio"),
        memory_bytes=words.usage("memory_bytes"),
        sampled=sampled,
    )


def _cost(rps: Reading, price: Reading, hourly_usd: float) -> Reading:
    """Return dollars per hour at this rate and price, as old as the older of the two."""
    if rps.value is None or price.value is None:
        return UNKNOWN
    ages = [r.age_s for r in (rps, price) if r.age_s is not None]
    usd_per_rps = 3600.0 * price.value / 1e6
    error = rps.standard_error
    return Reading(
        rps.value * usd_per_rps + hourly_usd,
        max(ages, default=None),
        "derived",
        rps.samples,
        None if error is None else error * usd_per_rps,
        stale=rps.stale or price.stale,
    )


def _healthy_hosts(registry: Registry, now_s: float, valid_s: float) -> dict[ProviderName, Reading]:
    """Return the fewest healthy hosts that any sidecar counts, by provider."""
    fewest: dict[ProviderName, Reading] = {}
    for node_id in registry.nodes:
        for name, seen in registry.hosts(node_id).items():
            before = fewest.get(name)
            if before is None or before.value is None or seen.healthy < before.value:
                age_s = now_s - seen.at_s
                fewest[name] = Reading(seen.healthy, age_s, "sidecars", stale=age_s > valid_s)
    return fewest


def _provider_health(endpoints: tuple[EndpointStatus, ...], hosts: Reading) -> str:
    if not endpoints:
        return "no endpoints"
    if hosts.value is None:
        return "unknown"
    return "ok" if hosts.value > 0.0 else "unhealthy"


def both_windows(registry: Registry, now_s: float) -> tuple[PairWindow, PairWindow]:
    """Return the window of rates, latency and errors, and the longer one of availability."""
    return registry.window(now_s, SIGNAL_SLOTS), registry.window(now_s, SLOTS - 1)


def _first(*readings: Reading) -> Reading:
    """Return the first that is valid, else the first that there is."""
    known = [r for r in readings if r.value is not None]
    return next((r for r in known if not r.stale), known[0] if known else UNKNOWN)


def _unless_same(estimate: Reading, declared: Reading) -> Reading:
    """Return what the engine says, unless it only repeats what mesh.yaml has."""
    if estimate.value is None or declared.value is None:
        return estimate
    same = abs(estimate.value - declared.value) <= 1e-9 * max(declared.value, 1.0)
    return UNKNOWN if same else estimate


def _declared(value: float | None) -> Reading:
    return UNKNOWN if value is None else Reading(value, None, DECLARED)


def _said(said: Said | None, now_s: float, valid_s: float = math.inf) -> Reading:
    if said is None:
        return UNKNOWN
    age_s = now_s - said.at_s
    return Reading(said.value, age_s, "lease", stale=age_s > valid_s)


def _word(reading: Reading) -> Reading:
    """Return what is said and not measured: chance has no part in it."""
    return replace(reading, standard_error=0.0) if reading.value is not None else reading


def _or_declared(said: Locality, declared: Locality) -> Locality:
    return Locality(
        said.region or declared.region,
        said.zone or declared.zone,
        said.sub_zone or declared.sub_zone,
    )


def services_of(views: tuple[ServiceView, ...], name: ServiceName) -> tuple[ServiceView, ...]:
    """Return the one of that name. Raises KeyError."""
    found = tuple(view for view in views if view.service == name)
    if not found:
        raise KeyError(name)
    return found
