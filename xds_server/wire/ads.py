"""The discovery services, aggregated and one per type, SotW and delta, over bytes."""

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Final, TypeAlias

import grpc
import numpy as np
import structlog

from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import CDS, ECDS, EDS, LDS, RDS, RTDS, SDS, SRDS, VHDS, TypeUrl
from xds_server.model.snapshot import Node
from xds_server.model.topology import XdsLimits
from xds_server.ports import Clock
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.sotw import SotwStream
from xds_server.protocol.stream import StreamMachine
from xds_server.wire.admission import Admission, AdmissionRefusedError, Gate
from xds_server.wire.identity import Identity, read_identity
from xds_server.wire.pump import (
    Round,
    Stream,
    StreamRefusedError,
    StreamStalledError,
)
from xds_server.wire.requests import decode_delta, decode_sotw
from xds_server.wire.seams import Decode, Observer, Source, Tape
from xds_server.wire.speaker import Speakers

log = structlog.get_logger()

AGGREGATED: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
PER_TYPE: Final[dict[str, tuple[str, TypeUrl]]] = {
    "envoy.service.cluster.v3.ClusterDiscoveryService": ("Clusters", CDS),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": ("Endpoints", EDS),
    "envoy.service.listener.v3.ListenerDiscoveryService": ("Listeners", LDS),
    "envoy.service.route.v3.RouteDiscoveryService": ("Routes", RDS),
    "envoy.service.route.v3.ScopedRoutesDiscoveryService": ("ScopedRoutes", SRDS),
    "envoy.service.route.v3.VirtualHostDiscoveryService": ("VirtualHosts", VHDS),
    "envoy.service.secret.v3.SecretDiscoveryService": ("Secrets", SDS),
    "envoy.service.runtime.v3.RuntimeDiscoveryService": ("Runtime", RTDS),
    "envoy.service.extension.v3.ExtensionConfigDiscoveryService": ("ExtensionConfigs", ECDS),
}
"""Services of one type: what their methods are called after, and the type.

Each has ``Stream<name>`` and ``Delta<name>``, but virtual hosts exist in delta alone.
"""
SERVICES: Final = (AGGREGATED, *PER_TYPE)
NAMES_LOGGED: Final = 16
Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
Method: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class _Handler(grpc.GenericRpcHandler):
    """Finds a method by its full name."""

    def __init__(self, methods: dict[str, Method]) -> None:
        self._methods = methods

    def service(self, details: grpc.HandlerCallDetails) -> "Method | None":
        """Return what serves a call; None for a method that is not ours."""
        return self._methods.get(details.method)


class DiscoveryServices:
    """All discovery streams of this process.

    ``cluster_drain_s`` says how long a cluster stays after a client applied routes without
    it; it is read when a stream opens. With ``bind_node_id`` a node needs a certificate that
    names it. ``speakers`` know who may speak for the nodes.
    """

    def __init__(
        self,
        source: Source[Any],
        observer: Observer,
        clock: Clock,
        *,
        limits: XdsLimits = XdsLimits(),
        bind_node_id: bool = False,
        cluster_drain_s: Callable[[], float] = lambda: 0.0,
        tape: Tape | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._source, self._observer, self._clock = source, observer, clock
        self._limits, self._bind_node_id = limits, bind_node_id
        self._cluster_drain_s = cluster_drain_s
        self._tape = tape
        admission = Admission(per_s=limits.streams_per_s, open_max=limits.streams_max)
        self._gate = Gate(admission, observer, rng or np.random.default_rng())
        self._ids = count(1)
        self._streams: dict[int, Stream] = {}
        self._round = Round()
        self._identities: dict[int, Identity] = {}
        self.speakers = Speakers(clock)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers; messages are passed through as bytes."""
        kinds = (("Stream", "sotw"), ("Delta", "delta"))
        methods = {
            f"/{AGGREGATED}/{method}AggregatedResources": self._method(protocol, None)
            for method, protocol in kinds
        }
        for service, (name, only) in PER_TYPE.items():
            for method, protocol in kinds:
                if (only, protocol) != (VHDS, "sotw"):
                    methods[f"/{service}/{method}{name}"] = self._method(protocol, only)
        return _Handler(methods)

    def _method(self, protocol: str, only: TypeUrl | None) -> Method:
        return grpc.stream_stream_rpc_method_handler(partial(self._serve, protocol, only))

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Open streams whose node is known."""
        return tuple(s for s in self._reading if s.node is not None)

    @property
    def _reading(self) -> tuple[Stream, ...]:
        return tuple(s for s in self._streams.values() if not s.stalled)

    async def drain(self, window_s: float, grace_s: float) -> None:
        """Refuse new streams, and end open ones evenly over ``window_s``.

        Each is served until its turn comes. Returns when none is left, or ``grace_s`` after
        the window.
        """
        self._gate.close()
        ending = tuple(self._streams.values())
        start_s = self._clock.now_s()
        for i, stream in enumerate(ending):
            await self._clock.sleep_s(start_s + window_s * i / len(ending) - self._clock.now_s())
            stream.end()
        deadline_s = start_s + window_s + grace_s
        while self._reading and self._clock.now_s() < deadline_s:
            await self._clock.sleep_s(0.01)

    def recheck(self) -> None:
        """End the streams of clients whose certificate has expired meanwhile."""
        wall_s = self._clock.wall_s()
        for stream_id, identity in tuple(self._identities.items()):
            if identity.expires_at_s <= wall_s:
                stream = self._streams[stream_id]
                node_id = stream.node.node_id if stream.node else ""
                log.warning("xds.certificate_expired", node_id=node_id, stream_id=stream_id)
                message = "the client's certificate has expired"
                error = StreamRefusedError(grpc.StatusCode.UNAUTHENTICATED, message)
                stream.refuse("expired", error)

    async def _serve(
        self, protocol: str, only: TypeUrl | None, requests: Any, context: Context
    ) -> None:
        try:
            await self._gate.admit()
        except AdmissionRefusedError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        stream_id = next(self._ids)
        identity = read_identity(context.auth_context())
        if identity is not None:
            self._identities[stream_id] = identity
        try:
            await self._converse(stream_id, protocol, only, context)
        finally:
            self._identities.pop(stream_id, None)
            self._gate.release()

    async def _converse(
        self, stream_id: int, protocol: str, only: TypeUrl | None, context: Context
    ) -> None:
        kind, decode = _PROTOCOLS[protocol]
        stream = Stream(
            stream_id,
            protocol,
            kind(only=only, drain_s=self._cluster_drain_s()),
            self._source,
            self._observer,
            self._clock,
            write_timeout_s=self._limits.write_timeout_s,
            only=only,
            permit=self._permit,
            announced=partial(self._announced, context.peer()),
            tape=self._tape,
            round_=self._round,
        )
        self._streams[stream_id] = stream
        loop = asyncio.get_running_loop()
        unheard = loop.call_later(self._limits.first_request_s, self._unheard, stream)
        facts = {"stream_id": stream_id, "protocol": protocol, "peer": context.peer()}
        try:
            await stream.run(context.read, decode, context.write)
        except RemoteProtocolError as error:
            log.warning("xds.stream_refused", reason=str(error)[:2000], **facts)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])
        except StreamRefusedError as error:
            await context.abort(error.code, str(error)[:1000])
        except StreamStalledError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the client does not read")
        except grpc.aio.InternalError as error:
            # A write failed since the client is gone, and gRPC has not said so yet: what it is
            # about to do would do here, and is not worth its traceback.
            raise asyncio.CancelledError from error
        except (asyncio.CancelledError, grpc.aio.BaseError):
            raise
        except Exception:  # ours: this stream ends, the others go on
            log.exception("xds.stream_failed", **facts)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error, logged by the server")
        finally:
            unheard.cancel()
            del self._streams[stream_id]
            self.speakers.closed(stream_id)

    def _unheard(self, stream: Stream) -> None:
        """End a stream on which nobody has said who it is."""
        if stream.node is None:
            log.info("xds.stream_silent", stream_id=stream.stream_id, protocol=stream.protocol)
            self._observer.refused("first_request")
            error = StreamRefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, "no request came")
            stream.refuse("first_request", error)

    def _permit(self, stream: Stream, node: Node) -> None:
        """Raise StreamRefusedError for a node that the client's certificate does not name."""
        if not self._bind_node_id:
            return
        identity = self._identities.get(stream.stream_id)
        if identity is None or not identity.may_be(node.node_id):
            names = sorted(identity.names)[:NAMES_LOGGED] if identity else []
            log.warning("xds.node_not_bound", node_id=node.node_id, certificate_names=names)
            self._observer.refused("node_id")
            message = f"the client's certificate does not name node {node.node_id!r}"
            raise StreamRefusedError(grpc.StatusCode.PERMISSION_DENIED, message)

    def _announced(self, peer: str, stream: Stream) -> None:
        """Note who may speak for the node, and notice two aggregated streams of one.

        A client that reconnects before its old stream ended; or two with one name, whose
        counters then mix. gRPC's own client has a stream for each target, and no counters.
        """
        node = stream.node
        if node is None:
            return
        identity = self._identities.get(stream.stream_id)
        self.speakers.opened(stream.stream_id, node.node_id, peer, identity)
        if stream.only is not None or node.is_grpc:
            return
        same = (
            s
            for s in self.streams
            if s is not stream and s.only is None and s.node and s.node.node_id == node.node_id
        )
        if any(same):
            log.warning("xds.node_twice", node_id=node.node_id, application=node.application)


_PROTOCOLS: Final[dict[str, tuple[type[StreamMachine], Decode]]] = {
    "sotw": (SotwStream, decode_sotw),
    "delta": (DeltaStream, decode_delta),
}
