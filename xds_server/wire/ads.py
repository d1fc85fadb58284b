"""The aggregated discovery service, SotW and delta, over bytes."""

import asyncio
from itertools import count
from typing import Any, TypeAlias

import grpc
import structlog
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from xds_server.errors import RemoteProtocolError
from xds_server.ports import Clock
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.messages import DeltaRequest, SotwRequest
from xds_server.protocol.sotw import SotwStream
from xds_server.wire.pump import Decode, Observer, Source, Stream, StreamStalledError

log = structlog.get_logger()

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
WRITE_TIMEOUT_S = 20.0
Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]


class AggregatedDiscoveryService:
    """All streams of this process."""

    def __init__(
        self,
        source: Source[Any],
        observer: Observer,
        clock: Clock,
        *,
        write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        self._source, self._observer, self._clock = source, observer, clock
        self._write_timeout_s = write_timeout_s
        self._ids = count(1)
        self._streams: dict[int, Stream] = {}
        self._draining = False

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers; messages are passed through as bytes."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(self._sotw),
                "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(self._delta),
            },
        )

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Open streams whose node is known."""
        return tuple(s for s in self._streams.values() if s.node is not None)

    async def drain(self, grace_s: float) -> None:
        """Refuse new streams, and let open ones end; returns when none is left, or in time."""
        self._draining = True
        for stream in tuple(self._streams.values()):
            stream.end()
        deadline_s = self._clock.now_s() + grace_s
        while self._streams and self._clock.now_s() < deadline_s:
            await self._clock.sleep_s(0.01)

    async def _sotw(self, requests: Any, context: Context) -> None:
        await self._serve("sotw", requests, decode_sotw, context)

    async def _delta(self, requests: Any, context: Context) -> None:
        await self._serve("delta", requests, decode_delta, context)

    async def _serve(self, protocol: str, requests: Any, decode: Decode, context: Context) -> None:
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")
        stream_id = next(self._ids)
        machine = SotwStream() if protocol == "sotw" else DeltaStream()
        stream = Stream(
            stream_id,
            protocol,
            machine,
            self._source,
            self._observer,
            self._clock,
            write_timeout_s=self._write_timeout_s,
        )
        self._streams[stream_id] = stream
        facts = {"stream_id": stream_id, "protocol": protocol, "peer": context.peer()}
        try:
            await stream.run(requests, decode, context.write)
        except RemoteProtocolError as error:
            log.warning("xds.stream_refused", reason=str(error)[:2000], **facts)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])
        except StreamStalledError:
            node_id = stream.node.node_id if stream.node else ""
            log.warning("xds.stream_stalled", node_id=node_id, **facts)
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the client does not read")
        except (asyncio.CancelledError, grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception:  # ours: this stream ends, the others go on
            log.exception("xds.stream_failed", **facts)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error, logged by the server")
        finally:
            del self._streams[stream_id]


def decode_sotw(body: bytes) -> tuple[SotwRequest, Any]:
    """Read a DiscoveryRequest. Raises RemoteProtocolError when it is none."""
    message = discovery_pb2.DiscoveryRequest()
    _parse(message, body)
    request = SotwRequest(
        type_url=message.type_url,
        names=tuple(message.resource_names),
        response_nonce=message.response_nonce,
        version_info=message.version_info,
        error=_error(message),
    )
    return request, message.node


def decode_delta(body: bytes) -> tuple[DeltaRequest, Any]:
    """Read a DeltaDiscoveryRequest. Raises RemoteProtocolError when it is none."""
    message = discovery_pb2.DeltaDiscoveryRequest()
    _parse(message, body)
    request = DeltaRequest(
        type_url=message.type_url,
        subscribe=tuple(message.resource_names_subscribe),
        unsubscribe=tuple(message.resource_names_unsubscribe),
        initial_versions=dict(message.initial_resource_versions),
        response_nonce=message.response_nonce,
        error=_error(message),
    )
    return request, message.node


def _parse(message: Any, body: bytes) -> None:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise RemoteProtocolError(f"request does not parse: {error}") from None


def _error(message: Any) -> str | None:
    if not message.HasField("error_detail"):
        return None
    return message.error_detail.message or f"code {message.error_detail.code}"
