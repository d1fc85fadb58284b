"""Where sidecars' statistics arrive: Envoy's metrics service."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import grpc
import structlog

from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import LoadReport, SampleBatch
from xds_server.ports import Clock
from xds_server.telemetry.counters import TWICE, Bases
from xds_server.telemetry.layout import Layouts
from xds_server.telemetry.metrics import MESSAGE_MAX_BYTES, MetricsDecoder, parse_metrics
from xds_server.telemetry.turns import Caller
from xds_server.wire.bounds import OVERSIZED, RATE, OversizedError, Pace
from xds_server.wire.node import parse_node
from xds_server.wire.speaker import WAITING, Speaker, SpeakerRefusedError, Speakers, refuse

log = structlog.get_logger()

SOURCE = "metrics_service"
SERVICE = "envoy.service.metrics.v3.MetricsService"
Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]


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

    def observe_load(self, node_id: NodeId, reports: list[LoadReport], now_s: float) -> None:
        """Take in what providers said of themselves."""
        ...


class Tally(Protocol):
    """Who counts what arrives."""

    def telemetry(self, source: str, *, messages: int, samples: int, dropped: int = 0) -> None:
        """One message was decoded; ``dropped`` are values whose reason is not said apart."""
        ...

    def telemetry_refused(self, source: str, reason: str, count: int = 1) -> None:
        """Messages, values or a stream were refused."""
        ...

    def telemetry_event(self, source: str, event: str) -> None:
        """A message was taken in that did not follow from the one before."""
        ...


class MetricsService:
    """Client-streaming: messages go straight into the sink's arrays, nothing queues.

    ``interval_s`` is how often sidecars are configured to report; it is read when a stream
    opens. ``bases`` are where each node's counters are.
    """

    def __init__(
        self,
        sink: Sink,
        tally: Tally,
        clock: Clock,
        speakers: Speakers,
        interval_s: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._sink, self._tally, self._clock = sink, tally, clock
        self._speakers, self._interval_s = speakers, interval_s
        self.bases, self._layouts = Bases(), Layouts()
        self._ids = itertools.count(1)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"StreamMetrics": grpc.stream_unary_rpc_method_handler(self._stream)}
        )

    async def _stream(self, messages: Any, context: Context) -> bytes:
        try:
            await self._receive(messages, context)
        except SpeakerRefusedError as error:
            await refuse(error, SOURCE, context, self._tally)
        except RemoteProtocolError as error:
            reason = OVERSIZED if isinstance(error, OversizedError) else "malformed"
            self._tally.telemetry_refused(SOURCE, reason)
            log.warning("telemetry.refused", source=SOURCE, reason=str(error)[:500])
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])
        return b""

    async def _receive(self, messages: Any, context: Context) -> None:
        pace = Pace(self._interval_s(), MESSAGE_MAX_BYTES)
        caller = Caller(context.peer(), next(self._ids))
        node_id, speaker = "", None
        decoder = MetricsDecoder(self.bases, self._sink.providers, self._layouts)
        try:
            async for body in messages:
                if not pace.take(len(body), self._clock.now_s()):
                    self._too_fast(node_id, pace)
                    await self._clock.sleep_s(pace.gap_s)
                    continue
                if speaker is None:
                    node_id, speaker = self._first(body, context)
                if not speaker.may():  # its counters are not lost: a later message has them
                    self._tally.telemetry_refused(SOURCE, WAITING)
                    decoder.hold(body, node_id, self._clock.now_s())
                elif self.bases.turn(node_id, caller, self._interval_s(), self._clock.now_s()):
                    self._take(decoder, body, node_id)
                else:
                    self._tally.telemetry_refused(SOURCE, TWICE)
                    decoder.release()
        finally:
            self.bases.leave(node_id, caller)

    def _first(self, body: bytes, context: Context) -> tuple[NodeId, Speaker]:
        node_id = parse_node(parse_metrics(body).identifier.node).node_id
        if not node_id:
            raise RemoteProtocolError("the first message of a stream needs identifier.node")
        return node_id, self._speakers.of(context, node_id)

    def _too_fast(self, node_id: NodeId, pace: Pace) -> None:
        self._tally.telemetry_refused(SOURCE, RATE)
        if pace.lost == 1:
            log.warning("telemetry.too_fast", source=SOURCE, node_id=node_id[:200])

    def _take(self, decoder: MetricsDecoder, body: bytes, node_id: NodeId) -> None:
        now_s = self._clock.now_s()
        decoder.use(self._sink.providers)  # a reload may change them
        batch = decoder.decode(body, node_id, now_s)
        self._tally.telemetry(SOURCE, messages=1, samples=decoder.samples)
        for reason, count in decoder.refused.items():
            self._tally.telemetry_refused(SOURCE, reason, count)
        for event in decoder.events:
            self._tally.telemetry_event(SOURCE, event)
        self._sink.observe_hosts(node_id, decoder.hosts, now_s)
        if batch is not None:
            self._sink.observe(batch, now_s)
