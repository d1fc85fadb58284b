"""Leases, and those who follow them: discovery of a provider's endpoints, and watchers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import structlog

from xds_server.model.ids import ProviderName
from xds_server.model.topology import Mesh, Provider
from xds_server.ports import Clock, EndpointUpdate, Wakeup
from xds_server.registry.leases import Announcement, Lease, Leases

log = structlog.get_logger()

COME_BACK_S: Final = 6.0
"""How long after a start nothing is said of who is there. Leases did not outlive the process
before; their holders notice within ``HEARTBEAT_MAX_S`` and register again. Until then an empty
or a partial set would take traffic from endpoints that are well."""
GATHER_S: Final = 0.25
"""Changes within this time are one update: each costs a rebuild of resources."""


class Announcements:
    """The one place where leases change; wakes whoever looks on."""

    def __init__(self, clock: Clock, leases: Leases, *, come_back_s: float = COME_BACK_S) -> None:
        self.leases = leases
        self._clock, self._come_back_s = clock, come_back_s
        self._followers: set[Wakeup] = set()

    def follow(self, wakeup: Wakeup) -> None:
        """Wake it whenever something may have changed; a wakeup holds no queue."""
        self._followers.add(wakeup)

    def unfollow(self, wakeup: Wakeup) -> None:
        """Undo ``follow``."""
        self._followers.discard(wakeup)

    def wake(self) -> None:
        """Let everybody look again."""
        for follower in self._followers:
            follower.set()

    def register(self, lease_id: str, announcement: Announcement, ttl_s: float) -> Lease:
        """See ``Leases.register``."""
        lease = self.leases.register(lease_id, announcement, ttl_s, self._clock.now_s())
        log.info(
            "registry.registered",
            provider=announcement.provider,
            address=str(announcement.address),
            ttl_s=ttl_s,
        )
        self.wake()
        return lease

    def heartbeat(
        self, lease_id: str, utilisation_ratio: float | None, price_per_million_usd: float | None
    ) -> Lease:
        """See ``Leases.heartbeat``; nobody is woken for a load."""
        return self.leases.heartbeat(
            lease_id,
            self._clock.now_s(),
            utilisation_ratio=utilisation_ratio,
            price_per_million_usd=price_per_million_usd,
        )

    def deregister(self, lease_id: str) -> Lease:
        """See ``Leases.deregister``."""
        lease = self.leases.deregister(lease_id, self._clock.now_s())
        told = lease.announcement
        log.info("registry.deregistered", provider=told.provider, address=str(told.address))
        self.wake()
        return lease

    def expire(self) -> None:
        """End what nobody renewed; to be called twice a second."""
        before = len(self.leases)
        providers = self.leases.expire(self._clock.now_s())
        if providers:
            ended = before - len(self.leases)
            log.warning("registry.expired", providers=sorted(providers)[:16], leases=ended)
            self.wake()

    def set_mesh(self, mesh: Mesh) -> None:
        """Take over another configuration."""
        if self.leases.set_providers(mesh.providers):
            self.wake()

    def discover(self, provider: Provider) -> "LeaseDiscovery":
        """Return what finds a provider's endpoints here."""
        return LeaseDiscovery(self, provider.name, self._clock, self._come_back_s)


class LeaseDiscovery:
    """A ``ports.Discovery``; it is never lost, and silent at first (``COME_BACK_S``)."""

    def __init__(
        self, announcements: Announcements, name: ProviderName, clock: Clock, come_back_s: float
    ) -> None:
        self._announcements, self._name, self._clock = announcements, name, clock
        self._come_back_s = come_back_s

    async def watch(self) -> AsyncIterator[EndpointUpdate]:
        """Yield the set, then each change; states in between are skipped."""
        news = asyncio.Event()
        self._announcements.follow(news)
        try:
            await self._clock.sleep_s(self._come_back_s)
            last = None
            while True:
                news.clear()
                found = self._announcements.leases.endpoints(self._name)
                if found != last:
                    yield EndpointUpdate(found)
                    last = found
                await news.wait()
                await self._clock.sleep_s(GATHER_S)
        finally:
            self._announcements.unfollow(news)
