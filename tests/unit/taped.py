"""Conversations whose every call is recorded, as the pump does it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from tests.unit.client import Client
from xds_server.app.replay import Outcome, build_machine
from xds_server.model.ids import TypeUrl
from xds_server.model.snapshot import Node, Snapshot
from xds_server.observability import Metrics
from xds_server.protocol.events import Event
from xds_server.protocol.messages import DeltaRequest, Response, SotwRequest
from xds_server.protocol.quarantine import Quarantine
from xds_server.wire.tape.calls import Settings
from xds_server.wire.tape.recorder import TapeRecorder

MIB = 2**20


class StillClock:
    def now_s(self) -> float:
        return 0.0

    def wall_s(self) -> float:
        return 1_790_000_000.0

    async def sleep_s(self, duration_s: float) -> None: ...


@dataclass
class TapedStream:
    """A stream's machine that tells a tape what it is told; looks like the pump's Stream."""

    tape: TapeRecorder
    stream_id: int
    protocol: str
    only: TypeUrl | None = None
    drain_s: float = 0.0
    quarantine: Quarantine = field(default_factory=Quarantine)
    node_id: str = "n1"

    def __post_init__(self) -> None:
        self.machine = build_machine(Settings(self.protocol, self.only, self.drain_s))
        self.machine.use(self.quarantine)
        self.progress = self.machine.progress
        self.tape.opened(self, Node(self.node_id, "shop", metadata={"a": [1, None]}))

    def receive(self, request: SotwRequest | DeltaRequest, now_s: float) -> list[Event]:
        self.tape.received(self, encoded(request), now_s)
        return self.machine.receive(request, now_s)

    def poll(self, snapshot: Snapshot, now_s: float) -> list[Response]:
        responses = self.machine.poll(snapshot, now_s)
        self.tape.polled(self, snapshot, now_s, False, responses)
        return responses

    def heartbeat(self, snapshot: Snapshot, now_s: float) -> list[Response]:
        responses = self.machine.poll(snapshot, now_s)
        responses += self.machine.heartbeat(snapshot, now_s)
        self.tape.polled(self, snapshot, now_s, True, responses)
        return responses

    def close(self, reason: str = "client") -> None:
        self.tape.closed(self, reason)


def encoded(request: SotwRequest | DeltaRequest) -> bytes:
    """As a client would have sent it."""
    message: Any
    if isinstance(request, SotwRequest):
        message = discovery_pb2.DiscoveryRequest(
            resource_names=request.names, version_info=request.version_info
        )
    else:
        message = discovery_pb2.DeltaDiscoveryRequest(
            resource_names_subscribe=request.subscribe,
            resource_names_unsubscribe=request.unsubscribe,
            initial_resource_versions=dict(request.initial_versions),
        )
    message.type_url, message.response_nonce = request.type_url, request.response_nonce
    if request.error is not None:
        message.error_detail.message = request.error
        message.error_detail.code = 3
    return bytes(message.SerializeToString())


@contextmanager
def recording(folder: Path, **settings: Any) -> Iterator[TapeRecorder]:
    """Record until the block ends; then everything is written."""
    settings = {"max_bytes": 64 * MIB} | settings
    metrics = settings.pop("metrics", None) or Metrics()
    tape = TapeRecorder(folder, metrics, StillClock(), **settings)
    try:
        yield tape
    finally:
        tape.close()


def taped_client(tape: TapeRecorder, *, delta: bool, stream_id: int = 1, **settings: Any) -> Client:
    client = Client(delta)
    protocol = "delta" if delta else "sotw"
    client.stream = TapedStream(tape, stream_id, protocol, **settings)  # type: ignore[assignment]
    return client


def summary(outcome: Outcome) -> tuple[int, int, str, str]:
    """Requests, responses, why it ended early, and what went wrong."""
    assert outcome.difference is None
    return outcome.requests, outcome.responses, outcome.ended, outcome.unreadable
