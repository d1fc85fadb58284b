"""Where sidecars' statistics arrive: Envoy's metrics service."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import grpc
import structlog

from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import LoadReport, SampleBatch
from xds_server.ports import Clock
from xds_server.telemetry.counters import Bases
from xds_server.telemetry.layout import Layouts
from xds_server.telemetry.metrics import MetricsDecoder, parse_metrics
from xds_server.wire.node import parse_node

log = structlog.get_logger()

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

    def telemetry(self, source: str, *, messages: int, samples: int, dropped: int) -> None:
        """One message was decoded."""
        ...

    def telemetry_refused(self, source: str, reason: str) -> None:
        """One message or stream was refused."""
        ...


class MetricsService:
    """Client-streaming: messages go straight into the sink's arrays, nothing queues."""

    def __init__(self, sink: Sink, tally: Tally, clock: Clock) -> None:
        self._sink, self._tally, self._clock = sink, tally, clock
        self._bases, self._layouts = Bases(), Layouts()

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"StreamMetrics": grpc.stream_unary_rpc_method_handler(self._stream)}
        )

    async def _stream(self, messages: Any, context: Context) -> bytes:
        try:
            await self._receive(messages)
        except RemoteProtocolError as error:
            self._tally.telemetry_refused("metrics_service", "malformed")
            log.warning("telemetry.refused", source="metrics_service", reason=str(error)[:500])
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])
        return b""

    async def _receive(self, messages: Any) -> None:
        node_id = ""
        decoder = MetricsDecoder(self._bases, self._sink.providers, self._layouts)
        async for body in messages:
            if not node_id:
                node_id = parse_node(parse_metrics(body).identifier.node).node_id
                if not node_id:
                    raise RemoteProtocolError("the first message of a stream needs identifier.node")
            decoder.use(self._sink.providers)  # a reload may change them
            now_s = self._clock.now_s()
            batch = decoder.decode(body, node_id, now_s)
            self._tally.telemetry(
                "metrics_service", messages=1, samples=decoder.samples, dropped=decoder.dropped
            )
            self._sink.observe_hosts(node_id, decoder.hosts, now_s)
            if batch is not None:
                self._sink.observe(batch, now_s)
