"""One stream: bytes in, bytes out, and the state machine between them.

Two tasks share the machine: the reader applies each request as it comes, the writer sends what
``poll`` says. Requests never wait for pushes. Nothing queues: what is to be sent is the
difference between what the client has and the newest snapshot, so any number of changes while a
client is slow become one response, and one response at a time is handed to the transport. A
client that does not read is ended, not waited for.

What happens at every push and ACK is kept short: no task, timer, callback or log call of its own.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from grpc import StatusCode
from grpc.aio import EOF, BaseError

from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import RTDS, TypeUrl
from xds_server.model.snapshot import Node
from xds_server.ports import Clock
from xds_server.protocol.events import Acked, Event, Nacked, Quarantined, Subscribed, UnknownType
from xds_server.protocol.messages import Response
from xds_server.protocol.quarantine import Quarantine
from xds_server.protocol.status import Progress, ResourceState
from xds_server.protocol.stream import StreamMachine
from xds_server.wire.node import read_node
from xds_server.wire.seams import Decode, Observer, Read, Request, Source, Tape, Write

log = structlog.get_logger()
_root = logging.getLogger()  # has the level that structlog filters by, and answers faster

LARGE_BYTES = 4 * 2**20
"""Clients built on gRPC's C-core cancel the stream at a larger response, without a word."""


class Round:
    """Streams that are to look soon, in one callback of the loop for all of them.

    Bounded by the open streams: each is in it once at most.
    """

    def __init__(self) -> None:
        self._streams: list[Stream] = []

    def join(self, stream: "Stream", loop: asyncio.AbstractEventLoop) -> None:
        """Let a stream look."""
        if not self._streams:
            loop.call_soon(self._run)
        self._streams.append(stream)

    def _run(self) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.wake()


class StreamStalledError(Exception):
    """The client did not read for too long."""


class StreamRefusedError(Exception):
    """The stream is one that the client may not have, or not any more."""

    def __init__(self, code: StatusCode, message: str) -> None:
        self.code = code
        super().__init__(message)


class Stream:
    """One discovery stream while it is open; ``only`` is the type of one that has just one."""

    __slots__ = (
        "_again",
        "_announced",
        "_done",
        "_ended",
        "_flagged",
        "_handle",
        "_heartbeats_seen",
        "_loop",
        "_machine",
        "_now_s",
        "_observer",
        "_outcome",
        "_permit",
        "_responses",
        "_round",
        "_scheduled",
        "_sleeping",
        "_source",
        "_stall_timer",
        "_stalled",
        "_tape",
        "_timer",
        "_write",
        "_write_timeout_s",
        "_writing",
        "_writing_since_s",
        "node",
        "only",
        "opened_at_s",
        "protocol",
        "stream_id",
    )

    def __init__(
        self,
        stream_id: int,
        protocol: str,
        machine: StreamMachine,
        source: Source[Any],
        observer: Observer,
        clock: Clock,
        *,
        write_timeout_s: float,
        only: TypeUrl | None = None,
        permit: Callable[["Stream", Node], None] = lambda *_: None,
        announced: Callable[["Stream"], None] = lambda _: None,
        tape: Tape | None = None,
        round_: Round | None = None,
    ) -> None:
        self.stream_id = stream_id
        self.protocol, self.only = protocol, only
        self.opened_at_s = clock.now_s()
        self.node: Node | None = None
        self._machine, self._source, self._observer = machine, source, observer
        self._now_s, self._write_timeout_s = clock.now_s, write_timeout_s
        self._permit, self._announced, self._tape = permit, announced, tape
        self._handle: Any = None  # of the source's own kind; None before the first request
        self._heartbeats_seen = 0
        self._flagged: set[str] | None = None  # what is said once per stream
        self._ended = self._stalled = False
        self._scheduled = self._again = False  # a look is due: soon, or after this writing
        self._outcome: tuple[str, Exception | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._round = round_ or Round()
        self._responses: list[Response] = []  # for the writer, which does not run yet
        self._sleeping: asyncio.Future[None] | None = None  # the writer, while there are none
        self._writing = False
        self._writing_since_s = 0.0

    def progress(self) -> Mapping[str, Progress]:
        """How far the client is, by type URL."""
        return {p.type_url: p for p in self._machine.progress(self._now_s())}

    def silent(self) -> bool:
        """Whether the client has left a response unanswered for too long."""
        return self._machine.silent(self._now_s())

    def resources(self) -> tuple[ResourceState, ...]:
        """What the client has of everything that it was told."""
        return self._machine.resources()

    @property
    def quarantine(self) -> Quarantine | None:
        """What the node refused; None before it has announced itself."""
        return self._handle.quarantine if self._handle is not None else None

    @property
    def drain_s(self) -> float:
        """How long clusters stay that the client's routes no longer name."""
        return self._machine.drain_s

    @property
    def stalled(self) -> bool:
        """Whether it is over for a client that does not read, and so does not know it yet."""
        return self._stalled

    def end(self) -> None:
        """Let the stream finish cleanly, once what it is sending is sent."""
        self._ended = True
        self.set()

    def refuse(self, reason: str, error: StreamRefusedError) -> None:
        """End the stream with that error, once what it is sending is sent."""
        self._finish(reason, error)

    async def run(self, read: Read, decode: Decode, write: Write) -> None:
        """Serve until the client leaves, errs or stalls.

        Raises RemoteProtocolError when the client broke the rules, StreamRefusedError when it
        was refused, StreamStalledError when it stopped reading, and reads again: before that,
        gRPC can not tell it anything.
        """
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._write = write
        tasks = [
            self._loop.create_task(self._read(read, decode)),
            self._loop.create_task(self._write_what_is_due()),
        ]
        try:
            await self._done
        except asyncio.CancelledError:
            self._outcome = ("client", None)
            raise
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:  # gRPC may cancel the call at this very moment
                self._close(self._outcome[0] if self._outcome else "error")

    # -- reading ---------------------------------------------------------------------

    async def _read(self, read: Read, decode: Decode) -> None:
        try:
            while (body := await read()) is not EOF:
                if self._stalled:
                    continue
                request, node_message = decode(body)
                if self._handle is None:
                    self._announce(node_message)
                elif node_message is not None:
                    self._recognise(node_message)
                now_s = self._now_s()
                if self._tape is not None:
                    self._tape.received(self, body, now_s)
                self._apply(request, now_s)
                self._look(now_s)
        except RemoteProtocolError as error:
            self._finish("protocol", error)
        except Exception as error:  # noqa: BLE001 - ``run`` raises it
            self._finish("error", error)
        else:
            self._finish("client")

    def _recognise(self, node_message: Any) -> None:
        if node_message.id and self.node and node_message.id != self.node.node_id:
            self._flag("xds.node_changed", other=node_message.id[:200])

    def _announce(self, node_message: Any) -> None:
        if node_message is None or not node_message.id:
            raise RemoteProtocolError("the first request of a stream needs node.id")
        node = read_node(node_message)
        self._permit(self, node)
        self._handle = self._source.connect(node)
        self._heartbeats_seen = self._handle.heartbeat_seq
        self.node = node
        self._machine.use(self._handle.quarantine)
        self._handle.subscribe_wakeup(self)
        self._observer.opened(self)
        self._announced(self)
        if self._tape is not None:
            self._tape.opened(self, node)

    def _apply(self, request: Request, now_s: float) -> None:
        for event in self._machine.receive(request, now_s):
            self._observer.received(self, event)
            if type(event) is not Acked or _root.isEnabledFor(logging.DEBUG):
                self._report(event)
            if type(event) is Subscribed and event.type_url == RTDS and self._handle is not None:
                self._source.uses_runtime(self._handle)

    def _flag(self, event: str, key: str = "", **facts: object) -> None:
        """Log something that may repeat, once per stream."""
        if self._flagged is None:
            self._flagged = set()
        if event + key not in self._flagged:
            self._flagged.add(event + key)
            log.warning(event, **self._names(), **facts)

    def _names(self) -> dict[str, object]:
        return {"node_id": self.node.node_id if self.node else "", "stream_id": self.stream_id}

    def _report(self, event: Event) -> None:
        facts = self._names()
        match event:
            case Nacked(type_url, version, names, error):
                log.warning(
                    "xds.nack",
                    type_url=type_url,
                    version_info=version,
                    names=names[:16],
                    error=error[:2000],
                    **facts,
                )
            case Quarantined():
                log.warning(
                    "xds.quarantined",
                    type_url=event.type_url,
                    name=event.name,
                    version_info=event.version,
                    kept_version=event.good_version or None,
                    error=event.error[:2000],
                    **facts,
                )
            case UnknownType(type_url):
                log.info("xds.unknown_type", type_url=type_url[:200], **facts)
            case _:
                log.debug("xds.event", kind=type(event).__name__, type_url=event.type_url, **facts)

    # -- writing ---------------------------------------------------------------------

    def set(self) -> None:
        """Look soon what is due: what the source calls after changes, however many."""
        if not self._scheduled:
            self._scheduled = True
            self._round.join(self, self._loop)

    def wake(self) -> None:
        """Look now: what the round calls."""
        self._scheduled = False
        self._look(self._now_s())

    def _look(self, now_s: float) -> None:
        """Send what is due now; while something is being sent, afterwards."""
        if self._writing:
            self._again = True
            return
        if self._outcome is not None or self._stalled:
            return
        try:
            responses = self._due(now_s)
        except Exception as error:  # noqa: BLE001 - ``run`` raises it
            self._finish("error", error)
            return
        if responses:
            self._again, self._writing, self._responses = False, True, responses
            if self._sleeping is not None:
                self._sleeping.set_result(None)
                self._sleeping = None
        elif self._ended:
            self._finish("drained")

    def _due(self, now_s: float) -> list[Response]:
        handle = self._handle
        if handle is None:
            return []
        snapshot = handle.snapshot()
        responses = self._machine.poll(snapshot, now_s)
        heartbeat = handle.heartbeat_seq != self._heartbeats_seen
        if heartbeat:
            self._heartbeats_seen = handle.heartbeat_seq
            responses += self._machine.heartbeat(snapshot, now_s)
        if self._tape is not None:
            self._tape.polled(self, snapshot, now_s, heartbeat, responses)
        for response in responses:  # a client that does not take it resets the stream
            if (size := len(response.payload)) > LARGE_BYTES:
                url = response.type_url
                self._flag("xds.large_response", url, type_url=url, size_bytes=size)
        deadline_s = self._machine.next_deadline_s(now_s)
        if deadline_s is not None:
            self._look_by(self._loop.time() + max(deadline_s - now_s, 0.0) + 0.001)
        return responses

    def _look_by(self, at_s: float) -> None:
        """Look at that time of the loop; one timer, which may go off earlier, for nothing."""
        if self._timer is not None:
            if self._timer.when() <= at_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at_s, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._look(self._now_s())

    async def _write_what_is_due(self) -> None:
        """Write when there is something, and then what has become due meanwhile."""
        try:
            while True:
                if not self._responses:
                    self._writing = False
                    self._settle()
                    self._sleeping = self._loop.create_future()
                    await self._sleeping
                for response in self._responses:
                    self._writing_since_s = self._loop.time()
                    if self._stall_timer is None:
                        self._watch_writing(self._write_timeout_s)
                    await self._write(response.payload)
                    if self._stalled:
                        self._resolve("stalled", StreamStalledError())
                        return
                    self._sent(response)
                more = self._again and self._outcome is None
                self._again = False
                self._responses = self._due(self._now_s()) if more else []
        except Exception as error:  # noqa: BLE001 - ``run`` raises it
            self._writing = False
            self._finish("client" if isinstance(error, BaseError) else "error", error)

    def _settle(self) -> None:
        """End what was to end once this was written."""
        if self._outcome is not None:
            self._resolve(*self._outcome)
        elif self._ended:
            self._finish("drained")

    def _sent(self, response: Response) -> None:
        self._observer.sent(self, response)
        if response.unwedge:
            log.warning("xds.unwedged", clusters=response.names[:16], **self._names())

    # -- ending ----------------------------------------------------------------------

    def _watch_writing(self, in_s: float) -> None:
        self._stall_timer = self._loop.call_later(in_s, self._still_writing)

    def _still_writing(self) -> None:
        """One timer for all writes: if it goes off in time, it is set again."""
        self._stall_timer = None
        if not self._writing:
            return
        left_s = self._writing_since_s + self._write_timeout_s - self._loop.time()
        if left_s > 0.001:
            self._watch_writing(left_s)
        else:
            # The write stays with gRPC, which takes no other word for the client before that
            # is gone. All else is given back now.
            self._stalled = True
            log.warning("xds.stream_stalled", protocol=self.protocol, **self._names())
            self._close("stalled")

    def _finish(self, reason: str, error: Exception | None = None) -> None:
        """End the stream, after the write that is under way: gRPC takes one thing at a time."""
        if self._outcome is None:
            self._outcome = (reason, error)
        if not self._writing:
            self._resolve(*self._outcome)

    def _resolve(self, reason: str, error: Exception | None) -> None:
        if not self._done.done():
            if error is not None:
                self._done.set_exception(error)
            else:
                self._done.set_result(None)

    def _close(self, reason: str) -> None:
        for timer in (self._timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._stall_timer = None
        if self._handle is not None and self.node is not None:
            self._handle.unsubscribe_wakeup(self)
            self._source.disconnect(self._handle)
            self._handle = None
            self._observer.closed(self, reason)
            if self._tape is not None:
                self._tape.closed(self, reason)
