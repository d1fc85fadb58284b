"""What SotW and delta streams have in common: when to send what, and what answers mean.

Sans I/O: ``receive`` takes a request and says what it meant, ``poll`` compares what the
client has with what it should have and says what to send now. Between the two any number of
snapshots may have come and gone; only the newest counts, so pushes coalesce by themselves.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from hashlib import blake2b
from itertools import count
from typing import Any

from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import CDS, EDS, LDS, SHORT, VHDS, Nonce, ResourceName, TypeUrl, Version
from xds_server.model.snapshot import EMPTY, Resource, Snapshot, TypeSnapshot
from xds_server.protocol.events import Acked, Event, Nacked, Stale
from xds_server.protocol.holds import NONE, Holds
from xds_server.protocol.messages import Response
from xds_server.protocol.ordering import HOLD_MAX_S, ORDER, POINTERS, TARGETS
from xds_server.protocol.quarantine import Quarantine
from xds_server.protocol.recovery import Recovery, mentions
from xds_server.protocol.state import (
    IN_FLIGHT_MAX,
    PIPELINE_AFTER_S,
    UNKNOWN,
    InFlight,
    Sent,
    Target,
    TypeState,
    Update,
)
from xds_server.protocol.status import SILENT_AFTER_S, WITHDRAW_AFTER_S


class StreamMachine(Holds):
    """Server side of one xDS stream: requests in, events and responses out.

    ``only`` is the type of a stream that is not aggregated; ``drain_s`` how long a cluster
    stays after the client applied routes without it; ``quarantine`` what the node refused
    on its other streams.
    """

    _whole: Set[TypeUrl] = NONE
    """Types of which every response has everything."""

    def __init__(
        self,
        nonce_prefix: str = "",
        *,
        only: TypeUrl | None = None,
        drain_s: float = 0.0,
        quarantine: Quarantine | None = None,
    ) -> None:
        super().__init__(only, drain_s, quarantine)
        self._nonces = count(1)
        self._prefix = nonce_prefix
        self._quiet = False  # since the last poll nothing has to be done at any time

    # -- what subclasses decide ------------------------------------------------------

    @abstractmethod
    def receive(self, request: Any, now_s: float) -> list[Event]:
        """Apply one request and say what it meant; see the subclasses."""

    @abstractmethod
    def _chunks(self, update: Update) -> Iterator[Update]:
        """Cut an update into what fits one response each."""

    @abstractmethod
    def _encode(
        self, state: TypeState, version: Version, nonce: Nonce, update: Update
    ) -> bytes: ...

    @abstractmethod
    def _encode_heartbeat(
        self, type_url: TypeUrl, version: Version, nonce: Nonce, resources: Iterable[Resource]
    ) -> bytes: ...

    # -- for the pump ----------------------------------------------------------------

    @property
    def drain_s(self) -> float:
        """How long a cluster stays after the client applied routes without it."""
        return self._drain_s

    def use(self, quarantine: Quarantine) -> None:
        """Share the quarantine of the node, once it is known whose stream this is."""
        self._quarantine = quarantine

    def poll(self, snapshot: Snapshot, now_s: float) -> list[Response]:
        """Return what to send now, in order; sending is assumed to succeed or end the stream."""
        plain = self._plainly_due(snapshot, now_s)
        if plain is not None:
            return plain
        self._quiet = False
        responses: list[Response] = []
        unwedged = self._unwedge(snapshot, now_s)
        self._withdraw(now_s)
        if not self._targets_unsettled(snapshot):
            self._gate.pointers.release()
        kept = self._kept(snapshot, now_s)
        for type_url in ORDER:
            state = self._types.get(type_url)
            if state is None or state.settled is snapshot.of(type_url):
                continue
            state.waits = state.blocked(now_s)
            if state.waits:
                continue
            responses += self._serve(state, snapshot, kept.get(type_url, NONE), now_s)
        if unwedged:
            responses = [replace(r, unwedge=r.type_url == EDS) for r in responses]
        return responses

    def _plainly_due(self, snapshot: Snapshot, now_s: float) -> list[Response] | None:
        """Return what ``poll`` would, where that is plain, as it mostly is; None where not.

        Plain is that every type is settled, or all but one that nothing waits for, and that
        neither a hold, a drain, a refusal nor an unanswered response plays a part.
        """
        types, gate = self._types, self._gate
        cds = types.get(CDS)
        if (cds is not None and cds.in_flight) or not gate.open:
            return None
        part_of = snapshot.types.get
        behind = None
        for type_url, state in types.items():
            if state.settled is not part_of(type_url, EMPTY):
                if behind is not None or type_url in TARGETS:
                    return None
                behind = state
        self._quiet = True
        if behind is None:
            return []
        if (
            behind.in_flight
            or (behind.from_before and not behind.version_sent)
            or behind.recovery is not None
            or gate.endpoints_due
            or (cds is not None and cds.partial)
            or VHDS in types
            or self._quarantine.refusals
        ):
            self._quiet = False
            return None
        part = part_of(behind.subscription.type_url, EMPTY)
        update = self._missing_of_named(behind, part)
        if update is None:
            picked = behind.subscription.pick(part)
            update = self._missing(behind, Target(picked, NONE, NONE, part.aliases))
        responses = self._send(behind, part, update, now_s) if update else []
        if behind.partial:
            self._quiet = False
        else:
            behind.settled = part
        return responses

    def _missing_of_named(self, state: TypeState, part: TypeSnapshot) -> Update | None:
        """Compare for a client that has all that it names, no more, and gets other content.

        None when it is not so.
        """
        subscription, sent, have = state.subscription, state.sent, part.resources
        names = subscription.ordered
        if subscription.wildcard or state.asked or part.aliases or len(names) != len(sent):
            return None
        if subscription.type_url in self._whole:
            return None
        changed = []
        for name in names:
            before, now = sent.get(name), have.get(name)
            if before is None or now is None:
                return None
            if before.version != now.version:
                changed.append(now)
        return Update(tuple(changed), (), state.owed)

    def heartbeat(self, snapshot: Snapshot, now_s: float) -> list[Response]:
        """Return responses that extend the TTL of what the client has and may keep."""
        responses = []
        for type_url, state in self._types.items():
            if any(f.heartbeat for f in state.in_flight.values()):
                continue  # one at a time: a client that does not answer is not flooded
            alive = tuple(
                r
                for r in self._wanted(state, snapshot.of(type_url)).values()
                if r.ttl_s is not None and state.acked.get(r.name) == r.version
            )
            if alive:
                version, nonce = snapshot.of(type_url).version, self._next_nonce()
                payload = self._encode_heartbeat(type_url, version, nonce, alive)
                flight = InFlight(version, alive, now_s, heartbeat=True)
                state.in_flight[nonce] = flight
                state.nonce = nonce
                responses.append(
                    Response(type_url, nonce, version, payload, flight.names, (), True)
                )
        return responses

    def next_deadline_s(self, now_s: float) -> float | None:
        """When to poll again though nothing happened; None: never."""
        if self._quiet:
            return None
        waits = [] if self._gate.open else self._gate.deadlines(self._drain_s, now_s)
        for state in self._types.values():
            if not state.in_flight:
                continue
            if state.waits:
                newest_s = next(reversed(state.in_flight.values())).sent_at_s
                waits.append(newest_s + PIPELINE_AFTER_S)
            if state.recovery is not None:
                waits.append(state.recovery.since_s + HOLD_MAX_S)
            if state.subscription.type_url == CDS and state.oldest_s is not None:
                waits.append(max(state.oldest_s, self._unwedged_at_s) + SILENT_AFTER_S)
                waits.append(state.oldest_s + WITHDRAW_AFTER_S)
        return min((w for w in waits if w > now_s), default=None) if waits else None

    # -- requests --------------------------------------------------------------------

    def _type_of(self, type_url: TypeUrl) -> TypeUrl:
        """Return the type that is meant. Raises RemoteProtocolError."""
        if self._only is None:
            if not type_url:
                raise RemoteProtocolError("a request on an aggregated stream needs a type_url")
            return type_url
        if type_url not in ("", self._only):
            raise RemoteProtocolError(
                f"this stream serves {self._only}, not {type_url[:200]}; use the aggregated one"
            )
        return self._only

    def _settle(
        self, state: TypeState, nonce: Nonce, error: str | None, now_s: float
    ) -> list[Event]:
        """Match an answer with its response: ACK, NACK or stale."""
        type_url = state.subscription.type_url
        flight = state.in_flight.pop(nonce, None)
        if flight is None:
            return [Stale(type_url, nonce)]
        if state.recovery is not None and state.recovery.nonce == nonce:
            state.recovery.nonce = ""
        if error is not None:
            return [*self._refused(state, flight, error), *self._release(state, error)]
        return [self._accepted(state, flight, now_s), *self._release(state, "")]

    def _accepted(self, state: TypeState, flight: InFlight, now_s: float) -> Event:
        type_url = state.subscription.type_url
        if not flight.heartbeat:
            state.version_acked = flight.version
            for r in flight.resources:
                if r.name in state.sent:
                    state.acked[r.name] = r.version
                    state.good[r.name] = r
            if state.refused:
                state.refused.difference_update([r.name for r in flight.resources])
            if self._quarantine.refusals:
                for r in flight.resources:
                    self._quarantine.accepted(type_url, r.name, r.version)
            if type_url == EDS:
                # Endpoints sent before a cluster changed do not count: they are due again.
                self._gate.endpoints_due -= {n for n in flight.names if n in state.sent}
        return Acked(type_url, flight.version, now_s - flight.sent_at_s, flight.heartbeat)

    def _refused(self, state: TypeState, flight: InFlight, error: str) -> list[Event]:
        """Find the culprit, or begin to look for it; what the client has is not known now."""
        type_url = state.subscription.type_url
        state.nacks += 1
        state.last_nack = error
        events: list[Event] = [Nacked(type_url, flight.version, flight.names, error)]
        if flight.heartbeat:
            for name in flight.names:  # it did not extend them
                state.acked.pop(name, None)
            return events
        recovery = state.recovery or Recovery()
        suspects = [
            r
            for r in state.suspects(flight)
            if self._quarantine.of(r) is None and not recovery.suspects(r)
        ]
        state.refused.update(r.name for r in suspects)
        if self._would_take(state, suspects, error):
            return events
        for r in suspects:
            state.sent[r.name] = UNKNOWN
            state.acked.pop(r.name, None)
        if len(suspects) == 1:
            events.append(self._blame(state, suspects[0], error))
        elif suspects:
            recovery.split(suspects, error)
        state.recovery = None if recovery.over else recovery
        state.settled = None
        return events

    def _would_take(self, state: TypeState, suspects: list[Resource], error: str) -> bool:
        """Whether to look for the culprit would take away what the client may be using.

        A state of the world that lacks half of the suspects removes them. From a client that
        came back with a world of its own, nothing generated is taken on mere suspicion: it goes
        on with what it has until the content changes.
        """
        new = state.from_before and not state.version_acked
        if not suspects or not new or state.subscription.type_url not in self._whole:
            return False
        if all(r.name in state.good for r in suspects):
            return False
        return not any(r.own or mentions(error, r.name) for r in suspects)

    def _start_over(self, state: TypeState, *, fresh: bool) -> None:
        """First request of a type. A ``fresh`` client has nothing, so nothing is proven bad."""
        state.in_flight.clear()
        state.recovery, state.settled = None, None
        if fresh:
            self._quarantine.forget(state.subscription.type_url)

    # -- responses -------------------------------------------------------------------

    def _serve(
        self, state: TypeState, snapshot: Snapshot, kept: Set[ResourceName], now_s: float
    ) -> list[Response]:
        part = snapshot.of(state.subscription.type_url)
        self._give_up(state, now_s)
        offered, update = self._offer(state, snapshot, kept)
        if not update:
            if state.from_before and not state.version_sent:  # it has what it should have
                state.version_sent = state.version_acked = part.version
            if not kept and state.recovery is None:
                state.settled = part
            return []
        passing = self._passing(state, update, snapshot, now_s)
        if not passing:
            return []
        # What it was settled on may come back, the very same object.
        state.settled = None
        responses = self._send(state, part, passing, now_s)
        if passing is update and not (
            kept or state.partial or state.recovery is not None or self._quarantine
        ):
            state.settled = part
        if offered and state.recovery is not None:
            state.recovery.nonce, state.recovery.since_s = responses[-1].nonce, now_s
        return responses

    def _offer(
        self, state: TypeState, snapshot: Snapshot, kept: Set[ResourceName]
    ) -> tuple[bool, Update]:
        """Return what is due; while a culprit is looked for, with the next half on offer."""
        recovery = state.recovery
        update = self._missing(state, self._target(state, snapshot, kept))
        if recovery is None or recovery.nonce or recovery.withheld:
            return False, update
        if state.subscription.type_url in POINTERS and self._targets_unsettled(snapshot):
            return False, update
        while recovery.waiting:
            recovery.offer()
            update = self._missing(state, self._target(state, snapshot, kept))
            if update:
                return True, update
        state.recovery = None
        return False, update

    def _give_up(self, state: TypeState, now_s: float) -> None:
        """A client that does not answer tells nothing: offer all again, as to any other."""
        recovery = state.recovery
        if recovery is None or not recovery.nonce or now_s - recovery.since_s < HOLD_MAX_S:
            return
        offered = (r for f in state.in_flight.values() for r in f.resources)
        if state.subscription.type_url == CDS and any(r.own for r in offered):
            return  # they will be taken back
        state.recovery = None

    def _passing(
        self, state: TypeState, update: Update, snapshot: Snapshot, now_s: float
    ) -> Update:
        """What may go out now: what points at clusters waits until they are there.

        A client that asks for a name has no route of that name yet, so it gets it.
        """
        type_url = state.subscription.type_url
        if type_url not in POINTERS:
            return update
        if not self._gate.pointers.blocks(self._targets_unsettled(snapshot), now_s):
            return update
        if state.owed or (type_url == LDS and state.asked & update.names):
            return update
        return Update(
            tuple(
                r
                for r in update.resources
                if r.name in state.asked or not state.asked.isdisjoint(r.aliases)
            ),
            tuple(name for name in update.removed if name in state.asked),
            False,
            update.deviates,
        )

    def _send(
        self, state: TypeState, part: TypeSnapshot, update: Update, now_s: float
    ) -> list[Response]:
        """Encode an update; what does not fit into the responses in flight stays due."""
        responses: list[Response] = []
        state.partial = False
        for chunk in self._chunks(update) if len(update.resources) > 1 else (update,):
            if len(state.in_flight) >= IN_FLIGHT_MAX:
                state.partial = True
                return responses
            responses.append(self._send_one(state, part, chunk, now_s))
        state.asked.clear()
        state.owed = False
        state.version_sent = responses[-1].version_info
        return responses

    def _send_one(
        self, state: TypeState, part: TypeSnapshot, update: Update, now_s: float
    ) -> Response:
        type_url, nonce = state.subscription.type_url, self._next_nonce()
        version = _version(part, update) if update.deviates else part.version
        resources = update.resources
        payload = self._encode(state, version, nonce, update)
        if type_url == CDS:
            self._clusters_sent(state, update)
        for resource in resources:
            state.sent[resource.name] = Sent(resource.version, resource)
        if state.missing_told or state.asked:
            sent = [r.name for r in resources]
            state.missing_told.difference_update(sent)
            state.asked.difference_update(sent)
        for name in update.removed:
            state.forget(name)
            state.asked.discard(name)
            if name in state.subscription.names:
                state.missing_told.add(name)
        state.in_flight[nonce] = InFlight(version, resources, now_s, heartbeat=False)
        state.nonce = nonce
        names = tuple([r.name for r in resources])
        return Response(type_url, nonce, version, payload, names, update.removed)

    def _next_nonce(self) -> Nonce:
        return f"{self._prefix}{next(self._nonces)}"


def _version(part: TypeSnapshot, update: Update) -> Version:
    """Version of a response that deviates from the snapshot: a property of its content too."""
    content = "\n".join(f"{r.name} {r.version}" for r in update.resources)
    return f"{part.version}~{blake2b(content.encode(), digest_size=4).hexdigest()}"


def served(type_url: TypeUrl) -> bool:
    """Whether this server has resources of that type."""
    return type_url in SHORT
