"""Where sidecars' sampled calls arrive: Envoy's gRPC access log."""

from collections.abc import Callable
from typing import Any, Protocol

import grpc

from xds_server.generated import xds_server_access_log_pb2 as pb
from xds_server.model.calls import CallBatch
from xds_server.model.ids import NodeId, ProviderName
from xds_server.ports import Clock
from xds_server.telemetry.access_log import parse_access_log, read_calls
from xds_server.wire.intake import Context, Intake, Reader, Taken, Tally, announced
from xds_server.wire.speaker import Speakers

SOURCE = "access_log"
SERVICE = "envoy.service.accesslog.v3.AccessLogService"


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
    is dropped and counted, and nothing makes up for it.
    """

    def __init__(
        self,
        sink: CallSink,
        tally: Tally,
        clock: Clock,
        speakers: Speakers,
        interval_s: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._reader = _Calls(sink)
        self._intake = Intake(SOURCE, tally, clock, speakers, interval_s)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"StreamAccessLogs": grpc.stream_unary_rpc_method_handler(self._stream)}
        )

    async def _stream(self, messages: Any, context: Context) -> bytes:
        await self._intake.stream(messages, context, self._reader)
        return b""


class _Calls(Reader[pb.StreamAccessLogsMessage]):
    """Keeps nothing of a stream, so all have the same."""

    def __init__(self, sink: CallSink) -> None:
        self._sink = sink

    def parse(self, body: bytes) -> pb.StreamAccessLogsMessage:
        return parse_access_log(body)

    def node_id(self, message: pb.StreamAccessLogsMessage) -> NodeId:
        return announced(message.identifier.node, "identifier.node")

    def take(self, message: pb.StreamAccessLogsMessage, node_id: NodeId, now_s: float) -> Taken:
        batch, refused = read_calls(message, node_id, self._sink.providers)
        self._sink.observe_calls(batch, now_s)
        return Taken(int(batch.counts[:, 0].sum()) + refused.total(), refused)
