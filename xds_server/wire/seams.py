"""What a stream stands between: the transport, the source of snapshots, and who looks on."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from xds_server.model.snapshot import Node, Snapshot
from xds_server.ports import Wakeup
from xds_server.protocol.events import Event
from xds_server.protocol.messages import DeltaRequest, Response, SotwRequest
from xds_server.protocol.quarantine import Quarantine

if TYPE_CHECKING:
    from xds_server.wire.pump import Stream

Request: TypeAlias = SotwRequest | DeltaRequest
Decode: TypeAlias = Callable[[bytes], tuple[Request, Any]]
"""Bytes to the request and its Node message, or None; raises RemoteProtocolError."""
Read: TypeAlias = Callable[[], Awaitable[Any]]
"""The next request's bytes; ``grpc.aio.EOF`` when there are no more."""
Write: TypeAlias = Callable[[bytes], Any]
"""Returns when the transport has taken the bytes."""


class Handle(Protocol):
    """One stream as the cache knows it."""

    heartbeat_seq: int
    """Grows whenever TTLs are to be extended."""
    quarantine: Quarantine
    """What the node refused, on this stream or on another."""

    def snapshot(self) -> Snapshot:
        """Return what the node should have now."""
        ...

    def subscribe_wakeup(self, wakeup: Wakeup) -> None:
        """Set ``wakeup`` whenever the snapshot or ``heartbeat_seq`` changes."""
        ...

    def unsubscribe_wakeup(self, wakeup: Wakeup) -> None:
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

    def waiting(self, streams: int) -> None:
        """So many streams wait to be let in."""
        ...

    def refused(self, reason: str) -> None:
        """A stream was refused before a node was known on it."""
        ...

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
