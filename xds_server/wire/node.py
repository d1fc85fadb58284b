"""What an Envoy says about itself."""

from typing import Any

from envoy.config.core.v3 import base_pb2
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from xds_server.errors import RemoteProtocolError
from xds_server.model.snapshot import Node


def read_node(message: Any) -> Node:
    """Translate a Node message. Its 500 extension descriptors are not looked at."""
    return Node(
        node_id=message.id,
        application=message.cluster,
        locality_region=message.locality.region,
        locality_zone=message.locality.zone,
        locality_sub_zone=message.locality.sub_zone,
        metadata=json_format.MessageToDict(message.metadata),
        user_agent=message.user_agent_name,
        build=_build(message),
    )


def _build(message: Any) -> str:
    if message.HasField("user_agent_build_version"):
        number = message.user_agent_build_version.version
        return f"{number.major_number}.{number.minor_number}.{number.patch}"
    return str(message.user_agent_version)


def parse_node(body: bytes) -> Node:
    """Read a serialised Node. Raises RemoteProtocolError when it is none."""
    message = base_pb2.Node()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise RemoteProtocolError(f"node does not parse: {error}") from None
    return read_node(message)
