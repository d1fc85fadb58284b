"""How far a client is, per type."""

from dataclasses import dataclass
from enum import StrEnum

from xds_server.model.ids import ResourceName, TypeUrl, Version
from xds_server.model.snapshot import Resource

SILENT_AFTER_S = 5.0
"""A response unanswered for longer makes its client silent: neither ACK nor NACK."""
WITHDRAW_AFTER_S = 10.0
"""Own clusters that a client is silent about for longer are taken back: it may have refused one
and be unable to say so. Envoy 1.40 is, when a cluster fails after it has begun to warm."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One type on one stream."""

    type_url: TypeUrl
    version_sent: Version
    version_acked: Version
    nacks: int
    last_nack: str
    unanswered_s: float  # age of the oldest unanswered response; 0: none
    lacks: tuple[ResourceName, ...] = ()  # clusters sent that wait for their endpoints

    @property
    def silent(self) -> bool:
        """Whether the client has neither applied nor refused for too long."""
        return self.unanswered_s > SILENT_AFTER_S


class Standing(StrEnum):
    """How far a client is with one resource."""

    ACKED = "acked"
    SENT = "sent"
    REFUSED = "refused"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class ResourceState:
    """One resource on one stream."""

    type_url: TypeUrl
    name: ResourceName
    version_sent: Version  # "": nothing of that name was sent, or what the client has is unknown
    version_acked: Version  # "": nothing
    state: Standing
    error: str = ""  # why it was refused, in the client's words
    version_refused: Version = ""
    resource: Resource | None = None  # what was sent; None if it is from an earlier stream
