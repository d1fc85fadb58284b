"""Endpoints from a document: a file, or what an HTTP server says."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from adapters.documents import Feed, Reader, read_endpoints
from xds_server.model.topology import Address
from xds_server.ports import EndpointUpdate


class DocumentDiscovery:
    """Yields what the document says whenever that changes.

    Loss policy: a document with a fault is refused whole, and what it said before stays in
    force. Its fault is raised once; later watches wait until it has changed.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed, self._reader = feed, Reader(read_endpoints)

    async def watch(self) -> AsyncIterator[EndpointUpdate]:
        """Yield the set at first and whenever it changes; see ``ports.Discovery``."""
        last: tuple[Address, ...] | None = None
        async with aclosing(self._feed.looks()) as looks:
            async for document in looks:
                found = await self._reader.read(document) if document is not None else None
                if found is not None and found != last:
                    last = found
                    yield EndpointUpdate(found)
