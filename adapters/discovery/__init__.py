"""Where endpoints come from: one module per source, and the choice between them."""

from adapters.discovery.dns import DnsDiscovery
from adapters.discovery.static import StaticDiscovery
from xds_server.errors import AdapterError
from xds_server.model.topology import Provider
from xds_server.ports import Discovery

__all__ = ["DnsDiscovery", "StaticDiscovery", "open_discovery"]


def open_discovery(provider: Provider) -> Discovery:
    """Return what finds a provider's endpoints; AdapterError when nothing can."""
    source = provider.discovery
    if source is None:
        return StaticDiscovery(provider.endpoints)
    if source.adapter == "dns":
        return DnsDiscovery(**source.options)
    raise AdapterError(f"no discovery adapter is named {source.adapter!r}", retryable=False)
