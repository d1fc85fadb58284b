"""Where sidecars' statistics arrive: Envoy's metrics service."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import grpc

from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import SampleBatch
from xds_server.ports import Clock
from xds_server.telemetry.counters import TWICE, Bases
from xds_server.telemetry.layout import Layouts
from xds_server.telemetry.metrics import MetricsDecoder, parse_metrics
from xds_server.telemetry.turns import Caller
from xds_server.wire.intake import Context, Intake, Reader, Taken, Tally, announced
from xds_server.wire.speaker import Speakers

SOURCE = "metrics_service"
SERVICE = "envoy.service.metrics.v3.MetricsService"


class Sink(Protocol):
    """Who takes samples in; the registry."""

    @property
    def providers(self) -> frozenset[ProviderName]:
        """Whose samples count."""
        ...

    def observe(self, batch: SampleBatch, now_s: float) -> None:
        """Take in what a sidecar counted."""
        ...

    def observe_hosts(
        self, node_id: NodeId, hosts: Mapping[ProviderName, float], now_s: float
    ) -> None:
        """Take in how many healthy hosts a sidecar has, by provider."""
        ...


class MetricsService:
    """Client-streaming: messages go straight into the sink's arrays, nothing queues.

    ``bases`` are where each node's counters are.
    """

    def __init__(
        self,
        sink: Sink,
        tally: Tally,
        clock: Clock,
        speakers: Speakers,
        interval_s: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._sink, self._interval_s = sink, interval_s
        self._intake = Intake(SOURCE, tally, clock, speakers, interval_s)
        self.bases, self._layouts = Bases(), Layouts()
        self._ids = itertools.count(1)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"StreamMetrics": grpc.stream_unary_rpc_method_handler(self._stream)}
        )

    async def _stream(self, messages: Any, context: Context) -> bytes:
        caller = Caller(context.peer(), next(self._ids))
        decoder = MetricsDecoder(self.bases, self._sink.providers, self._layouts)
        reader = _Statistics(self._sink, self.bases, decoder, caller, self._interval_s)
        await self._intake.stream(messages, context, reader)
        return b""


class _Statistics(Reader[bytes]):
    """One stream's. Bytes stay bytes: the decoder knows where in them the values are."""

    def __init__(
        self,
        sink: Sink,
        bases: Bases,
        decoder: MetricsDecoder,
        caller: Caller,
        interval_s: Callable[[], float],
    ) -> None:
        self._sink, self._bases, self._decoder = sink, bases, decoder
        self._caller, self._interval_s = caller, interval_s

    def parse(self, body: bytes) -> bytes:
        return body

    def node_id(self, message: bytes) -> NodeId:
        return announced(parse_metrics(message).identifier.node, "identifier.node")

    def wait(self, message: bytes, node_id: NodeId, now_s: float) -> None:
        # Its counters are not lost: a later message has them.
        self._decoder.hold(message, node_id, now_s)

    def take(self, message: bytes, node_id: NodeId, now_s: float) -> Taken:
        decoder = self._decoder
        if not self._bases.turn(node_id, self._caller, self._interval_s(), now_s):
            decoder.release()
            return Taken.nothing(TWICE)
        decoder.use(self._sink.providers)  # a reload may change them
        batch = decoder.decode(message, node_id, now_s)
        self._sink.observe_hosts(node_id, decoder.hosts, now_s)
        if batch is not None:
            self._sink.observe(batch, now_s)
        return Taken(decoder.samples, decoder.refused, decoder.events)

    def leave(self, node_id: NodeId) -> None:
        self._bases.leave(node_id, self._caller)
