"""What SotW and delta streams have in common: state per type, and when to send what.

Sans I/O: ``receive`` takes a request and says what it meant, ``poll`` compares what the
client has with what it should have and says what to send now. Between the two any number of
snapshots may have come and gone; only the newest counts, so pushes coalesce by themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from xds_server.model.ids import (
    CDS,
    EDS,
    LDS,
    RDS,
    SHORT,
    Nonce,
    ResourceName,
    TypeUrl,
    Version,
)
from xds_server.model.snapshot import Resource, Snapshot
from xds_server.protocol.events import Acked, Event, Nacked, Stale
from xds_server.protocol.messages import Response
from xds_server.protocol.ordering import ORDER, POINTERS, TARGETS, Gate
from xds_server.protocol.status import Progress
from xds_server.protocol.subscription import Subscription

PIPELINE_AFTER_S = 1.0
"""A type has one response in flight; one that is unanswered this long does not block."""
IN_FLIGHT_MAX = 8
"""Unanswered responses per type after which nothing more of it is sent."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A response that was not answered yet."""

    version: Version
    versions: Mapping[ResourceName, Version]
    sent_at_s: float
    heartbeat: bool


@dataclass(frozen=True, slots=True)
class Sent:
    """What the client was last told about a resource; the body if this stream sent it."""

    version: Version
    resource: Resource | None = None


@dataclass(slots=True)
class TypeState:
    """One type on one stream."""

    subscription: Subscription
    sent: dict[ResourceName, Sent] = field(default_factory=dict)
    missing_told: set[ResourceName] = field(default_factory=set)
    asked: set[ResourceName] = field(default_factory=set)  # to answer, changed or not
    owed: bool = False  # an answer even if there is nothing in it
    in_flight: dict[Nonce, InFlight] = field(default_factory=dict)
    nonce: Nonce = ""
    resumed: bool = False  # the client came with resources that it has from before
    version_sent: Version = ""
    version_acked: Version = ""
    acked: dict[ResourceName, Version] = field(default_factory=dict)
    refused: set[ResourceName] = field(default_factory=set)  # NACKed, and not ACKed since
    nacks: int = 0
    last_nack: str = ""

    def keep_only(self, names: Set[ResourceName]) -> None:
        """Forget what was sent of all others."""
        for name in self.sent.keys() - names:
            del self.sent[name]
            self.acked.pop(name, None)
        self.asked &= names

    def blocked(self, now_s: float) -> bool:
        """Whether a new response has to wait for an answer."""
        if not self.in_flight:
            return False
        newest = max(f.sent_at_s for f in self.in_flight.values())
        return len(self.in_flight) >= IN_FLIGHT_MAX or now_s - newest < PIPELINE_AFTER_S


@dataclass(frozen=True, slots=True)
class Update:
    """What one type needs: resources to send and names to take away."""

    resources: tuple[Resource, ...] = ()
    removed: tuple[ResourceName, ...] = ()
    owed: bool = False

    @property
    def names(self) -> frozenset[ResourceName]:
        """Of all that is in it."""
        return frozenset(r.name for r in self.resources).union(self.removed)

    def __bool__(self) -> bool:
        return bool(self.resources or self.removed or self.owed)


class StreamMachine(ABC):
    """Server side of one xDS stream: requests in, events and responses out."""

    def __init__(self, nonce_prefix: str = "") -> None:
        self._types: dict[TypeUrl, TypeState] = {}
        self._nonces = count(1)
        self._prefix = nonce_prefix
        self._gate = Gate()

    # -- what subclasses decide ------------------------------------------------------

    @abstractmethod
    def receive(self, request: Any, now_s: float) -> list[Event]:
        """Apply one request and say what it meant; see the subclasses."""

    @abstractmethod
    def _missing(
        self, state: TypeState, have: Mapping[ResourceName, Resource], keep: bool
    ) -> Update:
        """Compare what the client was told with what it should have.

        ``keep`` withholds removals.
        """

    @abstractmethod
    def _encode(
        self, type_url: TypeUrl, version: Version, nonce: Nonce, update: Update
    ) -> bytes: ...

    @abstractmethod
    def _encode_heartbeat(
        self, type_url: TypeUrl, version: Version, nonce: Nonce, resources: Iterable[Resource]
    ) -> bytes: ...

    # -- for the pump ----------------------------------------------------------------

    def subscribes_to(self, type_url: TypeUrl) -> bool:
        """Whether the client asked for anything of that type."""
        state = self._types.get(type_url)
        return state is not None and not state.subscription.empty

    def poll(self, snapshot: Snapshot, now_s: float) -> list[Response]:
        """Return what to send now, in order; sending is assumed to succeed or end the stream."""
        responses = []
        if not self._targets_unsettled(snapshot):
            self._gate.pointers.release()
        for type_url in ORDER:
            state = self._types.get(type_url)
            if state is None or state.blocked(now_s):
                continue
            update = self._due(type_url, state, snapshot, now_s)
            if update:
                responses.append(self._send(type_url, state, snapshot, update, now_s))
            elif state.resumed:  # what it kept from an earlier stream is what it should have
                state.version_sent = state.version_acked = snapshot.of(type_url).version
            state.resumed = False
        return responses

    def heartbeat(self, snapshot: Snapshot, now_s: float) -> list[Response]:
        """Return responses that extend the TTL of what the client has and may keep."""
        responses = []
        for type_url, state in self._types.items():
            if any(f.heartbeat for f in state.in_flight.values()):
                continue  # one at a time: a client that does not answer is not flooded
            alive = tuple(
                r
                for r in state.subscription.pick(snapshot.of(type_url).resources).values()
                if r.ttl_s is not None and state.acked.get(r.name) == r.version
            )
            if alive:
                version, nonce = snapshot.of(type_url).version, self._next_nonce()
                payload = self._encode_heartbeat(type_url, version, nonce, alive)
                versions = {r.name: r.version for r in alive}
                state.in_flight[nonce] = InFlight(version, versions, now_s, heartbeat=True)
                state.nonce = nonce
                names = tuple(versions)
                responses.append(Response(type_url, nonce, version, payload, names, (), True))
        return responses

    def next_deadline_s(self, now_s: float) -> float | None:
        """When to poll again though nothing happened; None: never."""
        waits = self._gate.deadlines(now_s)
        for state in self._types.values():
            if state.in_flight:
                newest = max(f.sent_at_s for f in state.in_flight.values())
                waits.append(newest + PIPELINE_AFTER_S)
        return min((w for w in waits if w > now_s), default=None)

    def progress(self, now_s: float) -> tuple[Progress, ...]:
        """Say how far the client is."""
        return tuple(
            Progress(
                url,
                s.version_sent,
                s.version_acked,
                s.nacks,
                s.last_nack,
                max((now_s - f.sent_at_s for f in s.in_flight.values()), default=0.0),
            )
            for url, s in self._types.items()
        )

    # -- shared by both --------------------------------------------------------------

    def _settle(
        self, state: TypeState, type_url: TypeUrl, nonce: Nonce, error: str | None, now_s: float
    ) -> list[Event]:
        """Match an answer with its response: ACK, NACK or stale."""
        flight = state.in_flight.pop(nonce, None)
        if flight is None:
            return [Stale(type_url, nonce)]
        if error is not None:
            state.nacks += 1
            state.last_nack = error
            for name in flight.versions:  # partly applied, so not known
                state.acked.pop(name, None)
            state.refused |= flight.versions.keys()
            return [Nacked(type_url, flight.version, tuple(flight.versions), error)]
        state.version_acked = flight.version
        state.acked.update(flight.versions)
        state.refused -= flight.versions.keys()
        if type_url == EDS:
            # Endpoints sent before a cluster changed do not count: they are due again.
            self._gate.endpoints_due -= flight.versions.keys() & state.sent.keys()
        return [Acked(type_url, flight.version, now_s - flight.sent_at_s, flight.heartbeat)]

    def _due(self, type_url: TypeUrl, state: TypeState, snapshot: Snapshot, now_s: float) -> Update:
        have = state.subscription.pick(snapshot.of(type_url).resources)
        keep = type_url in TARGETS and self._keeps_targets(snapshot, now_s)
        update = self._missing(state, have, keep)
        if not update or type_url not in POINTERS:
            return update
        if not self._gate.pointers.blocks(self._targets_unsettled(snapshot), now_s):
            return update
        return self._answer(state, update)

    def _answer(self, state: TypeState, update: Update) -> Update:
        """What goes out during a hold: a client that waits for a name has no route there yet."""
        if state.owed or (state.subscription.type_url == LDS and state.asked & update.names):
            return update
        resources = tuple(r for r in update.resources if r.name in state.asked)
        removed = tuple(name for name in update.removed if name in state.asked)
        return Update(resources, removed)

    def _targets_unsettled(self, snapshot: Snapshot) -> bool:
        """Whether clusters or endpoints are still on their way to this client."""
        cds = self._types.get(CDS)
        if cds is None:
            return False
        if any(not f.heartbeat for f in cds.in_flight.values()):
            return True
        return bool(self._gate.endpoints_due & snapshot.of(EDS).resources.keys())

    def _keeps_targets(self, snapshot: Snapshot, now_s: float) -> bool:
        """Whether clusters that are to go have to stay for now.

        A client that refused new routes goes on with the old ones: what they may name stays
        until it has accepted others, however long that takes.
        """
        removing = self._would_remove(snapshot)
        refused = any(s.refused & s.sent.keys() for t, s in self._types.items() if t in POINTERS)
        unsettled = removing and self._pointers_unsettled(snapshot)
        return self._gate.removals.blocks(unsettled, now_s) or (removing and refused)

    def _pointers_unsettled(self, snapshot: Snapshot) -> bool:
        """Whether the client may still use routes or listeners that are to be replaced."""
        for type_url in (LDS, RDS):
            state = self._types.get(type_url)
            if state is None or state.subscription.empty:
                continue
            have = state.subscription.pick(snapshot.of(type_url).resources)
            if state.in_flight or self._missing(state, have, False):
                return True
        return False

    def _would_remove(self, snapshot: Snapshot) -> bool:
        for type_url in TARGETS:
            state = self._types.get(type_url)
            if state is not None and state.sent.keys() - snapshot.of(type_url).resources.keys():
                return True
        return False

    def _send(
        self,
        type_url: TypeUrl,
        state: TypeState,
        snapshot: Snapshot,
        update: Update,
        now_s: float,
    ) -> Response:
        version, nonce = snapshot.of(type_url).version, self._next_nonce()
        payload = self._encode(type_url, version, nonce, update)
        if type_url == CDS:
            self._clusters_sent(state, update)
        versions = {r.name: r.version for r in update.resources}
        for resource in update.resources:
            state.sent[resource.name] = Sent(resource.version, resource)
            state.missing_told.discard(resource.name)
        for name in update.removed:
            state.sent.pop(name, None)
            state.acked.pop(name, None)
            if name in state.subscription.names:
                state.missing_told.add(name)
        state.asked.clear()
        state.owed = False
        state.in_flight[nonce] = InFlight(version, versions, now_s, heartbeat=False)
        state.nonce, state.version_sent = nonce, version
        return Response(type_url, nonce, version, payload, tuple(versions), update.removed)

    def _clusters_sent(self, cds: TypeState, update: Update) -> None:
        """A changed cluster warms until it gets endpoints, also unchanged ones.

        The name of a cluster is the name of its ClusterLoadAssignment.
        """
        changed = {
            r.name
            for r in update.resources
            if (s := cds.sent.get(r.name)) is None or s.version != r.version
        }
        self._gate.endpoints_due |= changed
        self._gate.endpoints_due -= set(update.removed)
        eds = self._types.get(EDS)
        if eds is not None:
            for name in changed & eds.sent.keys():
                del eds.sent[name]

    def _next_nonce(self) -> Nonce:
        return f"{self._prefix}{next(self._nonces)}"


def served(type_url: TypeUrl) -> bool:
    """Whether this server has resources of that type."""
    return type_url in SHORT
