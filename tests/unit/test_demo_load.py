"""The demo's load generator against a real server on loopback."""

import asyncio
import time

import numpy as np
import pytest
from aiohttp import web

from xds_server.demo.load import Generator, Recorder, Sample, Target, make_session
from xds_server.demo.provider import start
from xds_server.demo.world import free_ports


class Server:
    """Answers each request after ``delay_s``; 503 once ``broken``."""

    def __init__(self, delay_s: float = 0.0, *, broken: bool = False) -> None:
        self.delay_s, self.broken = delay_s, broken
        (self.port,) = free_ports(1)
        self.target = Target("checkout", "checkout-1", "search", f"http://127.0.0.1:{self.port}/")

    async def __aenter__(self) -> "Server":
        async def serve(_: web.Request) -> web.Response:
            await asyncio.sleep(self.delay_s)
            return web.Response(status=503 if self.broken else 200, headers={"x-provider": "east"})

        app = web.Application()
        app.router.add_get("/", serve)
        self._runner = await start(app, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def test_open_loop_latency_counts_from_the_intended_start() -> None:
    async with Server() as server, make_session() as session:
        recorder = Recorder()
        # The story began half a second ago: these requests are late before they are sent.
        generator = Generator(session, recorder, time.monotonic() - 0.5)
        await generator.open_loop(server.target, [0.0, 0.1])
    by_start = {s.start_s: s for s in recorder.samples}
    assert by_start[0.0].latency_s >= 0.5
    assert by_start[0.1].latency_s >= 0.4
    assert {s.provider for s in recorder.samples} == {"east"}


async def test_open_loop_does_not_wait_for_answers() -> None:
    async with Server(delay_s=0.3) as server, make_session() as session:
        recorder = Recorder()
        began_s = time.monotonic()
        await Generator(session, recorder, began_s).open_loop(server.target, [0.0] * 10)
        assert time.monotonic() - began_s < 10 * 0.3
    assert len(recorder.samples) == 10


async def test_what_its_own_limit_keeps_back_is_counted() -> None:
    async with Server(delay_s=0.2) as server, make_session() as session:
        recorder = Recorder()
        generator = Generator(session, recorder, time.monotonic())
        await generator.open_loop(server.target, [0.0] * 5, in_flight_max=2)
    assert len(recorder.samples) == 2
    assert recorder.unsent == 3


async def test_an_error_and_a_refusal_are_failures() -> None:
    async with Server(broken=True) as server, make_session() as session:
        recorder = Recorder()
        generator = Generator(session, recorder, time.monotonic())
        await generator.open_loop(server.target, [0.0])
        await server.__aexit__()
        await generator.open_loop(server.target, [0.0])
        await server.__aenter__()
    assert [(s.status, s.failed) for s in recorder.samples] == [(503, True), (0, True)]


async def test_a_closed_loop_user_asks_until_the_story_ends() -> None:
    async with Server() as server, make_session() as session:
        recorder = Recorder()
        generator = Generator(session, recorder, time.monotonic())
        await generator.closed_loop(server.target, np.random.default_rng(1), 0.01, 0.2)
    assert recorder.samples
    assert all(s.start_s < 0.2 and not s.failed for s in recorder.samples)


def test_a_full_recorder_counts_what_it_does_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xds_server.demo.load.SAMPLES_MAX", 1)
    recorder = Recorder()
    for _ in range(3):
        recorder.add(Sample(0.0, 0.1, 200, "checkout", "search", "east"))
    assert len(recorder.samples) == 1
    assert recorder.unrecorded == 2
