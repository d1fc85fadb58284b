"""The servers that ``bench.push`` measures, each a process of its own that is told what to do.

``ours`` is the real stack: ControlPlane as the source, DiscoveryServices with the Recorder and
real metrics, on ``wire.server.serving``. ``echo`` is the least that a server on ``grpc.aio`` can
do: the same bytes out, the same bytes in, nothing kept and nothing looked at; uvloop, garbage
collector off, no BDP probe, no queue between a change and its writes.
"""

import argparse
import asyncio
import gc
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import uvloop
from prometheus_client import Counter

from bench import push_world as world
from bench.children import Answer, answering
from bench.push_client import METHOD
from bench.push_world import Shape
from xds_server.app import collector
from xds_server.app.clock import SystemClock
from xds_server.app.plane import ControlPlane
from xds_server.model.ids import RDS
from xds_server.model.topology import XdsLimits
from xds_server.model.versions import make_resource
from xds_server.observability import Metrics, configure_logging
from xds_server.protocol.framing import delta_response
from xds_server.wire.ads import DiscoveryServices
from xds_server.wire.pump import Stream
from xds_server.wire.record import Recorder
from xds_server.wire.server import serving

SETTLE_S = 30.0


class Acks:
    """Counts down the answers to one push, with the time of each."""

    def __init__(self) -> None:
        self.total = 0
        self.at_s: list[float] = []
        self._wanted = 0
        self._all = asyncio.Event()

    def expect(self, count: int) -> None:
        """Begin anew."""
        self.at_s, self._wanted = [], count
        self._all.clear()

    def count(self) -> None:
        """One more has come."""
        self.total += 1
        self.at_s.append(time.perf_counter())
        if len(self.at_s) == self._wanted:
            self._all.set()

    async def wait(self) -> None:
        """Return when all have come."""
        async with asyncio.timeout(SETTLE_S):
            await self._all.wait()


class Counting(Recorder):
    """The real one, and a count that costs what the echo's costs."""

    def __init__(self, metrics: Metrics, acks: Acks) -> None:
        super().__init__(metrics)
        self.reasons: list[str] = []
        for series in self._of.values():
            series.ack = _then(series.ack, acks.count)

    def closed(self, stream: Stream, reason: str) -> None:
        """As ever."""
        super().closed(stream, reason)
        self.reasons.append(reason)


def _then(first: Callable[[float], None], second: Callable[[], None]) -> Callable[[float], None]:
    def both(amount: float) -> None:
        first(amount)
        second()

    return both


class Ours:
    """The control plane, without its engine's clock: the bench says when weights change."""

    def __init__(self, shape: Shape, port: int) -> None:
        self.acks = Acks()
        self._shape, self._clock = shape, SystemClock()
        mesh = world.mesh(shape, port)
        self._plane = ControlPlane(Path("mesh.yaml"), mesh, self._clock)
        self._plane.endpoints_changed()
        self._recorder = Counting(self._plane.metrics, self.acks)
        fast = XdsLimits(streams_per_s=100_000.0)  # what is measured is not how they come
        self._ads = DiscoveryServices(self._plane, self._recorder, self._clock, limits=fast)
        self._groups = world.group_keys(1)
        self._generator = np.random.default_rng(1)
        self._next = world.overlay(shape, self._groups, self._generator)
        self._settings = mesh.server
        self._before = self._sent()

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._ads.streams)

    def serving(self, port: int) -> AbstractAsyncContextManager[object]:
        """Serve as ``app.process`` does."""
        del port  # in the settings
        return serving(self._settings, (self._ads.handler(),))

    async def arrange(self, groups: int) -> None:
        """Spread the nodes evenly, and publish once."""
        self._before = self._sent()
        self._groups = world.group_keys(groups)
        for i, node_id in enumerate(sorted(self._plane.publisher.nodes)):
            self._plane.publisher.set_group(node_id, self._groups[i % groups])
        self.draw()
        await self.push()

    def draw(self) -> None:
        """Think of other weights: what the engine does, and not measured here."""
        self._next = world.overlay(self._shape, self._groups, self._generator)

    async def push(self) -> None:
        """Publish new weights."""
        self._plane.publisher.publish(self._next, self._clock.now_s())

    @property
    def push_bytes(self) -> int:
        """Mean size of the responses since the last ``arrange``."""
        (sent_before, before), (sent, size) = self._before, self._sent()
        return round((size - before) / max(1.0, sent - sent_before))

    def _sent(self) -> tuple[float, float]:
        metrics = self._plane.metrics
        return _total(metrics.responses_total), _total(metrics.push_bytes_total)

    def ended(self) -> list[str]:
        """Why streams ended."""
        return self._recorder.reasons


def _total(counter: Counter) -> float:
    """Sum over the labels."""
    return sum(s.value for family in counter.collect() for s in family.samples)


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, serve: Callable[[Any, Any], Awaitable[None]]) -> None:
        self._method: Any = grpc.stream_stream_rpc_method_handler(serve)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._method if details.method == METHOD else None


class Echo:
    """Bytes out, bytes in."""

    def __init__(self) -> None:
        self.acks = Acks()
        self._contexts: list[Any] = []
        self._payload = b""
        self.size(1000)

    def size(self, size_bytes: int) -> None:
        """Let responses be that large."""
        empty = delta_response(RDS, "1", "1", (make_resource(RDS, "r", b""),))
        body = bytes(max(0, size_bytes - len(empty) - 6))
        self._payload = delta_response(RDS, "1", "1", (make_resource(RDS, "r", body),))

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._contexts)

    @property
    def push_bytes(self) -> int:
        """Size of a response."""
        return len(self._payload)

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[None]:
        """Serve with the options that cost least."""
        options = (("grpc.so_reuseport", 0), ("grpc.http2.bdp_probe", 0))
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((_Methods(self._serve),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(grace=None)

    async def _serve(self, requests: Any, context: Any) -> None:
        await context.read()
        self._contexts.append(context)
        await context.write(self._payload)
        while await context.read() is not grpc.aio.EOF:
            self.acks.count()

    async def arrange(self, groups: int) -> None:
        """All are alike here."""
        del groups
        await self.push()

    def draw(self) -> None:
        """Nothing changes but the moment."""

    async def push(self) -> None:
        """Write to every stream."""
        payload = self._payload
        await asyncio.gather(*(c.write(payload) for c in self._contexts))

    def ended(self) -> list[str]:
        """Why streams ended: not known."""
        return []


class Commands:
    """What the parent process may ask."""

    def __init__(self, server: Ours | Echo) -> None:
        self._server = server

    async def state(self) -> Answer:
        """Streams, answers, memory and what ended."""
        ended = self._server.ended()
        return {
            "streams": self._server.streams,
            "acks": self._server.acks.total,
            "push_bytes": self._server.push_bytes,
            "rss_bytes": psutil.Process().memory_info().rss,
            "ended": {reason: ended.count(reason) for reason in set(ended)},
        }

    async def arrange(self, groups: int) -> Answer:
        """See the servers."""
        await self._server.arrange(groups)
        return await self.state()

    async def size(self, size_bytes: int) -> Answer:
        """Let an echo's responses be that large."""
        assert isinstance(self._server, Echo)
        self._server.size(size_bytes)
        return {}

    async def push(self, pushes: int, streams: int) -> Answer:
        """Change something, wait for every answer; so many times."""
        acks, wall_s, latencies_s = self._server.acks, [], []
        cpu_s = 0.0
        for _ in range(pushes):
            self._server.draw()
            acks.expect(streams)
            begun_cpu_s = _cpu_s()
            changed_s = time.perf_counter()
            await self._server.push()
            await acks.wait()
            cpu_s += _cpu_s() - begun_cpu_s
            latencies_s += [at - changed_s for at in acks.at_s]
            wall_s.append(max(acks.at_s) - changed_s)
        return {
            "cpu_us": 1e6 * cpu_s / (pushes * streams),
            "wall_ms": 1e3 * float(np.median(wall_s)),
            "p50_ms": 1e3 * float(np.percentile(latencies_s, 50)),
            "p99_ms": 1e3 * float(np.percentile(latencies_s, 99)),
        }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _run(kind: str, shape: Shape, port: int) -> None:
    server: Ours | Echo = Ours(shape, port) if kind == "ours" else Echo()
    commands = Commands(server)
    async with server.serving(port):
        collector.tune()
        if kind == "echo":
            gc.disable()
        await answering(
            {
                "state": commands.state,
                "arrange": commands.arrange,
                "size": commands.size,
                "push": commands.push,
            }
        )


def main() -> None:
    """Serve on the port named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("ours", "echo"))
    parser.add_argument("port", type=int)
    parser.add_argument("--providers", type=int, default=10)
    parser.add_argument("--name-bytes", type=int, default=12)
    options = parser.parse_args()
    configure_logging("json", "error")  # as ``serve`` does, but for the 100 stalls
    shape = Shape(options.providers, options.name_bytes)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(options.kind, shape, options.port))


if __name__ == "__main__":
    main()
