"""What adapters implement. Contracts are stated once, here, and tested by ``adapters.testing``."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from xds_server.model.topology import Address, Price
from xds_server.model.usage import Usage


class Clock(Protocol):
    """Time, at the edge; everything inside takes ``now_s`` as an argument."""

    def now_s(self) -> float:
        """Return monotonic seconds."""
        ...

    def wall_s(self) -> float:
        """Return seconds since the epoch."""
        ...

    async def sleep_s(self, duration_s: float) -> None:
        """Return after that long; negative durations return at once."""
        ...


class Wakeup(Protocol):
    """Who is to look again; an ``asyncio.Event`` is one."""

    def set(self) -> None:
        """Say that there may be something new; cheap, and harmless when repeated."""
        ...


@dataclass(frozen=True, slots=True)
class EndpointUpdate:
    """The full set of a provider's endpoints, sorted and without duplicates."""

    endpoints: tuple[Address, ...]


class Discovery(Protocol):
    """Where a provider's endpoints come from."""

    def watch(self) -> AsyncIterator[EndpointUpdate]:
        """Yield the full set first, then the full set at each change, until cancelled.

        Raises AdapterError when the source is lost. The caller then backs off and
        watches again, so the first update after that is a full set once more. A source
        that answers "there are none" yields an empty set; a source that does not answer
        raises. What was last yielded stays in force until the next update. A source that is
        seen to be at fault may raise that once, and wait until it has changed when it is
        watched again.
        """
        ...


class Pricing(Protocol):
    """Where a provider's price comes from."""

    def watch(self) -> AsyncIterator[Price]:
        """Yield the price now, and again whenever it has changed or is confirmed, until cancelled.

        Raises AdapterError as ``Discovery.watch`` does. What was last yielded stays in force,
        and is as old as it is.
        """
        ...


@dataclass(frozen=True, slots=True)
class UsageUpdate:
    """All that one source knows at one look; at most one ``Usage`` for each instance or provider.

    Who is not in it is not known to the source any more.
    """

    usages: tuple[Usage, ...]


class Metering(Protocol):
    """Where it is measured what instances and providers use."""

    def watch(self) -> AsyncIterator[UsageUpdate]:
        """Yield what is in use now, and again at each look, until cancelled.

        Raises AdapterError as ``Discovery.watch`` does. A source that answers "nobody" yields
        an empty update. Measurements grow old: while a source is lost, what it said last counts
        for as long as the caller takes such words to be true, and for no longer.
        """
        ...
