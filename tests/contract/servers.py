"""Those whom adapters ask: an HTTP server with one document, and a Docker Engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from adapters.testing.discovery import DEADLINE_S


class Counting:
    """Counts what was asked, and lets tests wait for more."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self._news = asyncio.Event()

    def note(self, what: Any) -> None:
        self.asked.append(what)
        self._news.set()

    async def wait_for_more(self, count: int) -> None:
        goal = len(self.asked) + count
        async with asyncio.timeout(DEADLINE_S):
            while len(self.asked) < goal:
                self._news.clear()
                await self._news.wait()


class DocumentServer(Counting):
    """One document at ``/prices``, with an ETag if it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = b"[]"
        self.tag = ""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.delay_s = 0.0
        self.port = 0
        self.statuses: list[int] = []

    @property
    def url(self) -> str:
        return f"http://user:secret@127.0.0.1:{self.port}/prices?token=secret"

    async def answer(self, request: web.Request) -> web.Response:
        asked_tag = request.headers.get("If-None-Match", "")
        self.note(asked_tag)
        await asyncio.sleep(self.delay_s)
        same = bool(self.tag) and asked_tag == self.tag and self.status == 200
        status = 304 if same else self.status
        self.statuses.append(status)
        headers = self.headers | ({"ETag": self.tag} if self.tag else {})
        return web.Response(body=b"" if same else self.body, status=status, headers=headers)


@asynccontextmanager
async def serving_document() -> AsyncIterator[DocumentServer]:
    server = DocumentServer()
    app = web.Application()
    app.router.add_get("/prices", server.answer)
    async with serving(app, None) as port:
        server.port = port
        yield server


VERSION = "1.47"


class Engine(Counting):
    """Containers and events as the Docker Engine API has them; only what adapters ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.containers: list[dict[str, Any]] = []
        self.listed: list[Any] | None = None  # whatever this is, instead
        self.answering = True
        self.hanging = False
        self._streams: set[asyncio.Queue[bytes | None]] = set()

    def say(self, action: str, **attributes: str) -> None:
        """Let something happen to a container."""
        event = {
            "Type": "container",
            "Action": action,
            "Actor": {"ID": "c0", "Attributes": attributes},
            "scope": "local",
            "time": 1,
        }
        self.send(json.dumps(event).encode() + b"\n")

    def send(self, chunk: bytes | None) -> None:
        """Write to every event stream; None ends them."""
        for stream in self._streams:
            stream.put_nowait(chunk)

    async def ping(self, request: web.Request) -> web.Response:
        await self._gate()
        return web.Response(text="OK", headers={"Api-Version": VERSION})

    async def list(self, request: web.Request) -> web.Response:
        await self._gate()
        filters = json.loads(request.query["filters"])
        self.note(filters)
        wanted = {label.partition("=")[::2] for label in filters["label"]}
        found = [
            c
            for c in self.containers
            if wanted <= c["Labels"].items() and c["State"] in filters["status"]
        ]
        return web.json_response(found if self.listed is None else self.listed)

    async def events(self, request: web.Request) -> web.StreamResponse:
        await self._gate()
        assert json.loads(request.query["filters"]).keys() == {"label"}
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        stream: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._streams.add(stream)
        try:
            while (chunk := await stream.get()) is not None:
                await response.write(chunk)
        finally:
            self._streams.discard(stream)
        return response

    async def _gate(self) -> None:
        if self.hanging:
            await asyncio.sleep(DEADLINE_S)
        if not self.answering:
            raise web.HTTPInternalServerError


@asynccontextmanager
async def serving_engine(socket: Path | None) -> AsyncIterator[tuple[Engine, str]]:
    """Serve on a unix socket, or on TCP; yields the engine and its URL."""
    engine = Engine()
    app = web.Application()
    app.router.add_get("/_ping", engine.ping)
    app.router.add_get(f"/v{VERSION}/containers/json", engine.list)
    app.router.add_get(f"/v{VERSION}/events", engine.events)
    async with serving(app, socket) as port:
        yield engine, f"unix://{socket}" if socket else f"tcp://127.0.0.1:{port}"
        engine.send(None)


@asynccontextmanager
async def serving(app: web.Application, socket: Path | None) -> AsyncIterator[int]:
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site: web.BaseSite
    if socket is not None:
        site = web.UnixSite(runner, str(socket))
    else:
        site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield 0 if socket else runner.addresses[0][1]
    finally:
        await runner.cleanup()
