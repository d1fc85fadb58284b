"""Requests: bytes to what decides something."""

from typing import Any, Final

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import SHORT
from xds_server.protocol.framing import text
from xds_server.protocol.messages import DeltaRequest, SotwRequest

ERROR_MAX: Final = 4096
"""Characters of a client's reason to refuse that are kept: it stays as long as the refusal."""
_ACK_HEADS: Final = {text(2, url): url for url in SHORT}
"""How the ACK of each type begins: with its ``type_url``."""
_NONCE_TAG: Final = 6 << 3 | 2


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
    return request, message.node if message.HasField("node") else None


def decode_delta(body: bytes) -> tuple[DeltaRequest, Any]:
    """Read a DeltaDiscoveryRequest. Raises RemoteProtocolError when it is none."""
    plain = _plain_ack(body)
    if plain is not None:
        return plain, None
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
    return request, message.node if message.HasField("node") else None


def _plain_ack(body: bytes) -> DeltaRequest | None:
    """Read an ACK as clients write it, by comparing: a type that is served, a nonce, no more.

    None for all else, which is to be parsed; so is a nonce that is none of ours.
    """
    end = body[1] + 2 if len(body) > 1 else 0
    type_url = _ACK_HEADS.get(body[:end])
    if type_url is None or len(body) < end + 3:
        return None
    if body[end] != _NONCE_TAG or body[end + 1] != len(body) - end - 2:
        return None
    nonce = body[end + 2 :]
    if len(nonce) > 0x7F or not nonce.isascii():
        return None
    return DeltaRequest(type_url, response_nonce=nonce.decode())


def _parse(message: Any, body: bytes) -> None:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise RemoteProtocolError(f"request does not parse: {error}") from None


def _error(message: Any) -> str | None:
    if not message.HasField("error_detail"):
        return None
    detail = message.error_detail
    return detail.message[:ERROR_MAX] or f"code {detail.code}"
