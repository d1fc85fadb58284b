"""A price that the configuration names."""

import asyncio
from collections.abc import AsyncIterator

from xds_server.model.topology import Price


class StaticPricing:
    """Yields what it was given, once; it has no news after that."""

    def __init__(self, price: Price) -> None:
        self._price = price

    async def watch(self) -> AsyncIterator[Price]:
        """Yield the price, then wait until cancelled."""
        yield self._price
        await asyncio.get_running_loop().create_future()
