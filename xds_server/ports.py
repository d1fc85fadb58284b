"""What adapters implement. Contracts are stated once, here, and tested by ``adapters.testing``."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from xds_server.model.topology import Address


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
        raises. What was last yielded stays in force until the next update.
        """
        ...
