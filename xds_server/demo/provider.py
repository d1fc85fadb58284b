"""A provider of the demo: an HTTP server whose speed, price and faults change while it runs.

One process per provider, one endpoint per ``--port``. Each endpoint serves at most
``concurrency`` requests at once; more wait in a bounded queue, and what does not fit is
refused with 503. Every answer says, by ORCA, how busy the endpoint is and what a request
costs. ``GET /state`` and ``POST /set`` on the control port read and change the settings.
"""

import argparse
import asyncio
import math
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Final

import numpy as np
import uvloop
from aiohttp import web

SIGMA: Final = 0.35
"""Spread of the lognormal service time: its 95th percentile is 1.7 times its mean."""
UTILISATION_TAU_S: Final = 1.0
BODY: Final = b"x" * 2048
ORCA_HEADER: Final = "endpoint-load-metrics"
PRICE_METRIC: Final = "price_per_million_requests_usd"


@dataclass(slots=True)
class Settings:
    """What can be changed while the provider runs."""

    mean_s: float
    concurrency: int
    price_usd: float  # per million requests
    failure_ratio: float = 0.0

    def update(self, changes: object) -> None:
        """Apply all of the changes or, with ValueError, none of them."""
        if not isinstance(changes, Mapping):
            raise ValueError("write an object of settings")  # noqa: TRY004 - the caller's text
        numbers: dict[str, float] = {}
        known = {f.name for f in fields(self)}
        for key, value in changes.items():
            if key not in known:
                raise ValueError(f"unknown setting {key!r}; known: {', '.join(sorted(known))}")
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise ValueError(f"{key} is {value!r}; write a number, 0 or more")
            numbers[key] = value
        if numbers.get("concurrency", 1) < 1 or numbers.get("mean_s", 1.0) == 0:
            raise ValueError("concurrency is at least 1 and mean_s above 0")
        for key, number in numbers.items():
            setattr(self, key, int(number) if key == "concurrency" else float(number))


class Gate:
    """Lets ``settings.concurrency`` in at once; ``queue`` more may wait, the rest is refused."""

    def __init__(self, settings: Settings, queue: int) -> None:
        self._settings, self._queue = settings, queue
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._busy = 0
        self._utilisation = 0.0
        self._since_s = -math.inf

    async def enter(self, now_s: float) -> bool:
        """Return True when it is this request's turn, False at once when the queue is full."""
        if self._busy < self._settings.concurrency and not self._waiting:
            self._count(1, now_s)
            return True
        if len(self._waiting) >= self._queue:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(now_s)  # its turn had come: pass it on
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise
        return True

    def leave(self, now_s: float) -> None:
        """Give the place to whoever has waited longest."""
        self._count(-1, now_s)
        while self._waiting and self._busy < self._settings.concurrency:
            turn = self._waiting.popleft()
            if not turn.done():
                self._count(1, now_s)
                turn.set_result(None)

    def utilisation_ratio(self, now_s: float) -> float:
        """Return the share of places that were busy, over about the last second."""
        self._count(0, now_s)
        return min(1.0, self._utilisation)

    def _count(self, change: int, now_s: float) -> None:
        keep = math.exp(-max(0.0, now_s - self._since_s) / UTILISATION_TAU_S)
        current = self._busy / self._settings.concurrency
        self._utilisation = keep * self._utilisation + (1.0 - keep) * current
        self._since_s = max(now_s, self._since_s)
        self._busy += change


class Endpoint:
    """One address of a provider."""

    def __init__(self, name: str, settings: Settings, queue: int, seed: int) -> None:
        self._name, self._settings = name, settings
        self._gate = Gate(settings, queue)
        self._rng = np.random.default_rng(seed)

    async def serve(self, _: web.Request) -> web.Response:
        """Answer one request after its service time."""
        if not await self._gate.enter(time.monotonic()):
            return self._answer(503, b"queue full")
        try:
            fails = float(self._rng.random()) < self._settings.failure_ratio
            spread = math.exp(SIGMA * float(self._rng.standard_normal()) - SIGMA**2 / 2)
            await asyncio.sleep(self._settings.mean_s * spread)
            return self._answer(500, b"fault") if fails else self._answer(200, BODY)
        finally:
            self._gate.leave(time.monotonic())

    def _answer(self, status: int, body: bytes) -> web.Response:
        busy = self._gate.utilisation_ratio(time.monotonic())
        load = (
            f"TEXT application_utilization={busy:.4f}, cpu_utilization={busy:.4f}, "
            f"named_metrics.{PRICE_METRIC}={self._settings.price_usd:g}"
        )
        headers = {ORCA_HEADER: load, "x-provider": self._name}
        return web.Response(status=status, body=body, headers=headers)

    def application(self) -> web.Application:
        """Return the endpoint as an application that answers every path."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.serve)
        return app


def control_application(settings: Settings) -> web.Application:
    """Return the control interface of a provider."""

    async def state(_: web.Request) -> web.Response:
        return web.json_response(asdict(settings))

    async def change(request: web.Request) -> web.Response:
        try:
            settings.update(await request.json())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(asdict(settings))

    app = web.Application()
    app.router.add_get("/state", state)
    app.router.add_post("/set", change)
    return app


async def start(app: web.Application, port: int) -> web.AppRunner:
    """Serve an application on loopback; a caller that goes away is not served further."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner


async def _run(args: argparse.Namespace) -> None:
    settings = Settings(args.mean_s, args.concurrency, args.price_usd)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    apps = [
        (Endpoint(args.name, settings, args.queue, args.seed + i).application(), port)
        for i, port in enumerate(args.port)
    ]
    runners = [await start(app, port) for app, port in apps]
    # Last, so that a control port that answers means a provider that serves.
    runners.append(await start(control_application(settings), args.control))
    await stop.wait()
    for runner in runners:
        await runner.cleanup()


def main(argv: Sequence[str] | None = None) -> None:
    """Run one provider until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m xds_server.demo.provider")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, action="append", required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--mean-s", type=float, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--price-usd", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
