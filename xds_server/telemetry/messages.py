"""Bytes to messages, for every source of telemetry."""

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from xds_server.errors import RemoteProtocolError

MESSAGE_MAX_BYTES: Final = 8 * 2**20
"""Larger messages are dropped unread: parsing one would hold up everything else."""
_M = TypeVar("_M", bound=Message)


def parsed(kind: type[_M], body: bytes) -> _M:
    """Read one message. Raises RemoteProtocolError when it is none, or too large to be read."""
    if len(body) > MESSAGE_MAX_BYTES:
        raise RemoteProtocolError(f"a message of {len(body)} bytes; the most is 8 MiB")
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise RemoteProtocolError(f"{kind.DESCRIPTOR.name} does not parse: {error}") from None
    return message
