"""Keeps every provider's price current, from wherever it is said."""

import asyncio
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import structlog

from adapters.pricing import open_pricing
from xds_server.app.follow import follow
from xds_server.errors import AdapterError
from xds_server.model.ids import ProviderName
from xds_server.model.topology import Mesh, Price, PriceSource, Provider
from xds_server.ports import Clock
from xds_server.registry.tariffs import Tariff, Tariffs

log = structlog.get_logger()


class Prices:
    """One watch per provider whose price has a source; until it speaks, the declared one holds.

    ``changed`` is called when more than the price of requests has changed: that one the engine
    reads from ``tariffs`` at each tick.
    """

    def __init__(
        self, clock: Clock, folder: Path, tariffs: Tariffs, changed: Callable[[], None]
    ) -> None:
        self._clock, self._folder, self._tariffs = clock, folder, tariffs
        self._changed = changed
        self._watches: dict[ProviderName, tuple[_Priced, asyncio.Task[None]]] = {}

    def set_mesh(self, mesh: Mesh) -> None:
        """Start and stop watches; must be called inside the event loop."""
        wanted = {n: p for n, p in mesh.providers.items() if p.price_source is not None}
        for name in self._watches.keys() - wanted.keys():
            self._watches.pop(name)[1].cancel()
        self._tariffs.keep(wanted)
        for name, provider in wanted.items():
            assert provider.price_source is not None
            priced = provider.price_source, provider.price
            running = self._watches.get(name)
            if running is not None and running[0] == priced:
                continue
            if running is not None:
                running[1].cancel()
                self._tariffs.forget(name)
            task = asyncio.create_task(self._watch(provider), name=f"price {name}")
            self._watches[name] = (priced, task)

    def stop(self) -> None:
        """End every watch."""
        for _, task in self._watches.values():
            task.cancel()
        self._watches.clear()

    async def _watch(self, provider: Provider) -> None:
        source = provider.price_source
        assert source is not None

        def lost(error: AdapterError) -> None:
            log.warning("price.lost", provider=provider.name, reason=str(error))

        await follow(
            self._clock,
            lambda: open_pricing(provider, self._folder, self._clock),
            lambda price: self._take(provider, Tariff(price, source.adapter, self._clock.now_s())),
            lost,
        )

    def _take(self, provider: Provider, tariff: Tariff) -> None:
        before = self._tariffs.take(provider.name, tariff)
        old, new = provider.price if before is None else before.price, tariff.price
        if old != new:
            log.info(
                "price.changed", provider=provider.name, usd=astuple(new), source=tariff.source
            )
        if _beside_requests(old) != _beside_requests(new):
            self._changed()


_Priced = tuple[PriceSource, Price]


def _beside_requests(price: Price) -> Price:
    return replace(price, per_million_requests_usd=0.0)


def with_prices(mesh: Mesh, tariffs: Tariffs) -> Mesh:
    """Return the mesh with the prices of endpoints and of egress as they are now.

    The price of requests stays as declared: it is what money is measured by in the engine's
    objective, and what it is now comes with what providers say.
    """
    if not any(tariffs.of(name) for name in mesh.providers):
        return mesh
    services = {
        name: replace(service, providers=tuple(_with(p, tariffs) for p in service.providers))
        for name, service in mesh.services.items()
    }
    return replace(mesh, services=services)


def _with(provider: Provider, tariffs: Tariffs) -> Provider:
    tariff = tariffs.of(provider.name)
    if tariff is None:
        return provider
    declared_usd = provider.price.per_million_requests_usd
    return replace(provider, price=replace(tariff.price, per_million_requests_usd=declared_usd))
