"""What every Discovery does: subclass a contract, give it a ``world`` fixture, collect it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from xds_server.errors import AdapterError
from xds_server.model.topology import Address
from xds_server.ports import Discovery, EndpointUpdate

DEADLINE_S = 20.0
"""Longest wait for something that must happen; tests never sleep."""


class World(Protocol):
    """A Discovery, and the truth that it is to find."""

    discovery: Discovery
    endpoints: tuple[Address, ...]

    async def settle(self) -> None:
        """Return when a watch has had the chance to notice that nothing changed."""
        ...


class ChangingWorld(World, Protocol):
    """A world whose truth the test can change, and whose source it can silence."""

    def set_endpoints(self, *endpoints: Address) -> None:
        """Make these the truth from now on."""
        ...

    def set_answering(self, answering: bool) -> None:
        """Let the source answer, or not."""
        ...


class DiscoveryContract:
    """For every implementation, also of what never changes."""

    @pytest.fixture
    def world(self) -> World:
        """Give the implementation, and what it should find; subclasses replace this."""
        raise NotImplementedError("a subclass of DiscoveryContract gives a `world`")

    async def test_the_first_update_is_the_whole_set_sorted_and_without_duplicates(
        self, world: World
    ) -> None:
        """Callers compare updates as they are."""
        update = await _next(world.discovery.watch())
        assert update.endpoints == tuple(sorted(set(world.endpoints)))
        assert update.endpoints

    async def test_each_watch_starts_with_the_whole_set(self, world: World) -> None:
        """A caller that lost a source watches again and misses nothing."""
        first = await _next(world.discovery.watch())
        assert await _next(world.discovery.watch()) == first

    async def test_two_watches_at_once_see_the_same(self, world: World) -> None:
        """Watches share no state."""
        one, other = world.discovery.watch(), world.discovery.watch()
        assert await _next(one) == await _next(other)

    async def test_nothing_is_yielded_while_nothing_changes(self, world: World) -> None:
        """An update costs a rebuild of resources, so there is none without news."""
        updates = world.discovery.watch()
        await _next(updates)
        more = asyncio.ensure_future(_next(updates))
        async with asyncio.timeout(DEADLINE_S):
            await world.settle()
        assert not more.done()
        await _cancel(more)

    async def test_a_cancelled_watch_ends_and_leaves_no_task(self, world: World) -> None:
        """The caller's cancellation passes through at once."""
        before = asyncio.all_tasks()
        updates = world.discovery.watch()
        await _next(updates)
        waiting = asyncio.ensure_future(_next(updates))
        await asyncio.sleep(0)  # what has not begun to wait cannot be cancelled in it
        await _cancel(waiting)
        await tasks_are(before)


class ChangingDiscoveryContract(DiscoveryContract):
    """For implementations that ask somebody."""

    @pytest.fixture
    def world(self) -> ChangingWorld:
        """Give the implementation, and control over its source; subclasses replace this."""
        raise NotImplementedError("a subclass of ChangingDiscoveryContract gives a `world`")

    async def test_a_change_is_yielded_as_the_whole_new_set(self, world: ChangingWorld) -> None:
        """Updates are states, not differences."""
        updates = world.discovery.watch()
        first = (await _next(updates)).endpoints
        kept, added = first[0], Address("127.0.0.99", first[0].port)
        world.set_endpoints(kept, added)
        assert (await _next(updates)).endpoints == tuple(sorted([kept, added]))

    async def test_a_source_that_answers_none_yields_an_empty_set(
        self, world: ChangingWorld
    ) -> None:
        """No endpoints is an answer."""
        updates = world.discovery.watch()
        await _next(updates)
        world.set_endpoints()
        assert (await _next(updates)).endpoints == ()

    async def test_endpoints_come_back_after_none(self, world: ChangingWorld) -> None:
        """An empty set does not end the watch."""
        before = world.endpoints
        world.set_endpoints()
        updates = world.discovery.watch()
        assert (await _next(updates)).endpoints == ()
        world.set_endpoints(*before)
        assert (await _next(updates)).endpoints == tuple(sorted(set(before)))

    async def test_a_source_that_does_not_answer_raises_a_retryable_error(
        self, world: ChangingWorld
    ) -> None:
        """Silence is not "none": what was last yielded stays in force."""
        updates = world.discovery.watch()
        await _next(updates)
        world.set_answering(False)
        with pytest.raises(AdapterError) as raised:
            await _next(updates)
        assert raised.value.retryable

    async def test_a_new_watch_after_a_loss_starts_with_the_whole_set(
        self, world: ChangingWorld
    ) -> None:
        """The same Discovery can be watched again."""
        world.set_answering(False)
        with pytest.raises(AdapterError):
            await _next(world.discovery.watch())
        world.set_answering(True)
        update = await _next(world.discovery.watch())
        assert update.endpoints == tuple(sorted(set(world.endpoints)))


async def tasks_are(before: set[asyncio.Task[object]]) -> None:
    """Return when no other task is left; those of a server in this loop need a moment."""
    async with asyncio.timeout(DEADLINE_S):
        while asyncio.all_tasks() - before:
            await asyncio.wait(asyncio.all_tasks() - before, timeout=0.01)


async def _next(updates: AsyncIterator[EndpointUpdate]) -> EndpointUpdate:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(updates)


async def _cancel(task: asyncio.Future[EndpointUpdate]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
