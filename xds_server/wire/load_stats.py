"""Where what providers say of themselves arrives: Envoy's load reporting service."""

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
import structlog
from envoy.service.load_stats.v3 import lrs_pb2

from xds_server.errors import RemoteProtocolError
from xds_server.ports import Clock
from xds_server.telemetry.load import parse_load_stats, read_reports
from xds_server.wire.metrics_service import Sink, Tally
from xds_server.wire.node import parse_node

log = structlog.get_logger()

SERVICE = "envoy.service.load_stats.v3.LoadReportingService"
Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]


class LoadReportingService:
    """Bidirectional: one answer that asks for reports, then reports at that interval.

    A report repeats the node's 61 KB, so the interval is long; it is read when a stream
    opens, which a reload does not change for open ones.
    """

    def __init__(
        self, sink: Sink, tally: Tally, clock: Clock, interval_s: Callable[[], float]
    ) -> None:
        self._sink, self._tally, self._clock = sink, tally, clock
        self._interval_s = interval_s

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"StreamLoadStats": grpc.stream_stream_rpc_method_handler(self._stream)}
        )

    async def _stream(self, requests: Any, context: Context) -> None:
        try:
            await self._receive(requests, context)
        except RemoteProtocolError as error:
            self._tally.telemetry_refused("load_stats", "malformed")
            log.warning("telemetry.refused", source="load_stats", reason=str(error)[:500])
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])

    async def _receive(self, requests: Any, context: Context) -> None:
        node_id = ""
        async for body in requests:
            message = parse_load_stats(body)
            if not node_id:
                node_id = parse_node(message.node).node_id
                if not node_id:
                    raise RemoteProtocolError("the first request of a stream needs node.id")
                await context.write(self._ask())
            reports, dropped = read_reports(message)
            self._tally.telemetry("load_stats", messages=1, samples=len(reports), dropped=dropped)
            self._sink.observe_load(node_id, reports, self._clock.now_s())

    def _ask(self) -> bytes:
        answer = lrs_pb2.LoadStatsResponse(send_all_clusters=True)
        answer.load_reporting_interval.FromNanoseconds(round(self._interval_s() * 1e9))
        body: bytes = answer.SerializeToString()
        return body
