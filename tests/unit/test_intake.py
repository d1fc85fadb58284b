"""A source of telemetry needs a reader; all else is the intake's."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog

from tests.e2e.plane import WallClock
from tests.e2e.telemetry import Tally
from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import NodeId
from xds_server.wire.bounds import BURST, PACES_MAX, Pace, Paces
from xds_server.wire.intake import Intake, Reader, Taken
from xds_server.wire.speaker import Speakers

PEER = "ipv4:10.0.0.1:5555"


class Clock(WallClock):
    """Time passes only for who sleeps."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s

    async def sleep_s(self, duration_s: float) -> None:
        self.at_s += duration_s


class AbortError(Exception):
    """gRPC ends a call by raising."""


class Call:
    """A call, and what its other side gets."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.code: grpc.StatusCode | None = None

    def peer(self) -> str:
        return PEER

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    async def write(self, body: bytes) -> None:
        self.written.append(body)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        raise AbortError(details)


class Words(Reader[str]):
    """``node word``; the word is the sample."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.waited: list[str] = []
        self.left: list[NodeId] = []

    def parse(self, body: bytes) -> str:
        if not body.isascii():
            raise RemoteProtocolError("no word")
        return body.decode()

    def node_id(self, message: str) -> NodeId:
        return message.split()[0]

    def take(self, message: str, node_id: NodeId, now_s: float) -> Taken:
        word = message.split()[1]
        if word == "again":
            return Taken.nothing("again")
        self.taken.append(word)
        return Taken(samples=1, refused={"long": int(len(word) > 3)}, events=[word])

    def wait(self, message: str, node_id: NodeId, now_s: float) -> None:
        self.waited.append(message.split()[1])

    def leave(self, node_id: NodeId) -> None:
        self.left.append(node_id)


class World:
    """One source whose peer's ADS stream is node ``a``'s."""

    def __init__(self) -> None:
        self.clock, self.tally, self.words, self.call = Clock(), Tally(), Words(), Call()
        self.speakers = Speakers(self.clock)
        self.speakers.opened(1, "a", PEER, None)
        self.intake = Intake("words", self.tally, self.clock, self.speakers, lambda: 1.0)

    async def stream(self, *bodies: bytes, greeting: bytes = b"") -> None:
        async def messages() -> AsyncIterator[bytes]:
            for body in bodies:
                yield body

        context: Any = self.call
        await self.intake.stream(messages(), context, self.words, greeting)

    async def once(self, body: bytes) -> None:
        context: Any = self.call
        await self.intake.call(body, context, self.words)


async def test_what_is_taken_is_counted_with_what_of_it_is_not() -> None:
    world = World()
    await world.stream(b"a one", b"a again", b"a longer", greeting=b"hello")
    assert world.words.taken == ["one", "longer"]
    assert world.tally.counted == {"words messages": 2, "words samples": 2}
    assert +world.tally.refused == {"words again": 1, "words long": 1}
    assert world.tally.events == {"words one": 1, "words longer": 1}
    assert (world.call.written, world.words.left) == ([b"hello"], ["a"])


async def test_who_may_speak_later_is_greeted_and_waits_and_who_never_may_is_not() -> None:
    world = World()
    world.speakers.closed(1)
    world.clock.at_s = 60.0
    await world.stream(b"a one", greeting=b"hello")
    await world.once(b"a two")
    assert (world.words.waited, world.words.taken) == (["one", "two"], [])
    assert world.tally.refused == {"words no ADS stream": 2}
    assert world.call.written == [b"hello"]
    world = World()
    with pytest.raises(AbortError, match="announced node 'a'"):
        await world.stream(b"b one", greeting=b"hello")
    assert world.call.code is grpc.StatusCode.PERMISSION_DENIED
    assert (world.call.written, world.words.left) == ([], ["b"])


@pytest.mark.parametrize(
    ("body", "reason"), [(b"\xff", "malformed"), (bytes(2**23 + 1), "oversized")]
)
@pytest.mark.parametrize("how", ["stream", "once"])
async def test_what_is_no_message_ends_that_call_alone(how: str, body: bytes, reason: str) -> None:
    world = World()
    with structlog.testing.capture_logs() as logs, pytest.raises(AbortError):
        await getattr(world, how)(body)
    assert world.call.code is grpc.StatusCode.INVALID_ARGUMENT
    assert world.tally.refused == {f"words {reason}": 1}
    (line,) = logs
    assert (line["event"], line["source"], line["peer"]) == ("telemetry.refused", "words", PEER)
    world.call.code = None
    await world.stream(b"a one")
    assert world.call.code is None


async def test_a_stream_that_is_too_fast_is_slowed_down_and_named_once() -> None:
    world = World()
    with structlog.testing.capture_logs() as logs:
        await world.stream(*[b"a one"] * (3 * int(BURST)))
    taken, lost = len(world.words.taken), world.tally.refused["words rate"]
    assert taken + lost == 3 * int(BURST)
    assert taken >= int(BURST)
    assert world.clock.at_s == pytest.approx(lost / 20.0)
    (line,) = logs
    assert (line["event"], line["node_id"]) == ("telemetry.too_fast", "a")


def test_paces_of_connections_are_bounded() -> None:
    paces = Paces()

    def start() -> Pace:
        return Pace(1.0, 2**20)

    first = paces.of("0", start)
    for i in range(1, PACES_MAX):
        paces.of(str(i), start)
    assert paces.of("0", start) is first
    second = paces.of("1", start)
    paces.of("one more", start)
    assert paces.of("1", start) is second
    assert paces.of("0", start) is first
    assert len(paces._paces) == PACES_MAX
