"""How telemetry is taken in, whichever source brings it.

What a message passes is the same for all: its stream's pace and size, who speaks, and the
tally and log of what is refused. A source is a ``Reader``, which says how its messages are
read and where they go.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias, TypeVar

import grpc
import structlog

from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import NodeId
from xds_server.ports import Clock
from xds_server.telemetry.messages import MESSAGE_MAX_BYTES
from xds_server.wire.bounds import OversizedError, Pace, Paces
from xds_server.wire.node import parse_node
from xds_server.wire.speaker import Speaker, SpeakerRefusedError, Speakers

log = structlog.get_logger()

WAITING: Final = "no ADS stream"
WRONG: Final = "wrong node"
RATE: Final = "rate"
OVERSIZED: Final = "oversized"
MALFORMED: Final = "malformed"
Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
_M = TypeVar("_M")


class Tally(Protocol):
    """Who counts what arrives."""

    def telemetry(self, source: str, *, messages: int, samples: int) -> None:
        """Messages were decoded."""
        ...

    def telemetry_refused(self, source: str, reason: str, count: int = 1) -> None:
        """Messages, values or a stream were refused."""
        ...

    def telemetry_event(self, source: str, event: str) -> None:
        """A message was taken in that did not follow from the one before."""
        ...


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a message of who may speak."""

    samples: int = 0  # that were read
    refused: Mapping[str, int] = field(default_factory=dict)  # what does not count, by why
    events: Sequence[str] = ()  # how it did not follow from the one before
    messages: int = 1  # 0: it was not decoded

    @classmethod
    def nothing(cls, why: str) -> "Taken":
        """Nothing of it counts."""
        return cls(refused={why: 1}, messages=0)


class Reader(Protocol[_M]):
    """What one source does with the messages of one stream, or with one call."""

    def parse(self, body: bytes) -> _M:
        """Read a message. Raises RemoteProtocolError when it is none."""
        ...

    def node_id(self, message: _M) -> NodeId:
        """Say for whom the stream speaks, by its first message. Raises RemoteProtocolError."""
        ...

    def take(self, message: _M, node_id: NodeId, now_s: float) -> Taken:
        """Hand over what a message says. Raises RemoteProtocolError when it is none."""
        ...

    def wait(self, message: _M, node_id: NodeId, now_s: float) -> None:
        """See a message that does not count, since its stream may speak only later."""
        return

    def leave(self, node_id: NodeId) -> None:
        """The stream ended; ``node_id`` is "" if it never said."""
        return


class Intake:
    """One source's; ``interval_s`` is how often sidecars are configured to send.

    It is read when a stream opens, which a reload does not change for open ones.
    """

    def __init__(
        self,
        source: str,
        tally: Tally,
        clock: Clock,
        speakers: Speakers,
        interval_s: Callable[[], float],
    ) -> None:
        self._source, self._tally, self._clock = source, tally, clock
        self._speakers, self._interval_s = speakers, interval_s
        self._paces = Paces()

    async def stream(
        self,
        messages: AsyncIterator[bytes],
        context: Context,
        reader: Reader[_M],
        greeting: bytes = b"",
    ) -> None:
        """Read a stream to its end; who may speak, or may later, is greeted first."""
        try:
            await self._receive(messages, context, reader, greeting)
        except (SpeakerRefusedError, RemoteProtocolError) as error:
            await self._refuse(error, context)

    async def call(self, body: bytes, context: Context, reader: Reader[_M]) -> None:
        """Read a call of its own; its pace is its connection's."""
        try:
            pace = self._paces.of(context.peer(), self._pace)
            if not pace.take(len(body), self._clock.now_s()):
                self._too_fast("", pace, context)
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many messages")
            message = reader.parse(body)
            node_id = reader.node_id(message)
            self._take(message, self._speakers.of(context, node_id, grace_s=0.0), node_id, reader)
        except (SpeakerRefusedError, RemoteProtocolError) as error:
            await self._refuse(error, context)

    async def _receive(
        self,
        messages: AsyncIterator[bytes],
        context: Context,
        reader: Reader[_M],
        greeting: bytes,
    ) -> None:
        pace = self._pace()
        node_id = ""
        speaker: Speaker | None = None
        try:
            async for body in messages:
                if not pace.take(len(body), self._clock.now_s()):
                    self._too_fast(node_id, pace, context)
                    await self._clock.sleep_s(pace.gap_s)
                    continue
                message = reader.parse(body)
                if speaker is None:
                    node_id = reader.node_id(message)
                    speaker = self._speakers.of(context, node_id)
                    if greeting:
                        speaker.may()  # who never may gets no answer
                        await context.write(greeting)
                self._take(message, speaker, node_id, reader)
        finally:
            reader.leave(node_id)

    def _pace(self) -> Pace:
        return Pace(self._interval_s(), MESSAGE_MAX_BYTES)

    def _take(self, message: _M, speaker: Speaker, node_id: NodeId, reader: Reader[_M]) -> None:
        now_s = self._clock.now_s()
        if not speaker.may():
            self._tally.telemetry_refused(self._source, WAITING)
            reader.wait(message, node_id, now_s)
            return
        taken = reader.take(message, node_id, now_s)
        if taken.messages:
            self._tally.telemetry(self._source, messages=taken.messages, samples=taken.samples)
        for reason, count in taken.refused.items():
            self._tally.telemetry_refused(self._source, reason, count)
        for event in taken.events:
            self._tally.telemetry_event(self._source, event)

    def _too_fast(self, node_id: NodeId, pace: Pace, context: Context) -> None:
        self._tally.telemetry_refused(self._source, RATE)
        if pace.lost == 1:
            log.warning(
                "telemetry.too_fast",
                source=self._source,
                node_id=node_id[:200],
                peer=context.peer(),
            )

    async def _refuse(
        self, error: SpeakerRefusedError | RemoteProtocolError, context: Context
    ) -> None:
        """Count, log (the log bounds its lines) and end that stream alone; raises gRPC's abort."""
        reason, event, code = MALFORMED, "telemetry.refused", grpc.StatusCode.INVALID_ARGUMENT
        if isinstance(error, SpeakerRefusedError):
            code = grpc.StatusCode.PERMISSION_DENIED
            reason, event = WRONG, "telemetry.wrong_node"
        elif isinstance(error, OversizedError):
            reason = OVERSIZED
        said = str(error)[:1000]
        self._tally.telemetry_refused(self._source, reason)
        log.warning(event, source=self._source, reason=said, peer=context.peer())
        await context.abort(code, said)


def announced(node: bytes, key: str) -> NodeId:
    """Return the id of a serialised Node; RemoteProtocolError, which names ``key``, without."""
    node_id = parse_node(node).node_id
    if not node_id:
        raise RemoteProtocolError(f"the first message of a stream needs {key}")
    return node_id
