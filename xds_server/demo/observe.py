"""What Envoy says of itself: requests per provider each second, and the weights it uses."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import aiohttp

from xds_server.demo.world import Instance
from xds_server.model.ids import ApplicationName, ProviderName

ATTEMPTS: Final = (
    "upstream_rq_total",
    "upstream_rq_pending_failure_eject",
    "upstream_cx_none_healthy",
)
"""Requests that Envoy meant for a provider: sent, or lost because it had no connection or no
healthy endpoint. ``upstream_rq_total`` alone would show a dead provider as one not asked."""
SENT: Final = "upstream_rq_total"
HEALTHY: Final = "membership_healthy"
_FILTER: Final = rf"^cluster\.[^.]+\.({'|'.join((*ATTEMPTS, HEALTHY))})$"
_WEIGHTS_LAYER: Final = "weights"
_PREFIX: Final = "routing."

Cell: TypeAlias = tuple[int, ApplicationName, ProviderName]
"""(second of the story, application, provider)."""


@dataclass(slots=True)
class Counts:
    """Requests per cell, from counters of all sidecars; bounded by the story's length."""

    attempts: dict[Cell, float] = field(default_factory=lambda: defaultdict(float))
    sent: dict[Cell, float] = field(default_factory=lambda: defaultdict(float))
    ejected: dict[int, set[ProviderName]] = field(default_factory=lambda: defaultdict(set))
    """Providers of which some sidecar had endpoints ejected, per second."""

    def shares(
        self, second: int, application: ApplicationName, providers: Iterable[ProviderName]
    ) -> dict[ProviderName, float]:
        """Return the split of one second; empty when there was no request."""
        counts = {p: self.attempts.get((second, application, p), 0.0) for p in providers}
        total = sum(counts.values())
        return {p: n / total for p, n in counts.items()} if total else {}


def parse_stats(body: Mapping[str, Any]) -> dict[ProviderName, dict[str, float]]:
    """Return statistic by provider from ``/stats?format=json``."""
    out: dict[ProviderName, dict[str, float]] = {}
    for stat in body["stats"]:
        parts = str(stat.get("name", "")).split(".")
        if len(parts) == 3 and "value" in stat:
            out.setdefault(parts[1], {})[parts[2]] = float(stat["value"])
    return out


def parse_runtime(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the routing keys that the ``weights`` layer sets, from ``/runtime``."""
    layers = list(body.get("layers", ()))
    if _WEIGHTS_LAYER not in layers:
        return {}
    row = layers.index(_WEIGHTS_LAYER)
    return {
        key: entry["layer_values"][row]
        for key, entry in body.get("entries", {}).items()
        if key.startswith(_PREFIX) and entry["layer_values"][row]
    }


class Sidecars:
    """Polls the admin interface of every sidecar."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        instances: tuple[Instance, ...],
        endpoints: Mapping[ProviderName, int],
    ) -> None:
        self._session, self._instances, self._endpoints = session, instances, endpoints
        self._last: dict[tuple[str, ProviderName], dict[str, float]] = {}
        self.counts = Counts()
        self.runtime: dict[str, dict[str, str]] = {}
        """Routing keys by instance, as last read."""
        self.pushes: dict[int, int] = defaultdict(int)
        """Changes of weights that the poll of each second saw, over all sidecars."""

    async def poll(self, second: int) -> None:
        """Read counters of all; what they grew by belongs to ``second``."""
        await asyncio.gather(*(self._poll_stats(i, second) for i in self._instances))

    async def read_runtime(self) -> Mapping[str, Mapping[str, str]]:
        """Read the weights that each sidecar uses now."""
        bodies = await asyncio.gather(
            *(self._get(f"{i.admin_url}/runtime") for i in self._instances)
        )
        self.runtime = {
            i.name: parse_runtime(body) for i, body in zip(self._instances, bodies, strict=True)
        }
        return self.runtime

    async def follow(self, started_s: float, until_s: float) -> None:
        """Poll once a second, on the second of the story, until it ends."""
        await self.poll(0)
        self.counts = Counts()  # what came before the story is not part of it
        before: Mapping[str, Mapping[str, str]] = await self.read_runtime()
        second = 0
        while second < until_s:
            await asyncio.sleep(max(0.0, started_s + second + 1 - time.monotonic()))
            # A poll that fails is made up for by the next: counters are cumulative. A sidecar
            # that is gone for good is found by whoever watches the processes.
            with contextlib.suppress(aiohttp.ClientError):
                await self.poll(second)
                now = await self.read_runtime()
                self.pushes[second] = sum(now[name] != before.get(name) for name in now)
                before = now
            second = max(second + 1, int(time.monotonic() - started_s))

    async def _poll_stats(self, instance: Instance, second: int) -> None:
        url = f"{instance.admin_url}/stats"
        stats = parse_stats(await self._get(url, {"filter": _FILTER, "format": "json"}))
        for provider, values in stats.items():
            if provider not in self._endpoints:
                continue
            cell = (second, instance.application, provider)
            last = self._last.get((instance.name, provider), {})
            grown = {s: values.get(s, 0.0) - last.get(s, 0.0) for s in ATTEMPTS}
            self.counts.attempts[cell] += sum(grown.values())
            self.counts.sent[cell] += grown[SENT]
            self._last[instance.name, provider] = values
            if values.get(HEALTHY, 0.0) < self._endpoints[provider]:
                self.counts.ejected[second].add(provider)

    async def _get(self, url: str, params: Mapping[str, str] | None = None) -> Any:
        async with self._session.get(url, params=params) as response:
            return await response.json(content_type=None)
