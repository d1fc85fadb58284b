"""Discovery of endpoints that announce themselves keeps the contract of all discovery."""

import asyncio

import pytest

from adapters.testing.discovery import DiscoveryContract
from xds_server.model.topology import Address, DiscoverySource, Provider
from xds_server.registry.announcements import GATHER_S, Announcements
from xds_server.registry.leases import Announcement, Leases

PROVIDER = Provider("a", "search", discovery=DiscoverySource("registry"))
ADDRESSES = (Address("10.0.0.2", 80), Address("10.0.0.1", 80))


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.slept_s: list[float] = []
        self.slept = asyncio.Event()

    def now_s(self) -> float:
        return self.time_s

    def wall_s(self) -> float:
        return self.time_s

    async def sleep_s(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)
        self.time_s += duration_s
        self.slept.set()
        await asyncio.sleep(0)


class LeaseWorld:
    def __init__(self, come_back_s: float = 0.0) -> None:
        self.endpoints = ADDRESSES
        self.clock = Clock()
        leases = Leases()
        leases.set_providers({"a": PROVIDER, "b": Provider("b", "s", discovery=PROVIDER.discovery)})
        self.all = Announcements(self.clock, leases, come_back_s=come_back_s)
        self.discovery = self.all.discover(PROVIDER)
        for address in ADDRESSES:
            self.register(address)

    def register(self, address: Address, provider: str = "a") -> None:
        self.all.register(f"{provider}{address}", Announcement(provider, address), 300.0)

    async def settle(self) -> None:
        """Let it look, and see that nothing is new for it."""
        self.clock.slept.clear()
        self.register(ADDRESSES[0], "b")
        await self.clock.slept.wait()
        for _ in range(5):
            await asyncio.sleep(0)


class TestLeaseDiscovery(DiscoveryContract):
    @pytest.fixture
    def world(self) -> LeaseWorld:
        return LeaseWorld()


async def test_who_comes_and_who_goes_is_news_and_an_empty_set_too() -> None:
    world = LeaseWorld()
    updates = world.discovery.watch()
    assert (await anext(updates)).endpoints == tuple(sorted(ADDRESSES))
    world.all.deregister(f"a{ADDRESSES[0]}")
    assert (await anext(updates)).endpoints == (ADDRESSES[1],)
    world.all.deregister(f"a{ADDRESSES[1]}")
    assert (await anext(updates)).endpoints == ()
    world.register(ADDRESSES[0])
    assert (await anext(updates)).endpoints == (ADDRESSES[0],)
    await updates.aclose()


async def test_after_a_start_nothing_is_said_until_holders_of_leases_had_time_to_return() -> None:
    world = LeaseWorld(come_back_s=6.0)
    assert (await anext(world.discovery.watch())).endpoints
    assert world.clock.time_s == 6.0


async def test_a_burst_is_one_update() -> None:
    world = LeaseWorld()
    updates = world.discovery.watch()
    await anext(updates)
    for last in range(3, 100):
        world.register(Address(f"10.0.0.{last}", 80))
    assert len((await anext(updates)).endpoints) == 99
    assert world.clock.slept_s == [0.0, GATHER_S]
    await updates.aclose()


async def test_watches_that_ended_are_forgotten() -> None:
    world = LeaseWorld()
    updates = world.discovery.watch()
    await anext(updates)
    assert len(world.all._followers) == 1
    await updates.aclose()
    assert len(world.all._followers) == 0
