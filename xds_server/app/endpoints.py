"""Keeps every provider's endpoints current, from wherever they are found."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from adapters.discovery import open_discovery
from xds_server.app.follow import follow
from xds_server.errors import AdapterError
from xds_server.model.ids import ProviderName
from xds_server.model.topology import Address, DiscoverySource, Mesh, Provider
from xds_server.ports import Clock, Discovery, EndpointUpdate

log = structlog.get_logger()


class Endpoints:
    """One watch per provider that is discovered; declared endpoints need none.

    What a source said last stays in force while it is lost. ``own`` are sources inside of
    this process, by the adapter's name; files are relative to ``folder``.
    """

    def __init__(
        self,
        clock: Clock,
        changed: Callable[[], None],
        own: Mapping[str, Callable[[Provider], Discovery]] | None = None,
        folder: Path = Path(),
    ) -> None:
        self._clock, self._changed, self._own = clock, changed, own or {}
        self._folder = folder
        self._found: dict[ProviderName, tuple[Address, ...]] = {}
        self._watches: dict[ProviderName, tuple[DiscoverySource, asyncio.Task[None]]] = {}
        self._heard = asyncio.Event()

    @property
    def current(self) -> Mapping[ProviderName, tuple[Address, ...]]:
        """Endpoints by provider; a provider not heard of yet is absent."""
        return dict(self._found)

    def set_mesh(self, mesh: Mesh) -> None:
        """Start and stop watches; must be called inside the event loop."""
        for name in self._watches.keys() - mesh.providers.keys():
            self._watches.pop(name)[1].cancel()
        self._found = {n: e for n, e in self._found.items() if n in mesh.providers}
        for name, provider in mesh.providers.items():
            self._set_provider(name, provider)

    async def first(self, mesh: Mesh, within_s: float, *, own: bool = False) -> None:
        """Wait until every source has spoken once, or the time is over.

        ``own``: wait for sources of our own instead of the others.
        """
        wanted = {n for n, p in mesh.providers.items() if self._is_own(p) == own}
        try:
            async with asyncio.timeout(within_s):
                while wanted - self._found.keys():
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            missing = sorted(wanted - self._found.keys())
            log.warning("discovery.slow", providers=missing, waited_s=within_s)

    def stop(self) -> None:
        """End every watch."""
        for _, task in self._watches.values():
            task.cancel()
        self._watches.clear()

    def _set_provider(self, name: ProviderName, provider: Provider) -> None:
        source = provider.discovery
        running = self._watches.get(name)
        if running is not None and running[0] == source:
            return
        if running is not None:
            self._watches.pop(name)[1].cancel()
        if source is None:
            self._found[name] = provider.endpoints
        else:
            task = asyncio.create_task(self._watch(provider), name=f"discovery {name}")
            self._watches[name] = (source, task)

    def _is_own(self, provider: Provider) -> bool:
        return provider.discovery is not None and provider.discovery.adapter in self._own

    def _open(self, provider: Provider) -> Discovery:
        if provider.discovery is not None and provider.discovery.adapter in self._own:
            return self._own[provider.discovery.adapter](provider)
        return open_discovery(provider, self._folder)

    async def _watch(self, provider: Provider) -> None:
        def take(update: EndpointUpdate) -> None:
            self._take(provider.name, update.endpoints)

        def lost(error: AdapterError) -> None:
            log.warning("discovery.lost", provider=provider.name, reason=str(error))

        await follow(self._clock, lambda: self._open(provider), take, lost)

    def _take(self, name: ProviderName, endpoints: tuple[Address, ...]) -> None:
        before = self._found.get(name)
        self._found[name] = endpoints
        self._heard.set()
        if endpoints != before:
            log.info("discovery.changed", provider=name, endpoints=[str(e) for e in endpoints[:64]])
            self._changed()
