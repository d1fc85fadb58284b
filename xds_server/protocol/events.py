"""What a request meant."""

from dataclasses import dataclass
from typing import TypeAlias

from xds_server.model.ids import Nonce, ResourceName, TypeUrl, Version
from xds_server.model.record import record


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The client asks for more, or for the first time."""

    type_url: TypeUrl
    names: tuple[ResourceName, ...]
    wildcard: bool


@record
class Acked:
    """The client applied a response."""

    type_url: TypeUrl
    version: Version
    latency_s: float
    heartbeat: bool


@dataclass(frozen=True, slots=True)
class Nacked:
    """The client refused a response; parts of it may be applied all the same."""

    type_url: TypeUrl
    version: Version
    names: tuple[ResourceName, ...]
    error: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The culprit of a refused response: not sent again while its content is the same."""

    type_url: TypeUrl
    name: ResourceName
    version: Version
    error: str
    good_version: Version  # what the client keeps instead; "": nothing


@dataclass(frozen=True, slots=True)
class Stale:
    """An answer to a response that is not the last, or to none; its names count."""

    type_url: TypeUrl
    response_nonce: Nonce


@dataclass(frozen=True, slots=True)
class UnknownType:
    """A type that is not served; the stream goes on for the others."""

    type_url: TypeUrl


Event: TypeAlias = Subscribed | Acked | Nacked | Quarantined | Stale | UnknownType
