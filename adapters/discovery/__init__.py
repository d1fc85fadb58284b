"""Where endpoints come from: one module per source, and the choice between them."""

from pathlib import Path

from adapters.discovery.dns import DnsDiscovery
from adapters.discovery.docker import DockerDiscovery
from adapters.discovery.document import DocumentDiscovery
from adapters.discovery.static import StaticDiscovery
from adapters.documents import FileFeed, HttpFeed
from xds_server.errors import AdapterError
from xds_server.model.topology import Provider
from xds_server.ports import Discovery

__all__ = [
    "DnsDiscovery",
    "DockerDiscovery",
    "DocumentDiscovery",
    "StaticDiscovery",
    "open_discovery",
]


def open_discovery(provider: Provider, folder: Path) -> Discovery:
    """Return what finds a provider's endpoints; AdapterError when nothing can.

    Files are relative to ``folder``.
    """
    source = provider.discovery
    if source is None:
        return StaticDiscovery(provider.endpoints)
    options = dict(source.options)
    match source.adapter:
        case "dns":
            return DnsDiscovery(**options)
        case "file":
            return DocumentDiscovery(FileFeed(folder / options.pop("path"), **options))
        case "http":
            return DocumentDiscovery(HttpFeed(**options))
        case "docker":
            return DockerDiscovery(provider.name, **options)
    raise AdapterError(f"no discovery adapter is named {source.adapter!r}", retryable=False)
