"""What every node was sent, accepted and refused: Envoy's client status discovery service.

Tools that speak CSDS ask a control plane the same way as they ask a proxyless client.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final, TypeAlias

import grpc
from envoy.admin.v3 import config_dump_shared_pb2
from envoy.config.core.v3 import base_pb2
from envoy.service.status.v3 import csds_pb2
from envoy.type.matcher.v3 import node_pb2
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import SDS, NodeId
from xds_server.model.snapshot import Node
from xds_server.protocol.status import ResourceState, Standing
from xds_server.wire.pump import Stream

SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_CLIENT: Final = {
    Standing.ACKED: config_dump_shared_pb2.ACKED,
    Standing.SENT: config_dump_shared_pb2.REQUESTED,
    Standing.REFUSED: config_dump_shared_pb2.NACKED,
    Standing.MISSING: config_dump_shared_pb2.DOES_NOT_EXIST,
}
_CONFIG: Final = {
    Standing.ACKED: csds_pb2.SYNCED,
    Standing.SENT: csds_pb2.STALE,
    Standing.REFUSED: csds_pb2.ERROR,
    Standing.MISSING: csds_pb2.NOT_SENT,
}


class ClientStatusService:
    """Answers from the streams that are open now; nodes in the order of their ids."""

    def __init__(self, streams: Callable[[], Iterable[Stream]]) -> None:
        self._streams = streams

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        # Requests come as bytes: gRPC would call what does not parse our mistake.
        codec = {"response_serializer": csds_pb2.ClientStatusResponse.SerializeToString}
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "FetchClientStatus": grpc.unary_unary_rpc_method_handler(self._fetch, **codec),
                "StreamClientStatus": grpc.stream_stream_rpc_method_handler(self._stream, **codec),
            },
        )

    async def _fetch(self, body: bytes, context: Context) -> csds_pb2.ClientStatusResponse:
        try:
            return self._answer(_parse(body))
        except RemoteProtocolError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])

    async def _stream(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[csds_pb2.ClientStatusResponse]:
        async for body in requests:
            yield await self._fetch(body, context)

    def _answer(self, request: csds_pb2.ClientStatusRequest) -> csds_pb2.ClientStatusResponse:
        matches = [_matcher(m) for m in request.node_matchers]
        by_node: dict[NodeId, list[Stream]] = {}
        for stream in self._streams():
            if stream.node is not None:
                by_node.setdefault(stream.node.node_id, []).append(stream)
        response = csds_pb2.ClientStatusResponse()
        for node_id, streams in sorted(by_node.items()):
            if not matches or any(match(node_id) for match in matches):
                response.config.append(_config(streams, bare=request.exclude_resource_contents))
        return response


def _parse(body: bytes) -> csds_pb2.ClientStatusRequest:
    try:
        return csds_pb2.ClientStatusRequest.FromString(body)
    except DecodeError as error:
        raise RemoteProtocolError(f"request does not parse: {error}") from None


def _config(streams: list[Stream], *, bare: bool) -> csds_pb2.ClientConfig:
    """One node: its streams together, aggregated or of one type each."""
    config = csds_pb2.ClientConfig()
    newest = streams[-1].node
    if newest is not None:
        config.node.CopyFrom(_node(newest))
    for stream in streams:
        for state in stream.resources():
            _add(config.generic_xds_configs.add(), state, bare=bare)
    return config


def _add(
    entry: csds_pb2.ClientConfig.GenericXdsConfig, state: ResourceState, *, bare: bool
) -> None:
    entry.type_url, entry.name = state.type_url, state.name
    entry.version_info = state.version_acked or state.version_sent
    entry.client_status, entry.config_status = _CLIENT[state.state], _CONFIG[state.state]
    if state.state is Standing.REFUSED:
        entry.error_state.details = state.error
        entry.error_state.version_info = state.version_refused or state.version_sent
    # A secret is never shown: only that it is there.
    if state.resource is not None and not bare and state.type_url != SDS:
        entry.xds_config.type_url = state.type_url
        entry.xds_config.value = state.resource.body


def _node(node: Node) -> base_pb2.Node:
    message = base_pb2.Node(
        id=node.node_id, cluster=node.application, user_agent_name=node.user_agent
    )
    message.user_agent_version = node.build
    message.locality.region = node.locality_region
    message.locality.zone = node.locality_zone
    message.locality.sub_zone = node.locality_sub_zone
    json_format.ParseDict(dict(node.metadata), message.metadata)
    return message


def _matcher(matcher: node_pb2.NodeMatcher) -> Callable[[NodeId], bool]:
    """Translate a matcher of node ids. Raises RemoteProtocolError for what is not supported."""
    if matcher.node_metadatas:
        raise RemoteProtocolError("node_metadatas are not supported; match by node_id")
    text = matcher.node_id
    kind = text.WhichOneof("match_pattern")
    if kind is None:
        return lambda _: True
    if kind not in ("exact", "prefix", "suffix", "contains"):
        raise RemoteProtocolError(
            f"node_id.{kind} is not supported; use exact, prefix, suffix or contains"
        )
    fold: Callable[[str], str] = str.casefold if text.ignore_case else str
    wanted = fold(getattr(text, kind))
    tests: dict[str, Callable[[str], bool]] = {
        "exact": lambda node_id: node_id == wanted,
        "prefix": lambda node_id: node_id.startswith(wanted),
        "suffix": lambda node_id: node_id.endswith(wanted),
        "contains": lambda node_id: wanted in node_id,
    }
    return lambda node_id: tests[kind](fold(node_id))
