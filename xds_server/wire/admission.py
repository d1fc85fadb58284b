"""How many discovery streams are let in, and how fast.

A new stream costs a full configuration, and a fleet that lost its server comes back at once.
So streams enter at a bounded rate, in the order in which they came; who would wait too long is
refused, at a moment of its own, so that the fleet's next tries are spread out.
"""

import asyncio
from collections import OrderedDict
from typing import Final, Protocol

import numpy as np

WAIT_MAX_S: Final = 5.0
"""Longest wait of a stream that is let in. With the rate it bounds how many wait."""
DELAY_MIN_S: Final = 0.1
DELAY_MAX_S: Final = 1.0
DELAYED_MAX: Final = 1000
"""Refusals that are held back at a time; further ones are said at once."""


class AdmissionRefusedError(Exception):
    """A stream is not let in; ``reason`` is a metric's label."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class Admission:
    """Who enters when; told the time, in monotonic seconds.

    A token bucket: ``per_s`` streams a second, and as many at once after a pause. Loss policy:
    a stream that would wait longer than ``wait_max_s``, or that would be the ``open_max``-th
    and more, is refused.
    """

    def __init__(self, *, per_s: float, open_max: int, wait_max_s: float = WAIT_MAX_S) -> None:
        self._per_s, self._open_max = per_s, open_max
        self._waiting_max = int(per_s * wait_max_s)
        self._burst = max(per_s, 1.0)
        self._tokens = self._burst
        self._counted_s = 0.0
        self._queue: OrderedDict[int, None] = OrderedDict()
        self.open = 0

    @property
    def waiting(self) -> int:
        """Streams that wait for their turn."""
        return len(self._queue)

    def enter(self, ticket: int, now_s: float) -> bool:
        """Let a stream in (True), or let it wait until ``due`` names its ticket.

        Raises AdmissionRefusedError.
        """
        if self.open + self.waiting >= self._open_max:
            raise AdmissionRefusedError("streams_max", "too many streams are open")
        self._count(now_s)
        if not self._queue and self._tokens >= 1.0:
            self._take()
            return True
        if self.waiting >= self._waiting_max:
            raise AdmissionRefusedError("rate", "too many streams open at once")
        self._queue[ticket] = None
        return False

    def due(self, now_s: float) -> list[int]:
        """Let in whose turn it is, and return their tickets."""
        self._count(now_s)
        out = []
        while self._queue and self._tokens >= 1.0:
            ticket, _ = self._queue.popitem(last=False)
            self._take()
            out.append(ticket)
        return out

    def next_s(self, now_s: float) -> float | None:
        """Return when ``due`` has somebody to name; None while nobody waits."""
        if not self._queue:
            return None
        self._count(now_s)
        return now_s + max(1.0 - self._tokens, 0.0) / self._per_s

    def leave(self, ticket: int) -> None:
        """A stream that waited has gone; it takes nobody's turn."""
        self._queue.pop(ticket, None)

    def release(self) -> None:
        """A stream that was let in has ended."""
        self.open -= 1

    def _count(self, now_s: float) -> None:
        grown = max(now_s - self._counted_s, 0.0) * self._per_s
        self._tokens = min(self._tokens + grown, self._burst)
        self._counted_s = now_s

    def _take(self) -> None:
        self._tokens -= 1.0
        self.open += 1


class Tally(Protocol):
    """Who counts."""

    def refused(self, reason: str) -> None:
        """A stream was refused."""
        ...

    def waiting(self, streams: int) -> None:
        """So many streams wait for their turn."""
        ...


class Gate:
    """Where streams wait. ``rng`` spreads refusals; closed, it lets nobody in."""

    def __init__(self, admission: Admission, tally: Tally, rng: np.random.Generator) -> None:
        self._admission, self._tally, self._rng = admission, tally, rng
        self._turns: dict[int, asyncio.Future[None]] = {}
        self._last = self._delayed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def admit(self) -> None:
        """Return when the caller may go on; ``release`` is due after that.

        Raises AdmissionRefusedError, at a moment when it is good to say so.
        """
        loop = asyncio.get_running_loop()
        if self._closed:
            self._tally.refused("draining")
            raise AdmissionRefusedError("draining", "shutting down")
        self._last += 1
        ticket = self._last
        try:
            if self._admission.enter(ticket, loop.time()):
                return
        except AdmissionRefusedError as error:
            self._tally.refused(error.reason)
            await self._delay()
            raise
        turn = self._turns[ticket] = loop.create_future()
        self._tally.waiting(self._admission.waiting)
        if self._timer is None:
            self._look(loop)
        await self._wait(ticket, turn)

    def release(self) -> None:
        """One that was let in has ended."""
        self._admission.release()

    def close(self) -> None:
        """Refuse who comes, and who waits."""
        self._closed = True
        for ticket, turn in self._turns.items():
            self._admission.leave(ticket)
            if not turn.done():
                self._tally.refused("draining")
                turn.set_exception(AdmissionRefusedError("draining", "shutting down"))
        if self._timer is not None:
            self._timer.cancel()

    async def _wait(self, ticket: int, turn: asyncio.Future[None]) -> None:
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release()  # its turn came at the moment in which it went
            self._admission.leave(ticket)
            raise
        finally:
            del self._turns[ticket]
            self._tally.waiting(self._admission.waiting)

    async def _delay(self) -> None:
        if self._delayed >= DELAYED_MAX:
            return
        self._delayed += 1
        try:
            await asyncio.sleep(self._rng.uniform(DELAY_MIN_S, DELAY_MAX_S))
        finally:
            self._delayed -= 1

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let in whose turn it is, and look again when the next one's comes; one timer."""
        self._timer = None
        for ticket in self._admission.due(loop.time()):
            turn = self._turns[ticket]
            if not turn.done():
                turn.set_result(None)
            else:  # cancelled, and about to say so
                self._admission.release()
        self._tally.waiting(self._admission.waiting)
        at_s = self._admission.next_s(loop.time())
        if at_s is not None:
            self._timer = loop.call_at(at_s + 0.001, self._look, loop)  # loops count in ms
