"""Real time."""

import asyncio
import time


class SystemClock:
    """The clock of the machine."""

    def now_s(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Return seconds since the epoch."""
        return time.time()  # noqa: TID251 - this is the Clock that everybody else is to take

    async def sleep_s(self, duration_s: float) -> None:
        """Return after that long; negative durations return at once."""
        await asyncio.sleep(max(duration_s, 0.0))
