"""What every Metering does: subclass a contract, give it a ``world`` fixture, collect it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import pytest

from adapters.testing.discovery import DEADLINE_S, tasks_are
from xds_server.errors import AdapterError
from xds_server.model.usage import Usage
from xds_server.ports import Metering, UsageUpdate


class World(Protocol):
    """A Metering, and the truth that it is to find; who is in it is alive and does something."""

    metering: Metering
    usages: Mapping[str, Usage]

    def is_true(self, found: Usage) -> bool:
        """Whether a measurement is as near to the truth as this source can be."""
        ...

    async def set_present(self, *names: str) -> None:
        """Let only these instances be there, of those in ``usages``."""
        ...


class AskedWorld(World, Protocol):
    """A world whose source the test can silence."""

    async def set_answering(self, answering: bool) -> None:
        """Let the source answer, or not."""
        ...


class MeteringContract:
    """For every implementation."""

    @pytest.fixture
    def world(self) -> World:
        """Give the implementation, and what it should find; subclasses replace this."""
        raise NotImplementedError("a subclass of MeteringContract gives a `world`")

    async def test_the_first_update_has_everybody_once_with_what_they_use(
        self, world: World
    ) -> None:
        """Nobody has to wait for a second look; the caller makes a table of it as it is."""
        found = (await _next(world.metering.watch())).usages
        assert sorted(u.of for u in found) == sorted(world.usages)
        assert [u for u in found if not world.is_true(u)] == []

    async def test_each_watch_starts_with_everybody(self, world: World) -> None:
        """A caller that lost a source watches again."""
        await _next(world.metering.watch())
        assert _names(await _next(world.metering.watch())) == set(world.usages)

    async def test_two_watches_at_once_see_the_same(self, world: World) -> None:
        """Watches share no state."""
        one, other = world.metering.watch(), world.metering.watch()
        assert _names(await _next(one)) == _names(await _next(other))

    async def test_there_is_an_update_at_each_look(self, world: World) -> None:
        """A measurement that is the same is news: it is fresh."""
        updates = world.metering.watch()
        for _ in range(3):
            found = await _next(updates)
            assert _names(found) == set(world.usages)
            assert [u for u in found.usages if not world.is_true(u)] == []

    async def test_who_is_gone_is_not_in_the_update_and_comes_back(self, world: World) -> None:
        """The caller must not go on believing in what nobody measures."""
        updates = world.metering.watch()
        await _next(updates)
        first = min(world.usages)
        await world.set_present(first)
        await _until(updates, lambda update: _names(update) == {first})
        await world.set_present(*world.usages)
        await _until(updates, lambda update: _names(update) == set(world.usages))

    async def test_nobody_is_an_answer(self, world: World) -> None:
        """An empty update, and the watch goes on."""
        updates = world.metering.watch()
        await _next(updates)
        await world.set_present()
        await _until(updates, lambda update: not update.usages)

    async def test_a_cancelled_watch_ends_and_leaves_no_task(self, world: World) -> None:
        """The caller's cancellation passes through at once."""
        before = asyncio.all_tasks()
        updates = world.metering.watch()
        await _next(updates)
        waiting = asyncio.ensure_future(_until(updates, lambda _: False))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await tasks_are(before)


class AskedMeteringContract(MeteringContract):
    """For implementations whose source can fail to answer."""

    @pytest.fixture
    def world(self) -> AskedWorld:
        """Give the implementation, and control over its source; subclasses replace this."""
        raise NotImplementedError("a subclass of AskedMeteringContract gives a `world`")

    async def test_a_source_that_does_not_answer_raises_a_retryable_error(
        self, world: AskedWorld
    ) -> None:
        """Silence is not "nobody"."""
        updates = world.metering.watch()
        await _next(updates)
        await world.set_answering(False)
        with pytest.raises(AdapterError) as raised:
            await _until(updates, lambda _: False)
        assert raised.value.retryable

    async def test_a_new_watch_after_a_loss_starts_with_everybody(self, world: AskedWorld) -> None:
        """The same Metering can be watched again."""
        await world.set_answering(False)
        with pytest.raises(AdapterError):
            await _until(world.metering.watch(), lambda _: False)
        await world.set_answering(True)
        assert _names(await _next(world.metering.watch())) == set(world.usages)


def _names(update: UsageUpdate) -> set[str]:
    return {usage.of for usage in update.usages}


async def _next(updates: AsyncIterator[UsageUpdate]) -> UsageUpdate:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(updates)


async def _until(
    updates: AsyncIterator[UsageUpdate], wanted: Callable[[UsageUpdate], bool]
) -> None:
    """Return when such a one has come."""
    async with asyncio.timeout(DEADLINE_S):
        async for update in updates:
            if wanted(update):
                return
