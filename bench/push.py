"""What a push costs: from a change to the last ACK, beside a bare echo of the same bytes.

``python -m bench.push [--streams 1000] [--json]``. Servers and clients are processes of their
own; CPU is the server's, user and system. Runs of ours and of the echo take turns, figures are
medians, and ratios are medians of the ratios of neighbours. See ``bench/README.md``.
"""

import argparse
import asyncio
import platform
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.children import Answer, Child
from bench.output import dumped
from xds_server.model.ids import RDS, RTDS

SETTLE_S = 30.0
QUIET_S = 0.3
STALLED_SHARE = 0.1
WARM = 50
"""Streams that are open before memory is looked at: the first ones build what all share."""
LARGE = ("--providers", "280", "--name-bytes", "500")
"""One response is 143 KB: more than a stream's window and gRPC's write buffer together."""
STALL_PUSHES_MAX = 4


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done."""

    streams: int
    pushes: int
    runs: int
    groups: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A server and its clients."""

    server: Child
    clients: Child

    @classmethod
    async def start(cls, stack: AsyncExitStack, kind: str, *shape: str) -> "Pair":
        """Start both processes; they end with the stack."""
        port = _free_port()
        server = await Child.start("bench.push_server", kind, str(port), *shape)
        stack.push_async_callback(server.stop)
        clients = await Child.start("bench.push_client", f"127.0.0.1:{port}")
        stack.push_async_callback(clients.stop)
        await server.ask("state")
        return cls(server, clients)

    async def connect(self, streams: int, have: int = 0) -> None:
        """Open streams that get routes and read them, until there are so many."""
        await self.clients.ask("connect", count=streams - have, type_url=RDS)
        await self.clients.ask("read", first=have, last=streams)
        await self.until(lambda state: state["streams"] == streams and state["acks"] >= streams)

    async def warm(self) -> int:
        """Open and use the first streams; return the memory that there is then, bytes."""
        await self.connect(WARM)
        await self.server.ask("arrange", groups=1)
        await self.quiet()
        await self.server.ask("push", pushes=5, streams=WARM)
        state = await self.server.ask("state")
        return int(state["rss_bytes"])

    async def until(self, test: Callable[[Answer], bool]) -> Answer:
        """Wait for a state of the server."""
        async with asyncio.timeout(SETTLE_S):
            while True:
                state = await self.server.ask("state")
                if test(state):
                    return state
                await asyncio.sleep(0.1)

    async def quiet(self) -> Answer:
        """Wait until no more answers come."""
        last = -1

        def same(state: Answer) -> bool:
            nonlocal last
            before, last = last, int(state["acks"])
            return before == last

        await asyncio.sleep(QUIET_S)
        return await self.until(same)


async def measure(options: Options) -> dict[str, Any]:
    """Both kinds of push, and stalls."""
    async with AsyncExitStack() as stack:
        ours = await Pair.start(stack, "ours")
        echo = await Pair.start(stack, "echo")
        before = [await pair.warm() for pair in (ours, echo)]
        for pair in (ours, echo):
            await pair.connect(options.streams, WARM)
        shared = await _compare(ours, echo, options, groups=1)
        after = [int((await p.server.ask("state"))["rss_bytes"]) for p in (ours, echo)]
        memory = _memory(before, after, options.streams - WARM)
        await ours.clients.ask("subscribe", type_url=RTDS, first=0, last=options.streams)
        await ours.quiet()
        grouped = await _compare(ours, echo, options, groups=options.groups)
    stalled = await _stalled(options)
    return {
        "streams": options.streams,
        "pushes": options.pushes * options.runs,
        "cpu_ratio": max(shared["cpu_ratio"], grouped["cpu_ratio"]),
        "rss_ratio": memory["rss_ratio"],
        "stalled_p99_ratio": stalled["p99_ratio"],
        "shared": shared,
        "per_group": grouped,
        "memory": memory,
        "stalled": stalled,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


async def _compare(ours: Pair, echo: Pair, options: Options, *, groups: int) -> dict[str, Any]:
    await ours.server.ask("arrange", groups=groups)
    state = await ours.quiet()
    await echo.server.ask("size", size_bytes=state["push_bytes"])
    runs: dict[str, list[Answer]] = {"ours": [], "echo": []}
    for _ in range(options.runs):
        for name, pair in (("ours", ours), ("echo", echo)):
            answer = await pair.server.ask("push", pushes=options.pushes, streams=options.streams)
            runs[name].append(answer)
    found = {name: _medians(answers) for name, answers in runs.items()}
    return {
        "cpu_ratio": _paired(runs["ours"], runs["echo"], "cpu_us"),
        "wall_ratio": _paired(runs["ours"], runs["echo"], "wall_ms"),
        "push_bytes": state["push_bytes"],
        "groups": groups,
        **found,
    }


def _memory(before: list[int], after: list[int], streams: int) -> dict[str, float]:
    """What came with each stream, ours and the echo's, KiB."""
    ours_kb, echo_kb = ((a - b) / streams / 1024 for b, a in zip(before, after, strict=True))
    return {
        "rss_ratio": round(ours_kb / echo_kb, 3),
        "ours_kb": round(ours_kb, 1),
        "echo_kb": round(echo_kb, 1),
    }


async def _stalled(options: Options) -> dict[str, Any]:
    """Healthy streams with, and without, others that never read; in turns.

    Both servers hold as many streams, and push to as many that answer: where none stalls the
    others ask for something that never changes.
    """
    stuck = int(options.streams * STALLED_SHARE)
    healthy = options.streams - stuck
    async with AsyncExitStack() as stack:
        calm = await Pair.start(stack, "ours", *LARGE)
        rough = await Pair.start(stack, "ours", *LARGE)
        for pair in (calm, rough):
            await pair.connect(healthy)
        await calm.clients.ask("connect", count=stuck, type_url=RTDS)
        await calm.clients.ask("read", first=healthy, last=options.streams)
        await rough.clients.ask("connect", count=stuck, type_url=RDS)
        for pair in (calm, rough):
            await pair.until(lambda state: state["streams"] == options.streams)
            await pair.server.ask("arrange", groups=1)
            await pair.quiet()
        runs: dict[str, list[Answer]] = {"calm": [], "rough": []}
        pushes = min(options.pushes, STALL_PUSHES_MAX)
        for _ in range(min(options.runs, 3)):
            for name, pair in (("calm", calm), ("rough", rough)):
                runs[name].append(await pair.server.ask("push", pushes=pushes, streams=healthy))
        before = await rough.server.ask("state")
        # The proof that they were stuck: every one of them is ended for it, and no other.
        after = await rough.until(lambda state: state["ended"].get("stalled", 0) == stuck)
    return {
        "p99_ratio": _paired(runs["rough"], runs["calm"], "p99_ms"),
        "push_bytes": before["push_bytes"],
        "healthy": healthy,
        "never_read": stuck,
        "never_read_still_open": before["streams"] - healthy,
        "ended": after["ended"],
        "with_stalls": _medians(runs["rough"]),
        "without": _medians(runs["calm"]),
    }


def _medians(answers: list[Answer]) -> dict[str, float]:
    return {key: round(float(np.median([a[key] for a in answers])), 2) for key in answers[0]}


def _paired(over: list[Answer], under: list[Answer], key: str) -> float:
    ratios = [a[key] / b[key] for a, b in zip(over, under, strict=True)]
    return round(float(np.median(ratios)), 3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _table(result: dict[str, Any]) -> None:
    for key, value in result.items():
        if isinstance(value, dict):
            print(key)
            for name, figure in value.items():
                print(f"  {name:20} {figure}")
        else:
            print(f"{key:22} {value}")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000, help="at least 100")
    parser.add_argument("--pushes", type=int, default=10, help="per run")
    parser.add_argument("--runs", type=int, default=5, help="of each of the two servers")
    parser.add_argument("--groups", type=int, default=40, help="with weights of their own")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.streams < 2 * WARM:
        parser.error(f"--streams: at least {2 * WARM}")
    options = Options(given.streams, given.pushes, given.runs, given.groups)
    result = asyncio.run(measure(options))
    if given.json:
        print(dumped(result))
    else:
        _table(result)


if __name__ == "__main__":
    main()
