"""What a stream remembers of one type."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from xds_server.model.ids import Nonce, ResourceName, Version
from xds_server.model.record import record
from xds_server.model.snapshot import Resource, TypeSnapshot
from xds_server.protocol.recovery import Recovery
from xds_server.protocol.subscription import Subscription

PIPELINE_AFTER_S = 1.0
"""A type has one response in flight; one that is unanswered this long does not block."""
IN_FLIGHT_MAX = 8
"""Unanswered responses per type after which nothing more of it is sent."""


@record
class InFlight:
    """A response that was not answered yet."""

    version: Version
    resources: tuple[Resource, ...]
    sent_at_s: float
    heartbeat: bool

    @property
    def names(self) -> tuple[ResourceName, ...]:
        """Of what is in it."""
        return tuple(r.name for r in self.resources)


@record
class Sent:
    """What the client was last told about a resource; the body if this stream sent it.

    Without a version what it has is unknown: it refused, and may have applied it in part.
    """

    version: Version
    resource: Resource | None = None


UNKNOWN = Sent("")


@dataclass(slots=True)
class TypeState:
    """One type on one stream."""

    subscription: Subscription
    sent: dict[ResourceName, Sent] = field(default_factory=dict)
    acked: dict[ResourceName, Version] = field(default_factory=dict)
    good: dict[ResourceName, Resource] = field(default_factory=dict)  # last accepted bodies
    missing_told: set[ResourceName] = field(default_factory=set)
    asked: set[ResourceName] = field(default_factory=set)  # to answer, changed or not
    owed: bool = False  # an answer even if there is nothing in it
    waits: bool = False  # there is more, for when the last responses are answered
    partial: bool = False  # the last update did not fit: there is more of it
    in_flight: dict[Nonce, InFlight] = field(default_factory=dict)  # in the order of sending
    nonce: Nonce = ""
    from_before: bool = False  # the client came with what it has from an earlier stream
    refused: set[ResourceName] = field(default_factory=set)  # NACKed, and not ACKed since
    recovery: Recovery | None = None
    settled: TypeSnapshot | None = None  # nothing is due while this is what it should have
    version_sent: Version = ""
    version_acked: Version = ""
    nacks: int = 0
    last_nack: str = ""

    def keep_only(self, names: Set[ResourceName]) -> None:
        """Forget what was sent of all others."""
        for name in self.sent.keys() - names:
            self.forget(name)
        self.asked &= names

    def forget(self, name: ResourceName) -> None:
        """The client no longer has it."""
        self.sent.pop(name, None)
        self.acked.pop(name, None)
        self.good.pop(name, None)
        self.refused.discard(name)

    def blocked(self, now_s: float) -> bool:
        """Whether a new response has to wait for an answer."""
        if not self.in_flight:
            return False
        newest_s = next(reversed(self.in_flight.values())).sent_at_s
        return len(self.in_flight) >= IN_FLIGHT_MAX or now_s - newest_s < PIPELINE_AFTER_S

    @property
    def oldest_s(self) -> float | None:
        """When the oldest unanswered response was sent; None: there is none."""
        return next(iter(self.in_flight.values())).sent_at_s if self.in_flight else None

    def suspects(self, flight: InFlight) -> tuple[Resource, ...]:
        """Of a refused response: what was new in it, and what nobody knows to be bad yet.

        What was replaced by something newer since is no longer of interest.
        """
        return tuple(
            r
            for r in flight.resources
            if ((g := self.good.get(r.name)) is None or g.version != r.version)
            and (s := self.sent.get(r.name)) is not None
            and s.version == r.version
        )


@record
class Update:
    """What one type needs: resources to send and names to take away."""

    resources: tuple[Resource, ...] = ()
    removed: tuple[ResourceName, ...] = ()
    owed: bool = False
    deviates: bool = False  # from the snapshot, for this client's sake

    @property
    def names(self) -> frozenset[ResourceName]:
        """Of all that is in it."""
        return frozenset(r.name for r in self.resources).union(self.removed)

    def __bool__(self) -> bool:
        return bool(self.resources or self.removed or self.owed)


@record
class Target:
    """What a client should have of one type now, as far as it may."""

    wanted: Mapping[ResourceName, Resource]
    kept: Set[ResourceName] = frozenset()  # not to be taken away yet
    held: Set[ResourceName] = frozenset()  # not to be offered yet
    aliases: Mapping[str, ResourceName] = field(default_factory=dict)
    deviates: bool = False
