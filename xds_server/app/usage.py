"""Keeps what instances and providers use current, from whoever measures it."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from adapters.usage import open_metering
from xds_server.app.follow import follow
from xds_server.errors import AdapterError
from xds_server.model.ids import ProviderName
from xds_server.model.topology import Address, Mesh, UsageSource
from xds_server.ports import Clock, UsageUpdate
from xds_server.registry.services import VALID_LOOKS
from xds_server.registry.usage import Usages

log = structlog.get_logger()


class Meters:
    """One watch per entry of ``usage``; what they say goes to ``usages``."""

    def __init__(
        self,
        clock: Clock,
        folder: Path,
        endpoints: Callable[[], Mapping[ProviderName, tuple[Address, ...]]],
        usages: Usages,
    ) -> None:
        self._clock, self._folder, self._endpoints = clock, folder, endpoints
        self._usages = usages
        self._watches: dict[int, tuple[UsageSource, asyncio.Task[None]]] = {}

    def set_mesh(self, mesh: Mesh) -> None:
        """Start and stop watches; must be called inside the event loop."""
        wanted = dict(enumerate(mesh.usage))
        for place in [p for p, (source, _) in self._watches.items() if wanted.get(p) != source]:
            self._watches.pop(place)[1].cancel()
            self._usages.forget(place)
        for place, source in wanted.items():
            if place not in self._watches:
                watch = self._watch(place, source)
                task = asyncio.create_task(watch, name=f"usage {place} {source.adapter}")
                self._watches[place] = (source, task)

    def stop(self) -> None:
        """End every watch."""
        for _, task in self._watches.values():
            task.cancel()
        self._watches.clear()

    async def _watch(self, place: int, source: UsageSource) -> None:
        valid_s = VALID_LOOKS * source.every_s

        def take(update: UsageUpdate) -> None:
            self._usages.take(
                place, source.adapter, update.usages, valid_s=valid_s, now_s=self._clock.now_s()
            )

        def lost(error: AdapterError) -> None:
            log.warning("usage.lost", adapter=source.adapter, place=place, reason=str(error))

        await follow(
            self._clock,
            lambda: open_metering(source, self._endpoints, self._folder, self._clock),
            take,
            lost,
        )
