"""HTTP servers and clients at the two ends of an Envoy."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web


@dataclass
class Upstream:
    """A provider's endpoint that says its name; tests change how it answers."""

    name: str
    port: int = 0
    status: int = 200
    statuses: list[int] = field(default_factory=list)  # by turns, instead of ``status``
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    requests: int = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        turns = self.statuses or [self.status]
        status = turns[(self.requests - 1) % len(turns)]
        return web.Response(text=self.name, status=status, headers=self.headers)


@asynccontextmanager
async def serving(*names: str) -> AsyncIterator[dict[str, Upstream]]:
    """Run one endpoint per name."""
    upstreams, runners = {}, []
    for name in names:
        upstream = Upstream(name)
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", upstream.answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        upstream.port = runner.addresses[0][1]
        upstreams[name] = upstream
        runners.append(runner)
    try:
        yield upstreams
    finally:
        for runner in runners:
            await runner.cleanup()


class Traffic:
    """A bounded stream of requests in the background, and what came back."""

    def __init__(self, port: int, *, gap_s: float = 0.004, workers: int = 2) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._url = f"http://127.0.0.1:{port}/"
        self._gap_s, self._workers = gap_s, workers
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Traffic":
        self._session = self._connect()
        self._tasks = [asyncio.create_task(self._send()) for _ in range(self._workers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def _connect(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))

    async def _send(self) -> None:
        for _ in range(20_000):
            try:
                async with self._session.get(self._url) as answer:
                    text = await answer.text()
                    if answer.status == 200:
                        self.answers[text] += 1
                    else:
                        self.failures.append(f"{answer.status} {text[:200]}")
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failures.append(repr(error))
            await asyncio.sleep(self._gap_s)

    async def split(self, count: int = 100) -> dict[str, float]:
        """Shares of the next ``count`` answers."""
        before = Counter(self.answers)
        deadline = asyncio.get_running_loop().time() + 10.0
        while (self.answers - before).total() < count:
            assert asyncio.get_running_loop().time() < deadline, self.failures[-3:]
            await asyncio.sleep(0.01)
        new = self.answers - before
        return {name: n / new.total() for name, n in new.items()}
