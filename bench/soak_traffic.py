"""Both ends of the Envoys of ``bench.soak``: endpoints, callers, and a line that can be cut."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

READ_BYTES = 65_536
TIMEOUT_S = 10.0
FAILURES_KEPT = 20
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nok"


async def _endpoint(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_ANSWER)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def endpoints(count: int) -> AsyncIterator[list[int]]:
    """Answer every GET on that many ports; yields them."""
    servers = [await asyncio.start_server(_endpoint, "127.0.0.1", 0) for _ in range(count)]
    try:
        yield [server.sockets[0].getsockname()[1] for server in servers]
    finally:
        for server in servers:
            server.close()


class Line:
    """A TCP connection to the control plane that can be cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen; returns the port."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Break what is connected now, without a word to either side."""
        for writer in tuple(self._open):
            writer.transport.abort()

    def stop(self) -> None:
        """Break all, and listen no longer."""
        self.cut()
        if self._server is not None:
            self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        ends = {writer, far_writer}
        self._open |= ends
        try:
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        finally:
            self._open -= ends
            for end in ends:
                end.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass(slots=True)
class Caller:
    """Requests to one Envoy at a fixed pace; those to one that the soak killed do not count."""

    url: str
    rps: float
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)  # the first ones
    situation: Callable[[], str] = str  # says when, and what has just been done
    down: bool = False
    life: int = 0

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Send until cancelled; then what was sent is still waited for."""
        async with asyncio.TaskGroup() as sending:
            with contextlib.suppress(asyncio.CancelledError):
                while True:
                    if not self.down:
                        sending.create_task(self._one(session))
                    await asyncio.sleep(1.0 / self.rps)

    async def _one(self, session: aiohttp.ClientSession) -> None:
        life = self.life
        try:
            async with session.get(self.url) as answer:
                text = await answer.text()
            failure = "" if answer.status == 200 else f"status {answer.status} {text[:200]}"
        except (aiohttp.ClientError, TimeoutError) as error:
            failure = repr(error)
        if failure and (self.down or self.life != life):
            self.counts["excused"] += 1
            return
        self.counts["requests"] += 1
        if failure:
            self.counts["failed"] += 1
            if len(self.failures) < FAILURES_KEPT:
                self.failures.append(f"{self.situation()} {failure}")
