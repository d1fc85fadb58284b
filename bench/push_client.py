"""Many cheap delta clients: bytes in, hand-joined ACKs out. A child of ``bench.push``.

Each has a connection of its own. What a response is about is read off its last bytes: the
server writes ``type_url`` and ``nonce`` last.
"""

import argparse
import asyncio
import gc
from typing import Any

import grpc
import uvloop
from envoy.config.core.v3 import base_pb2

from bench.children import Answer, Commands, answering
from xds_server.model.ids import RDS, RTDS
from xds_server.protocol.framing import field, text

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
NAMES = {RDS: "shop.search", RTDS: "weights"}
CONNECT_AT_ONCE = 64
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_receive_message_length", 2**24),
)
_TAILS = {text(4, url): text(2, url) for url in (RDS, RTDS)}


def subscription(type_url: str, index: int | None = None) -> bytes:
    """A DeltaDiscoveryRequest for the one resource of that type; with a node to begin with."""
    node = b""
    if index is not None:
        node = base_pb2.Node(id=f"node-{index}", cluster="shop").SerializeToString()
    return (field(1, node) if node else b"") + text(2, type_url) + text(3, NAMES[type_url])


def answer(response: bytes) -> bytes:
    """The ACK of a response. Raises ValueError for one that does not end as expected."""
    for size in range(1, 10):
        frame = response[-size - 2 :]
        if frame[:2] == bytes((0x2A, size)):
            for tail, type_field in _TAILS.items():
                if response.endswith(tail, 0, len(response) - len(frame)):
                    return type_field + field(6, frame[2:])
    raise ValueError(f"unexpected response: {response[-80:]!r}")


class Clients:
    """All clients of one server."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._calls: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.received = 0

    async def connect(self, count: int, type_url: str) -> Answer:
        """Open that many streams, each on its connection, that ask for one type."""
        at_once = asyncio.Semaphore(CONNECT_AT_ONCE)

        async def one(index: int) -> Any:
            async with at_once:
                channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
                call: Any = channel.stream_stream(METHOD)()
                await call.write(subscription(type_url, index))
                return call

        first = len(self._calls)
        calls = await asyncio.gather(*(one(first + i) for i in range(count)))
        self._calls += calls
        gc.freeze()
        gc.disable()
        return {"streams": len(self._calls)}

    async def read(self, first: int, last: int) -> Answer:
        """Let these streams read from now on; the others never do."""
        self._tasks += [asyncio.create_task(self._read(c)) for c in self._calls[first:last]]
        return {"readers": len(self._tasks)}

    async def _read(self, call: Any) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            self.received += 1
            await call.write(answer(response))

    async def subscribe(self, type_url: str, first: int, last: int) -> Answer:
        """Ask for one more type on these streams."""
        request = subscription(type_url)
        await asyncio.gather(*(call.write(request) for call in self._calls[first:last]))
        return {}


def main() -> None:
    """Connect to the server named on the command line, and do as told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    clients = Clients(parser.parse_args().target)
    commands: Commands = {
        "connect": clients.connect,
        "read": clients.read,
        "subscribe": clients.subscribe,
    }
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(answering(commands))


if __name__ == "__main__":
    main()
