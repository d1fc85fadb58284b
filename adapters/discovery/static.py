"""Endpoints that the configuration names."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from xds_server.model.topology import Address
from xds_server.ports import EndpointUpdate


class StaticDiscovery:
    """Yields what it was given, once; it has no news after that."""

    def __init__(self, endpoints: Iterable[Address]) -> None:
        self._update = EndpointUpdate(tuple(sorted(set(endpoints))))

    async def watch(self) -> AsyncIterator[EndpointUpdate]:
        """Yield the set, then wait until cancelled."""
        yield self._update
        await asyncio.get_running_loop().create_future()
