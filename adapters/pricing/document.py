"""A price from a document: a file, or what an HTTP server says."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from adapters.documents import Feed, Reader, read_price
from xds_server.model.topology import Price


class DocumentPricing:
    """Yields the price at each look that finds or confirms one.

    Loss policy: a document with a fault is refused whole. Its fault is raised once; later
    watches say nothing until it has changed, so that the price before grows old.
    """

    def __init__(self, feed: Feed, declared: Price) -> None:
        self._feed = feed
        self._reader = Reader(partial(read_price, declared=declared))

    async def watch(self) -> AsyncIterator[Price]:
        """Yield the price now, and again at each look; see ``ports.Pricing``."""
        price: Price | None = None
        async with aclosing(self._feed.looks()) as looks:
            async for document in looks:
                if document is not None:
                    price = await self._reader.read(document)
                if price is not None:
                    yield price
