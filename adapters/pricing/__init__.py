"""Where prices come from: one module per source, and the choice between them."""

from pathlib import Path

from adapters.documents import FileFeed, HttpFeed
from adapters.pricing.document import DocumentPricing
from adapters.pricing.schedule import SchedulePricing
from adapters.pricing.static import StaticPricing
from xds_server.errors import AdapterError
from xds_server.model.topology import Provider
from xds_server.ports import Clock, Pricing

__all__ = ["DocumentPricing", "SchedulePricing", "StaticPricing", "open_pricing"]


def open_pricing(provider: Provider, folder: Path, clock: Clock) -> Pricing:
    """Return what knows a provider's price; AdapterError when nothing can.

    Files are relative to ``folder``.
    """
    source = provider.price_source
    if source is None:
        return StaticPricing(provider.price)
    options = dict(source.options)
    match source.adapter:
        case "schedule":
            return SchedulePricing(provider.price, options["windows"], clock)
        case "file":
            feed = FileFeed(folder / options.pop("path"), **options)
            return DocumentPricing(feed, provider.price)
        case "http":
            return DocumentPricing(HttpFeed(**options), provider.price)
    raise AdapterError(f"no pricing adapter is named {source.adapter!r}", retryable=False)
