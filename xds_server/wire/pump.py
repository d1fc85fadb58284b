"""One stream: bytes in, bytes out, and the state machine between them.

Two tasks share the machine: the reader applies each request as it comes, the writer sends
what ``poll`` says. Requests never wait for pushes. Nothing queues: what is to be sent is the
difference between what the client has and the newest snapshot, so any number of changes while
a client is slow become one response. A client that does not read is ended, not waited for.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import structlog

from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import RTDS, TypeUrl
from xds_server.model.snapshot import Node, Snapshot
from xds_server.ports import Clock
from xds_server.protocol.events import Event, Nacked, Quarantined, UnknownType
from xds_server.protocol.messages import DeltaRequest, Response, SotwRequest
from xds_server.protocol.quarantine import Quarantine
from xds_server.protocol.status import Progress, ResourceState
from xds_server.protocol.stream import StreamMachine
from xds_server.wire.node import read_node

log = structlog.get_logger()

Request: TypeAlias = SotwRequest | DeltaRequest
Decode: TypeAlias = Callable[[bytes], tuple[Request, Any]]
"""Bytes to the request and its Node message; raises RemoteProtocolError."""
LARGE_BYTES = 4 * 2**20
"""Clients built on gRPC's C-core cancel the stream at a larger response, without a word."""


class Handle(Protocol):
    """One stream as the cache knows it."""

    heartbeat_seq: int
    """Grows whenever TTLs are to be extended."""
    quarantine: Quarantine
    """What the node refused, on this stream or on another."""

    def snapshot(self) -> Snapshot:
        """Return what the node should have now."""
        ...

    def subscribe_wakeup(self, event: asyncio.Event) -> None:
        """Set ``event`` whenever the snapshot or ``heartbeat_seq`` changes."""
        ...

    def unsubscribe_wakeup(self, event: asyncio.Event) -> None:
        """Stop that."""
        ...


H = TypeVar("H", bound=Handle)


class Source(Protocol[H]):
    """Where streams get their snapshots."""

    def connect(self, node: Node) -> H:
        """Register a stream of that node. Raises RemoteProtocolError to refuse it."""
        ...

    def disconnect(self, handle: H) -> None:
        """Take back one ``connect``."""
        ...

    def uses_runtime(self, handle: H) -> None:
        """Say that the stream subscribes to RTDS."""
        ...


class Observer(Protocol):
    """Who counts."""

    def opened(self, stream: "Stream") -> None:
        """A node announced itself on a new stream."""
        ...

    def received(self, stream: "Stream", event: Event) -> None:
        """A request meant this."""
        ...

    def sent(self, stream: "Stream", response: Response) -> None:
        """A response was handed to the transport."""
        ...

    def closed(self, stream: "Stream", reason: str) -> None:
        """The stream ended."""
        ...


class Tape(Protocol):
    """Who keeps what happens on streams, in the order in which the state machine saw it."""

    def opened(self, stream: "Stream", node: Node) -> None:
        """The first request is about to be received."""
        ...

    def received(self, stream: "Stream", body: bytes, now_s: float) -> None:
        """A request is about to be received; ``body`` as it came."""
        ...

    def polled(
        self,
        stream: "Stream",
        snapshot: Snapshot,
        now_s: float,
        heartbeat: bool,
        responses: list[Response],
    ) -> None:
        """What was due, and, in the end of ``responses``, heartbeats if it was time for them."""
        ...

    def closed(self, stream: "Stream", reason: str) -> None:
        """The stream ended."""
        ...


class StreamStalledError(Exception):
    """The client did not read for too long."""


class Stream:
    """One discovery stream while it is open; ``only`` is the type of one that has just one."""

    _handle: Any  # of the source's own kind; None before the first request

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
        announced: Callable[["Stream"], None] = lambda _: None,
        tape: Tape | None = None,
    ) -> None:
        self.stream_id = stream_id
        self.protocol, self.only = protocol, only
        self.opened_at_s = clock.now_s()
        self.node: Node | None = None
        self._machine, self._source, self._observer = machine, source, observer
        self._clock, self._write_timeout_s = clock, write_timeout_s
        self._announced, self._tape = announced, tape
        self._handle = None
        self._wake = asyncio.Event()
        self._ended = False
        self._heartbeats_seen = 0
        self._flagged: set[str] = set()  # what is said once per stream

    def progress(self) -> Mapping[str, Progress]:
        """How far the client is, by type URL."""
        return {p.type_url: p for p in self._machine.progress(self._clock.now_s())}

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

    def end(self) -> None:
        """Let the stream finish cleanly, once what it is sending is sent."""
        self._ended = True
        self._wake.set()

    async def run(
        self,
        requests: AsyncIterator[bytes],
        decode: Decode,
        write: Callable[[bytes], Any],
    ) -> None:
        """Serve until the client leaves, errs or stalls.

        Raises RemoteProtocolError when the client broke the rules, StreamStalledError when
        it stopped reading.
        """
        reader = asyncio.create_task(self._read(requests, decode))
        reader.add_done_callback(lambda _: self._wake.set())
        reason = "error"
        try:
            await self._write_until_end(reader, write)
            reason = "drained" if self._ended else "client"
        except RemoteProtocolError:
            reason = "protocol"
            raise
        except StreamStalledError:
            reason = "stalled"
            raise
        except asyncio.CancelledError:
            reason = "client"
            raise
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self._close(reason)

    async def _read(self, requests: AsyncIterator[bytes], decode: Decode) -> None:
        async for body in requests:
            request, node_message = decode(body)
            if self._handle is None:
                self._announce(node_message)
            elif node_message.id and self.node and node_message.id != self.node.node_id:
                self._flag("xds.node_changed", other=node_message.id[:200])
            now_s = self._clock.now_s()
            if self._tape is not None:
                self._tape.received(self, body, now_s)
            self._apply(request, now_s)
            self._wake.set()

    def _announce(self, node_message: Any) -> None:
        node = read_node(node_message)
        if not node.node_id:
            raise RemoteProtocolError("the first request of a stream needs node.id")
        self._handle = self._source.connect(node)
        self._heartbeats_seen = self._handle.heartbeat_seq
        self.node = node
        self._machine.use(self._handle.quarantine)
        self._handle.subscribe_wakeup(self._wake)
        self._observer.opened(self)
        self._announced(self)
        if self._tape is not None:
            self._tape.opened(self, node)

    def _flag(self, event: str, key: str = "", **facts: object) -> None:
        """Log something that may repeat, once per stream."""
        if event + key not in self._flagged:
            self._flagged.add(event + key)
            node_id = self.node.node_id if self.node else ""
            log.warning(event, node_id=node_id, stream_id=self.stream_id, **facts)

    def _apply(self, request: Request, now_s: float) -> None:
        runtime_before = self._machine.subscribes_to(RTDS)
        for event in self._machine.receive(request, now_s):
            self._observer.received(self, event)
            self._report(event)
        if self._handle and not runtime_before and self._machine.subscribes_to(RTDS):
            self._source.uses_runtime(self._handle)

    def _report(self, event: Event) -> None:
        node_id = self.node.node_id if self.node else ""
        facts = {"node_id": node_id, "stream_id": self.stream_id}
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

    async def _write_until_end(
        self, reader: asyncio.Task[None], write: Callable[[bytes], Any]
    ) -> None:
        while True:
            self._wake.clear()
            if reader.done():
                reader.result()  # raises what the reader raised
                return
            for response in self._due():
                await self._send(response, write)
            if self._ended:
                return
            await self._wait()

    def _due(self) -> list[Response]:
        if self._handle is None:
            return []
        now_s, snapshot = self._clock.now_s(), self._handle.snapshot()
        responses = self._machine.poll(snapshot, now_s)
        heartbeat = self._handle.heartbeat_seq != self._heartbeats_seen
        if heartbeat:
            self._heartbeats_seen = self._handle.heartbeat_seq
            responses += self._machine.heartbeat(snapshot, now_s)
        if self._tape is not None:
            self._tape.polled(self, snapshot, now_s, heartbeat, responses)
        return responses

    async def _send(self, response: Response, write: Callable[[bytes], Any]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await write(response.payload)
        except TimeoutError:
            raise StreamStalledError from None
        self._observer.sent(self, response)
        if response.unwedge:
            node_id = self.node.node_id if self.node else ""
            log.warning(
                "xds.unwedged",
                node_id=node_id,
                stream_id=self.stream_id,
                clusters=response.names[:16],
            )
        if len(response.payload) > LARGE_BYTES:
            size = len(response.payload)
            self._flag(
                "xds.large_response", response.type_url, type_url=response.type_url, size_bytes=size
            )

    async def _wait(self) -> None:
        now_s = self._clock.now_s()
        deadline = self._machine.next_deadline_s(now_s)
        if deadline is None:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(max(deadline - now_s, 0.0) + 0.001):
                await self._wake.wait()
        except TimeoutError:
            return

    def _close(self, reason: str) -> None:
        if self._handle is not None and self.node is not None:
            self._handle.unsubscribe_wakeup(self._wake)
            self._source.disconnect(self._handle)
            self._handle = None
            self._observer.closed(self, reason)
            if self._tape is not None:
                self._tape.closed(self, reason)
