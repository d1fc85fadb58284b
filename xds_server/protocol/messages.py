"""Requests as the state machines read them, and responses as they leave."""

from collections.abc import Mapping
from dataclasses import field

from xds_server.model.ids import Nonce, ResourceName, TypeUrl, Version
from xds_server.model.record import record


@record
class SotwRequest:
    """The parts of a DiscoveryRequest that decide something."""

    type_url: TypeUrl
    names: tuple[ResourceName, ...] = ()
    response_nonce: Nonce = ""
    version_info: Version = ""
    error: str | None = None  # error_detail.message; None: no error_detail


@record
class DeltaRequest:
    """The parts of a DeltaDiscoveryRequest that decide something."""

    type_url: TypeUrl
    subscribe: tuple[ResourceName, ...] = ()
    unsubscribe: tuple[ResourceName, ...] = ()
    initial_versions: Mapping[ResourceName, Version] = field(default_factory=dict)
    response_nonce: Nonce = ""
    error: str | None = None


@record
class Response:
    """One serialised response, and what is in it."""

    type_url: TypeUrl
    nonce: Nonce
    version_info: Version
    payload: bytes = field(repr=False)
    names: tuple[ResourceName, ...] = ()
    removed: tuple[ResourceName, ...] = ()
    heartbeat: bool = False
    unwedge: bool = False  # unchanged endpoints, for a client that waits for them
