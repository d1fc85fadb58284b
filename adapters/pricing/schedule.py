"""Prices by the time of day, in UTC."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cronsim import CronSim

from xds_server.model.topology import Price, PriceWindow
from xds_server.ports import Clock

STEP_S: Final = 60.0
"""Windows begin and end at whole minutes, so the clock is read at each: it may have jumped."""


class SchedulePricing:
    """The price of the first window that it is now; outside of all, the declared one."""

    def __init__(self, declared: Price, windows: Sequence[PriceWindow], clock: Clock) -> None:
        self._declared, self._windows, self._clock = declared, tuple(windows), clock

    async def watch(self) -> AsyncIterator[Price]:
        """Yield the price now, and at each whole minute; see ``ports.Pricing``."""
        while True:
            wall_s = self._clock.wall_s()
            yield self.at(wall_s)
            wall_s = self._clock.wall_s()
            await self._clock.sleep_s(STEP_S - wall_s % STEP_S)

    def at(self, wall_s: float) -> Price:
        """Return the price at that time, in seconds since the epoch."""
        now = datetime.fromtimestamp(wall_s, UTC)
        return next((w.price for w in self._windows if _is_in(w, now)), self._declared)


def _is_in(window: PriceWindow, now: datetime) -> bool:
    """Whether the window last began less than its length ago."""
    begins = next(CronSim(window.when, now - timedelta(seconds=window.lasts_s)), None)
    return begins is not None and begins <= now
