"""Where what providers say of themselves arrives: Envoy's load reporting service."""

from collections.abc import Callable
from typing import Any, Protocol

import grpc
from envoy.service.load_stats.v3 import lrs_pb2

from xds_server.generated import xds_server_load_report_pb2 as pb
from xds_server.model.ids import NodeId
from xds_server.model.telemetry import LoadReport
from xds_server.ports import Clock
from xds_server.telemetry.load import parse_load_stats, read_reports
from xds_server.wire.intake import Context, Intake, Reader, Taken, Tally, announced
from xds_server.wire.speaker import Speakers

SOURCE = "load_stats"
SERVICE = "envoy.service.load_stats.v3.LoadReportingService"


class LoadSink(Protocol):
    """Who takes load reports in; the registry."""

    def observe_load(self, node_id: NodeId, reports: list[LoadReport], now_s: float) -> None:
        """Take in what providers said of themselves."""
        ...


class LoadReportingService:
    """Bidirectional: one answer that asks for reports, then reports at that interval.

    A report repeats the node's 61 KB, so the interval is long.
    """

    def __init__(
        self,
        sink: LoadSink,
        tally: Tally,
        clock: Clock,
        speakers: Speakers,
        interval_s: Callable[[], float],
    ) -> None:
        self._reader, self._interval_s = _Reports(sink), interval_s
        self._intake = Intake(SOURCE, tally, clock, speakers, interval_s)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"StreamLoadStats": grpc.stream_stream_rpc_method_handler(self._stream)}
        )

    async def _stream(self, requests: Any, context: Context) -> None:
        await self._intake.stream(requests, context, self._reader, self._ask())

    def _ask(self) -> bytes:
        answer = lrs_pb2.LoadStatsResponse(send_all_clusters=True)
        answer.load_reporting_interval.FromNanoseconds(round(self._interval_s() * 1e9))
        body: bytes = answer.SerializeToString()
        return body


class _Reports(Reader[pb.LoadStatsRequest]):
    """Keeps nothing of a stream, so all have the same."""

    def __init__(self, sink: LoadSink) -> None:
        self._sink = sink

    def parse(self, body: bytes) -> pb.LoadStatsRequest:
        return parse_load_stats(body)

    def node_id(self, message: pb.LoadStatsRequest) -> NodeId:
        return announced(message.node, "node.id")

    def take(self, message: pb.LoadStatsRequest, node_id: NodeId, now_s: float) -> Taken:
        reports, refused = read_reports(message)
        self._sink.observe_load(node_id, reports, now_s)
        return Taken(len(reports), refused)
