"""Where sidecars' statistics arrive by OTLP: Envoy's OpenTelemetry sink."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from xds_server.generated import xds_server_otlp_pb2 as pb
from xds_server.model.ids import NodeId
from xds_server.ports import Clock
from xds_server.telemetry.counters import TWICE, Bases
from xds_server.telemetry.otlp import OtlpDecoder
from xds_server.telemetry.otlp_values import node_of, parse_otlp, read_otlp
from xds_server.telemetry.turns import Caller
from xds_server.wire.intake import Context, Intake, Reader, Taken, Tally
from xds_server.wire.metrics_service import Sink
from xds_server.wire.speaker import Speakers

SOURCE = "open_telemetry"
SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"


class OtlpService:
    """Unary: each export goes straight into the sink's arrays, nothing queues.

    Whose it is says the resource attribute ``service.instance.id``, which bootstraps set to
    the node's id; whether it may be counted says the connection, as for any other telemetry.
    ``bases`` are where sidecars' counters are.
    """

    def __init__(
        self,
        sink: Sink,
        tally: Tally,
        clock: Clock,
        speakers: Speakers,
        interval_s: Callable[[], float] = lambda: 1.0,
        bases: Bases | None = None,
    ) -> None:
        self._sink, self._interval_s = sink, interval_s
        self._intake = Intake(SOURCE, tally, clock, speakers, interval_s)
        self._bases = Bases() if bases is None else bases
        self._decoder = OtlpDecoder(self._bases)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Export": grpc.unary_unary_rpc_method_handler(self._export)}
        )

    async def _export(self, body: bytes, context: Context) -> bytes:
        export = _Export(self._sink, self._bases, self._decoder, context.peer(), self._interval_s())
        await self._intake.call(body, context, export)
        return _answer(export.rejected)


@dataclass(frozen=True, slots=True)
class _Message:
    body: bytes  # by which a repeated one is known
    request: pb.ExportMetricsServiceRequest


class _Export(Reader[_Message]):
    """One call's.

    Of one that has to wait nothing is lost: with cumulative totals, as bootstraps have it, a
    later export has what this one says.
    """

    def __init__(
        self, sink: Sink, bases: Bases, decoder: OtlpDecoder, peer: str, interval_s: float
    ) -> None:
        self._sink, self._bases, self._decoder = sink, bases, decoder
        self._peer, self._interval_s = peer, interval_s
        self.rejected = 0  # values that cannot be true

    def parse(self, body: bytes) -> _Message:
        return _Message(body, parse_otlp(body))

    def node_id(self, message: _Message) -> NodeId:
        return node_of(message.request)

    def take(self, message: _Message, node_id: NodeId, now_s: float) -> Taken:
        values = read_otlp(message.request, self._sink.providers)  # a reload may change them
        caller = Caller(self._peer, start_ms=values.start_ms)
        if not self._bases.turn(node_id, caller, self._interval_s, now_s):
            return Taken.nothing(TWICE)
        decoder = self._decoder
        batch = decoder.decode(message.body, values, node_id, now_s)
        self._sink.observe_hosts(node_id, decoder.hosts, now_s)
        if batch is not None:
            self._sink.observe(batch, now_s)
        self.rejected = values.refused.total()
        return Taken(values.samples, decoder.refused, decoder.events)


def _answer(rejected: int) -> bytes:
    """Say how many values were dropped, as OTLP has it for who looks on the other side."""
    answer = pb.ExportMetricsServiceResponse()
    if rejected:
        answer.partial_success.rejected_data_points = rejected
        answer.partial_success.error_message = "values that cannot be true were dropped"
    return answer.SerializeToString()
