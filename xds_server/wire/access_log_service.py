"""Where sidecars' sampled calls arrive: Envoy's gRPC access log."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import grpc
import structlog

from xds_server.errors import RemoteProtocolError
from xds_server.generated import xds_server_access_log_pb2 as pb
from xds_server.model.calls import CallBatch
from xds_server.model.ids import NodeId, ProviderName
from xds_server.ports import Clock
from xds_server.telemetry.access_log import MESSAGE_MAX_BYTES, parse_access_log, read_calls
from xds_server.wire.bounds import OVERSIZED, RATE, OversizedError, Pace
from xds_server.wire.metrics_service import Tally
from xds_server.wire.node import parse_node
from xds_server.wire.speaker import WAITING, Speaker, SpeakerRefusedError, Speakers, refuse

log = structlog.get_logger()

SOURCE = "access_log"
SERVICE = "envoy.service.accesslog.v3.AccessLogService"
Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]


class CallSink(Protocol):
    """Who takes sampled calls in; the registry."""

    @property
    def providers(self) -> frozenset[ProviderName]:
        """Whose calls count."""
        ...

    def observe_calls(self, batch: CallBatch, now_s: float) -> None:
        """Take in a node's sampled calls."""
        ...


class AccessLogService:
    """Client-streaming, a stream per worker thread: calls are added up as they come.

    Loss policy: it is a sample, so what comes beyond the pace or before the node's ADS stream
    is dropped and counted, and nothing makes up for it. ``interval_s`` is how often sidecars
    are configured to send; it is read when a stream opens.
    """

    def __init__(
        self,
        sink: CallSink,
        tally: Tally,
        clock: Clock,
        speakers: Speakers,
        interval_s: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._sink, self._tally, self._clock = sink, tally, clock
        self._speakers, self._interval_s = speakers, interval_s

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"StreamAccessLogs": grpc.stream_unary_rpc_method_handler(self._stream)}
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
        node_id = ""
        speaker: Speaker | None = None
        async for body in messages:
            if not pace.take(len(body), self._clock.now_s()):
                self._too_fast(node_id, pace)
                await self._clock.sleep_s(pace.gap_s)
                continue
            message = parse_access_log(body)
            if speaker is None:
                node_id = parse_node(message.identifier.node).node_id
                if not node_id:
                    raise RemoteProtocolError("the first message of a stream needs identifier.node")
                speaker = self._speakers.of(context, node_id)
            if speaker.may():
                self._take(message, node_id)
            else:
                self._tally.telemetry_refused(SOURCE, WAITING)

    def _too_fast(self, node_id: NodeId, pace: Pace) -> None:
        self._tally.telemetry_refused(SOURCE, RATE)
        if pace.lost == 1:
            log.warning("telemetry.too_fast", source=SOURCE, node_id=node_id[:200])

    def _take(self, message: pb.StreamAccessLogsMessage, node_id: NodeId) -> None:
        batch, refused = read_calls(message, node_id, self._sink.providers)
        calls = int(batch.counts[:, 0].sum()) + refused.total()
        self._tally.telemetry(SOURCE, messages=1, samples=calls)
        for reason, count in refused.items():
            self._tally.telemetry_refused(SOURCE, reason, count)
        self._sink.observe_calls(batch, self._clock.now_s())
