"""Faults of meaning in where endpoints and prices come from, and in what egress costs.

What all sources have in common is checked here for ``checks_usage`` too.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from cronsim import CronSim, CronSimError

from xds_server.config.checks import Findings
from xds_server.config.schema import MeshFile, ProviderSection
from xds_server.config.schema_sources import (
    DISCOVERY_KEYS,
    PRICE_KEYS,
    DiscoverySection,
    EgressSection,
    PriceSection,
    PriceSourceSection,
    PriceWindowSection,
    UsageSection,
)
from xds_server.config.source import KeyPath
from xds_server.config.units import nearest

ANY: Final = "*"
WINDOW_MAX_S: Final = 31 * 86_400.0
_CRON_FIELDS: Final = 5
_SAMPLE_DATE: Final = datetime(2026, 1, 1, tzinfo=UTC)
_SCHEMES: Final = {
    "http": ("http", "https"),
    "docker": ("unix", "tcp", "http", "https"),
    "prometheus": ("http", "https"),
}
_NEEDED: Final = {"file": "path", "http": "url", "prometheus": "url"}
_EXAMPLES: Final = {
    "file": "path: ./search.json",
    "http": "url: http://127.0.0.1:8500/search",
    "prometheus": "url: http://127.0.0.1:9090",
}

_Keys = Mapping[str, tuple[str, ...]]
_Source = DiscoverySection | PriceSourceSection | UsageSection


def check_sources(mesh: MeshFile, findings: Findings) -> None:
    """Check discovery and prices of all providers, and the egress matrix."""
    for service_name, service in mesh.services.items():
        for name, provider in service.providers.items():
            at: KeyPath = ("services", service_name, "providers", name)
            _check_discovery((*at, "discovery"), provider, findings)
            _check_price((*at, "price"), provider.price, findings)
    regions = {p.locality.region for s in mesh.services.values() for p in s.providers.values()}
    _check_egress(mesh.egress, regions - {""}, findings)


def _check_discovery(at: KeyPath, provider: ProviderSection, findings: Findings) -> None:
    discovery = provider.discovery
    if discovery is None:
        return
    if discovery.adapter == "static":
        remedy = "write `endpoints: [...]` in place of `discovery`"
        findings.add((*at, "adapter"), "static is what `endpoints` does", remedy)
    elif check_adapter(at, "discovery", discovery, DISCOVERY_KEYS, findings):
        if discovery.adapter == "dns":
            _check_dns(at, discovery, findings)
        check_url(at, discovery, findings)


def check_adapter(at: KeyPath, what: str, source: _Source, keys: _Keys, findings: Findings) -> bool:
    """Check that there is such an adapter, and that it has what it needs and no more."""
    adapter = source.adapter
    if adapter not in keys:
        near = nearest(adapter, keys)
        options = near or list(keys)
        remedy = f"write {' or '.join(f'`{o}`' for o in options)}"
        if what == "discovery":
            remedy += ", or use `endpoints`"
        findings.add((*at, "adapter"), f"no {what} adapter is named {adapter!r}", remedy)
        return False
    for key in findings.document.names(*at):
        if key != "adapter" and key in type(source).model_fields and key not in keys[adapter]:
            mine = ", ".join(f"`{k}`" for k in keys[adapter]) or "none"
            remedy = f"remove it; the keys of {adapter}: {mine}"
            why = "endpoints of the registry announce themselves: this means nothing"
            message = why if adapter == "registry" else f"means nothing to the adapter {adapter}"
            findings.add((*at, key), message, remedy)
    needed = _NEEDED.get(adapter)
    if needed is not None and getattr(source, needed) is None:
        findings.add(at, f"has no {needed}", f"write `{_EXAMPLES[adapter]}`", [(*at, needed)])
    return True


def _check_dns(at: KeyPath, discovery: DiscoverySection, findings: Findings) -> None:
    if discovery.name is None:
        remedy = "write `name: search.example.com`"
        findings.add(at, "has no name to look up", remedy, [(*at, "name")])
        return
    srv = discovery.name.startswith("_")
    if srv and discovery.port is not None:
        findings.add((*at, "port"), "SRV records carry the ports", "remove it")
    if not srv and discovery.port is None:
        remedy = "write `port: <port>`, or a name of SRV records, like `_http._tcp.example.com`"
        findings.add(at, "has no port", remedy, [(*at, "port"), (*at, "name")])


def check_url(at: KeyPath, source: _Source, findings: Findings) -> None:
    """Check that the adapter speaks what the URL begins with."""
    schemes = _SCHEMES.get(source.adapter)
    if source.url is None or schemes is None:
        return
    scheme = source.url.partition(":")[0].lower()
    if scheme not in schemes:
        remedy = f"write one that begins with {' or '.join(f'`{s}://`' for s in schemes)}"
        findings.add((*at, "url"), f"the adapter {source.adapter} has no {scheme}://", remedy)


def _check_price(at: KeyPath, price: PriceSection, findings: Findings) -> None:
    if price.source is not None:
        if price.schedule:
            both = ((*at, "schedule"), (*at, "source"))
            findings.add(at, "has both a schedule and a source", "remove one of the two", both)
        here = (*at, "source")
        if check_adapter(here, "pricing", price.source, PRICE_KEYS, findings):
            check_url(here, price.source, findings)
    elif "schedule" in findings.document.names(*map(str, at)) and not price.schedule:
        findings.add((*at, "schedule"), "has no entry", "write one, or remove `schedule`")
    for i, window in enumerate(price.schedule):
        _check_window((*at, "schedule", i), window, findings)


def _check_window(at: KeyPath, window: PriceWindowSection, findings: Findings) -> None:
    fields = len(window.when.split())
    try:
        sometime = next(CronSim(window.when, _SAMPLE_DATE), None) is not None
    except CronSimError:
        sometime = False
    if not sometime or fields != _CRON_FIELDS:
        remedy = 'write minute, hour, day, month, weekday, like "0 22 * * *"'
        findings.add((*at, "when"), f"{window.when[:60]!r} is not a cron expression", remedy)
    if window.lasts_s % 60.0 or window.lasts_s > WINDOW_MAX_S:
        remedy = "write whole minutes up to `31d`, like `8h`"
        findings.add((*at, "for"), f"a price cannot hold for {window.lasts_s:g} s", remedy)
    prices = window.model_dump(exclude={"when", "lasts_s"}).values()
    if all(usd is None for usd in prices):
        keys = [(*at, key) for key in type(window).model_fields]
        findings.add(at, "changes no price", "write `per_million_requests_usd: 0.1`", keys)


def _check_egress(cells: tuple[EgressSection, ...], regions: set[str], findings: Findings) -> None:
    seen: dict[tuple[str, str], int] = {}
    for i, cell in enumerate(cells):
        at: KeyPath = ("egress", i)
        other = seen.setdefault((cell.origin, cell.to), i)
        if other != i:
            message = f"is from and to the same as entry {other}"
            findings.add(at, message, "write one price for each pair of regions")
        if cell.origin != ANY and cell.origin not in regions:
            near = nearest(cell.origin, regions) or sorted(regions)[:8]
            options = ", ".join(f"`{r}`" for r in near)
            remedy = f"write {options} or `*`" if near else "give providers a `locality`"
            message = f"no provider is in region {cell.origin!r}"
            findings.add((*at, "from"), message, remedy, [(*at, "from"), ("services",)])
