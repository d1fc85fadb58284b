"""How far a client is, per type."""

from dataclasses import dataclass

from xds_server.model.ids import TypeUrl, Version

SILENT_AFTER_S = 5.0
"""A response unanswered for longer makes its client silent: neither ACK nor NACK."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One type on one stream."""

    type_url: TypeUrl
    version_sent: Version
    version_acked: Version
    nacks: int
    last_nack: str
    unanswered_s: float  # age of the oldest unanswered response; 0: none

    @property
    def silent(self) -> bool:
        """Whether the client has neither applied nor refused for too long."""
        return self.unanswered_s > SILENT_AFTER_S
