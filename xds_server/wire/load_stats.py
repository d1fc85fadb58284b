"""Where what providers say of themselves arrives: Envoy's load reporting service."""

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
import structlog
from envoy.service.load_stats.v3 import lrs_pb2

from xds_server.errors import RemoteProtocolError
from xds_server.ports import Clock
from xds_server.telemetry.load import parse_load_stats, read_reports
from xds_server.wire.bounds import OVERSIZED, RATE, OversizedError, Pace
from xds_server.wire.metrics_service import Sink, Tally
from xds_server.wire.node import parse_node
from xds_server.wire.speaker import WAITING, Speaker, SpeakerRefusedError, Speakers, refuse

log = structlog.get_logger()

SOURCE = "load_stats"
MESSAGE_MAX_BYTES = 8 * 2**20
SERVICE = "envoy.service.load_stats.v3.LoadReportingService"
Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]


class LoadReportingService:
    """Bidirectional: one answer that asks for reports, then reports at that interval.

    A report repeats the node's 61 KB, so the interval is long; it is read when a stream
    opens, which a reload does not change for open ones.
    """

    def __init__(
        self,
        sink: Sink,
        tally: Tally,
        clock: Clock,
        speakers: Speakers,
        interval_s: Callable[[], float],
    ) -> None:
        self._sink, self._tally, self._clock = sink, tally, clock
        self._speakers, self._interval_s = speakers, interval_s

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"StreamLoadStats": grpc.stream_stream_rpc_method_handler(self._stream)}
        )

    async def _stream(self, requests: Any, context: Context) -> None:
        try:
            await self._receive(requests, context)
        except SpeakerRefusedError as error:
            await refuse(error, SOURCE, context, self._tally)
        except RemoteProtocolError as error:
            reason = OVERSIZED if isinstance(error, OversizedError) else "malformed"
            self._tally.telemetry_refused(SOURCE, reason)
            log.warning("telemetry.refused", source=SOURCE, reason=str(error)[:500])
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])

    async def _receive(self, requests: Any, context: Context) -> None:
        pace = Pace(self._interval_s(), MESSAGE_MAX_BYTES)
        node_id = ""
        speaker: Speaker | None = None
        async for body in requests:
            if not pace.take(len(body), self._clock.now_s()):
                self._too_fast(node_id, pace)
                await self._clock.sleep_s(pace.gap_s)
                continue
            message = parse_load_stats(body)
            if speaker is None:
                node_id = parse_node(message.node).node_id
                if not node_id:
                    raise RemoteProtocolError("the first request of a stream needs node.id")
                speaker = self._speakers.of(context, node_id)
                speaker.may()  # who never may gets no answer
                await context.write(self._ask())
            if not speaker.may():
                self._tally.telemetry_refused(SOURCE, WAITING)
                continue
            reports, dropped = read_reports(message)
            self._tally.telemetry(SOURCE, messages=1, samples=len(reports))
            for reason, count in dropped.items():
                self._tally.telemetry_refused(SOURCE, reason, count)
            self._sink.observe_load(node_id, reports, self._clock.now_s())

    def _too_fast(self, node_id: str, pace: Pace) -> None:
        self._tally.telemetry_refused(SOURCE, RATE)
        if pace.lost == 1:
            log.warning("telemetry.too_fast", source=SOURCE, node_id=node_id[:200])

    def _ask(self) -> bytes:
        answer = lrs_pb2.LoadStatsResponse(send_all_clusters=True)
        answer.load_reporting_interval.FromNanoseconds(round(self._interval_s() * 1e9))
        body: bytes = answer.SerializeToString()
        return body
