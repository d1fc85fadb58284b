"""What a recorder is told, in the order in which it happened."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from xds_server.model.ids import ResourceName, TypeUrl
from xds_server.model.snapshot import Node, Snapshot
from xds_server.protocol.messages import Response
from xds_server.protocol.quarantine import Refusal


@dataclass(frozen=True, slots=True)
class Settings:
    """All that a stream's machine was built with."""

    protocol: str  # "sotw" or "delta"
    only: TypeUrl | None  # type of a stream that is not aggregated
    drain_s: float


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream's node is known. ``shared`` numbers the quarantine; ``refused`` copies it."""

    n: int
    stream_id: int
    at_s: float
    wall_s: float
    settings: Settings
    node: Node
    shared: int
    refused: Mapping[tuple[TypeUrl, ResourceName], Refusal]


@dataclass(frozen=True, slots=True)
class Received:
    """The machine got a request."""

    n: int
    stream_id: int
    at_s: float
    body: bytes


@dataclass(frozen=True, slots=True)
class Polled:
    """The machine was asked what to send."""

    n: int
    stream_id: int
    at_s: float
    snapshot: Snapshot
    heartbeat: bool
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """The stream ended."""

    n: int
    stream_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Cut:
    """The tape ends before its stream does."""

    n: int
    stream_id: int
    reason: str


Call: TypeAlias = Opened | Received | Polled | Closed | Cut
