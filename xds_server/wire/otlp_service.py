"""Where sidecars' statistics arrive by OTLP: Envoy's OpenTelemetry sink."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

import grpc
import structlog

from xds_server.errors import RemoteProtocolError
from xds_server.generated import xds_server_otlp_pb2 as pb
from xds_server.model.ids import NodeId
from xds_server.ports import Clock
from xds_server.telemetry.counters import TWICE, Bases
from xds_server.telemetry.otlp import OtlpDecoder
from xds_server.telemetry.otlp_values import (
    MESSAGE_MAX_BYTES,
    OtlpValues,
    node_of,
    parse_otlp,
    read_otlp,
)
from xds_server.telemetry.turns import Caller
from xds_server.wire.bounds import OVERSIZED, RATE, OversizedError, Pace
from xds_server.wire.metrics_service import Sink, Tally
from xds_server.wire.speaker import WAITING, SpeakerRefusedError, Speakers, refuse

log = structlog.get_logger()

SOURCE = "open_telemetry"
SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"
PACES_MAX: Final = 10_000
"""Connections whose pace is kept; the least recently heard starts with a full bucket again."""
Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]


class OtlpService:
    """Unary: each export goes straight into the sink's arrays, nothing queues.

    Whose it is says the resource attribute ``service.instance.id``, which bootstraps set to
    the node's id; whether it may be counted says the connection, as for any other telemetry.
    ``interval_s`` is how often sidecars are configured to report, ``bases`` are where their
    counters are.
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
        self._sink, self._tally, self._clock = sink, tally, clock
        self._speakers, self._interval_s = speakers, interval_s
        self._bases = Bases() if bases is None else bases
        self._decoder = OtlpDecoder(self._bases)
        self._paces: OrderedDict[str, Pace] = OrderedDict()

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Export": grpc.unary_unary_rpc_method_handler(self._export)}
        )

    async def _export(self, body: bytes, context: Context) -> bytes:
        try:
            if not self._pace(context.peer()).take(len(body), self._clock.now_s()):
                self._tally.telemetry_refused(SOURCE, RATE)
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many exports")
            return self._receive(body, context)
        except SpeakerRefusedError as error:
            await refuse(error, SOURCE, context, self._tally)
        except RemoteProtocolError as error:
            reason = OVERSIZED if isinstance(error, OversizedError) else "malformed"
            self._tally.telemetry_refused(SOURCE, reason)
            log.warning("telemetry.refused", source=SOURCE, reason=str(error)[:500])
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])
        return b""

    def _pace(self, peer: str) -> Pace:
        pace = self._paces.get(peer)
        if pace is None:
            pace = self._paces[peer] = Pace(self._interval_s(), MESSAGE_MAX_BYTES)
            if len(self._paces) > PACES_MAX:
                self._paces.popitem(last=False)
        self._paces.move_to_end(peer)
        return pace

    def _receive(self, body: bytes, context: Context) -> bytes:
        message = parse_otlp(body)
        node_id = node_of(message)
        if not self._speakers.of(context, node_id, grace_s=0.0).may():
            # With cumulative totals, as bootstraps have it, a later export has what this one says.
            self._tally.telemetry_refused(SOURCE, WAITING)
            return b""
        values = read_otlp(message, self._sink.providers)  # a reload may change them
        caller = Caller(context.peer(), start_ms=values.start_ms)
        if not self._bases.turn(node_id, caller, self._interval_s(), self._clock.now_s()):
            self._tally.telemetry_refused(SOURCE, TWICE)
            return b""
        return self._take(values, body, node_id)

    def _take(self, values: OtlpValues, body: bytes, node_id: NodeId) -> bytes:
        now_s = self._clock.now_s()
        batch = self._decoder.decode(body, values, node_id, now_s)
        self._tally.telemetry(SOURCE, messages=1, samples=values.samples)
        for reason, count in self._decoder.refused.items():
            self._tally.telemetry_refused(SOURCE, reason, count)
        for event in self._decoder.events:
            self._tally.telemetry_event(SOURCE, event)
        self._sink.observe_hosts(node_id, self._decoder.hosts, now_s)
        if batch is not None:
            self._sink.observe(batch, now_s)
        return _answer(values.refused.total())


def _answer(rejected: int) -> bytes:
    """Say how many values were dropped, as OTLP has it for who looks on the other side."""
    answer = pb.ExportMetricsServiceResponse()
    if rejected:
        answer.partial_success.rejected_data_points = rejected
        answer.partial_success.error_message = "values that cannot be true were dropped"
    return answer.SerializeToString()
