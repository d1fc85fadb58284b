"""What every Pricing does: subclass a contract, give it a ``world`` fixture, collect it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from adapters.testing.discovery import DEADLINE_S, tasks_are
from xds_server.errors import AdapterError
from xds_server.model.topology import Price
from xds_server.ports import Pricing


class World(Protocol):
    """A Pricing, and the truth that it is to find."""

    pricing: Pricing
    price: Price


class ChangingWorld(World, Protocol):
    """A world whose truth the test can change, and whose source it can silence."""

    def set_price(self, price: Price) -> None:
        """Make this the truth from now on."""
        ...

    def set_answering(self, answering: bool) -> None:
        """Let the source answer, or not."""
        ...


class PricingContract:
    """For every implementation, also of what never changes."""

    @pytest.fixture
    def world(self) -> World:
        """Give the implementation, and what it should find; subclasses replace this."""
        raise NotImplementedError("a subclass of PricingContract gives a `world`")

    async def test_the_first_update_is_the_price_now(self, world: World) -> None:
        """Nobody has to wait for a change."""
        assert await _next(world.pricing.watch()) == world.price

    async def test_each_watch_starts_with_the_price_now(self, world: World) -> None:
        """A caller that lost a source watches again."""
        await _next(world.pricing.watch())
        assert await _next(world.pricing.watch()) == world.price

    async def test_two_watches_at_once_see_the_same(self, world: World) -> None:
        """Watches share no state."""
        one, other = world.pricing.watch(), world.pricing.watch()
        assert await _next(one) == await _next(other)

    async def test_a_cancelled_watch_ends_and_leaves_no_task(self, world: World) -> None:
        """The caller's cancellation passes through at once."""
        before = asyncio.all_tasks()
        updates = world.pricing.watch()
        await _next(updates)
        waiting = asyncio.ensure_future(_until(updates, Price(-1.0)))  # comes never
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await tasks_are(before)


class ChangingPricingContract(PricingContract):
    """For implementations whose price changes."""

    @pytest.fixture
    def world(self) -> ChangingWorld:
        """Give the implementation, and control over its source; subclasses replace this."""
        raise NotImplementedError("a subclass of ChangingPricingContract gives a `world`")

    async def test_a_change_is_yielded(self, world: ChangingWorld) -> None:
        """The whole price, also what of it stayed."""
        updates = world.pricing.watch()
        await _next(updates)
        price = Price(7.5, world.price.per_endpoint_hour_usd, world.price.egress_per_gib_usd)
        world.set_price(price)
        await _until(updates, price)

    async def test_a_price_of_nothing_is_a_price(self, world: ChangingWorld) -> None:
        """Free is not "unknown"."""
        updates = world.pricing.watch()
        await _next(updates)
        free = Price(0.0, 0.0, 0.0)
        world.set_price(free)
        await _until(updates, free)


class AskedPricingContract(ChangingPricingContract):
    """For implementations that ask somebody."""

    async def test_a_source_that_does_not_answer_raises_a_retryable_error(
        self, world: ChangingWorld
    ) -> None:
        """Silence is no price: what was last yielded stays in force, and grows old."""
        updates = world.pricing.watch()
        await _next(updates)
        world.set_answering(False)
        with pytest.raises(AdapterError) as raised:
            await _until(updates, Price(-1.0))
        assert raised.value.retryable

    async def test_a_new_watch_after_a_loss_starts_with_the_price_now(
        self, world: ChangingWorld
    ) -> None:
        """The same Pricing can be watched again."""
        world.set_answering(False)
        with pytest.raises(AdapterError):
            await _next(world.pricing.watch())
        world.set_answering(True)
        assert await _next(world.pricing.watch()) == world.price


async def _next(updates: AsyncIterator[Price]) -> Price:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(updates)


async def _until(updates: AsyncIterator[Price], wanted: Price) -> None:
    """Return when that one has come; prices are confirmed as often as an adapter likes."""
    async with asyncio.timeout(DEADLINE_S):
        async for price in updates:
            if price == wanted:
                return
