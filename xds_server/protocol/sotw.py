"""Server side of a state-of-the-world stream."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from xds_server.model.ids import CDS, LDS, SRDS, Nonce, TypeUrl, Version
from xds_server.model.snapshot import Resource
from xds_server.protocol import framing
from xds_server.protocol.events import Event, Stale, Subscribed, UnknownType
from xds_server.protocol.messages import SotwRequest
from xds_server.protocol.recovery import mentions
from xds_server.protocol.state import UNKNOWN, Target, TypeState, Update
from xds_server.protocol.stream import StreamMachine, served
from xds_server.protocol.subscription import Subscription

FULL_STATE: Final = frozenset({CDS, LDS, SRDS})
"""Types whose response is the whole world: what is not in it is gone."""


class SotwStream(StreamMachine):
    """DiscoveryRequests in; events, and DiscoveryResponses as bytes, out."""

    _whole = FULL_STATE

    def receive(self, request: SotwRequest, now_s: float) -> list[Event]:
        """Apply one request and say what it meant.

        Raises RemoteProtocolError for a request without a type, or of another type than
        that of its stream.
        """
        self._quiet = False
        type_url = self._type_of(request.type_url)
        if not served(type_url):
            return [UnknownType(type_url)]
        state = self._types.get(type_url)
        if state is None:
            state = self._types[type_url] = TypeState(Subscription(type_url))
            return self._start(state, request)
        if not request.response_nonce:
            # A client that lost its nonce starts over on the same stream.
            return self._start(state, request)
        newest = request.response_nonce == state.nonce
        if newest and request.error is not None:
            late = self._late(state, request, now_s)
            if late is not None:
                return [*late, *self._names(state, request)]
        events = self._settle(state, request.response_nonce, request.error, now_s)
        if newest:
            if events and isinstance(events[0], Stale):
                events = []  # the same nonce again: a change of names, or a repetition
            events += self._settle_older(state, request, now_s)
        return [*events, *self._names(state, request)]

    def _late(self, state: TypeState, request: SotwRequest, now_s: float) -> list[Event] | None:
        """A refusal of an older response that comes with the newest nonce; None: it is none.

        While a cluster warms Envoy answers nothing, and then once for all: with the nonce and
        the version of what it accepted last, and the error of what it refused before (seen
        with 1.40). The version tells: a response that was refused has not become the version.
        """
        flight = state.in_flight.get(state.nonce)
        if flight is None or len(state.in_flight) < 2 or request.version_info != flight.version:
            return None
        error = request.error or ""
        older = [f for n, f in state.in_flight.items() if n != state.nonce]
        blamed = {r.name: r.version for f in older for r in f.resources if mentions(error, r.name)}
        # What it names was skipped, not accepted, if it was offered again unchanged.
        skipped = tuple(
            r
            for r in flight.resources
            if blamed.get(r.name) == r.version
            and ((g := state.good.get(r.name)) is None or g.version != r.version)
        )
        accepted = tuple(r for r in flight.resources if r not in skipped)
        state.in_flight.clear()
        if state.recovery is not None:
            state.recovery.nonce = ""
        events: list[Event] = [self._accepted(state, replace(flight, resources=accepted), now_s)]
        events += self._refused(state, replace(older[-1], resources=skipped), error)
        return [*events, *self._release(state, error)]

    def _settle_older(self, state: TypeState, request: SotwRequest, now_s: float) -> list[Event]:
        """Answering the newest response answers the older ones too: they came in order.

        If it was refused, what became of them is not known.
        """
        events: list[Event] = []
        for nonce in tuple(state.in_flight):
            if request.error is None:
                events += self._settle(state, nonce, None, now_s)
            else:
                del state.in_flight[nonce]
                if state.recovery is not None and state.recovery.nonce == nonce:
                    state.recovery.nonce = ""
        return events

    def _start(self, state: TypeState, request: SotwRequest) -> list[Event]:
        type_url = state.subscription.type_url
        self._start_over(state, fresh=not request.version_info)
        state.from_before = bool(request.version_info)
        state.subscription.replace(request.names)
        state.sent.clear()
        state.asked |= state.subscription.names
        # A client that has a version may have names that are gone; only an answer says so.
        has_state = type_url in FULL_STATE and bool(request.version_info)
        state.owed = state.subscription.wildcard or has_state
        return [Subscribed(type_url, request.names, state.subscription.wildcard)]

    def _names(self, state: TypeState, request: SotwRequest) -> list[Event]:
        """Take the list over, also from a NACK and from a stale request."""
        before = state.subscription.wildcard
        names = state.subscription.names
        new = state.subscription.replace(request.names)
        if state.subscription.names is not names or state.subscription.wildcard != before:
            state.settled = None
        if not state.subscription.wildcard:
            # What is asked for again is to be sent again.
            state.keep_only(state.subscription.names)
        state.asked |= new
        if state.subscription.wildcard and not before:
            state.owed = True
        if not new and state.subscription.wildcard == before:
            return []
        type_url, wildcard = state.subscription.type_url, state.subscription.wildcard
        return [Subscribed(type_url, tuple(sorted(new)), wildcard)]

    def _missing(self, state: TypeState, target: Target) -> Update:
        wanted, held = target.wanted, target.held
        changed = tuple(
            r
            for name, r in wanted.items()
            if name not in held
            and (name in state.asked or state.sent.get(name, UNKNOWN).version != r.version)
        )
        if state.subscription.type_url not in FULL_STATE:
            return Update(changed, deviates=target.deviates)
        gone = state.sent.keys() - wanted.keys() - target.kept
        if not changed and not gone and not state.owed:
            return Update()
        # What is to stay for now, and in the place of what is held back what was there before.
        others = sorted((target.kept - wanted.keys()) | held)
        before = [
            r
            for name in others
            if (r := state.good.get(name) or state.sent.get(name, UNKNOWN).resource) is not None
        ]
        now = (r for name, r in wanted.items() if name not in held)
        return Update((*now, *before), tuple(sorted(gone)), True, target.deviates)

    def _chunks(self, update: Update) -> Iterator[Update]:
        yield update  # the rest of the world would read as removed

    def _encode(self, state: TypeState, version: Version, nonce: Nonce, update: Update) -> bytes:
        type_url = state.subscription.type_url
        return framing.sotw_response(type_url, version, nonce, update.resources)

    def _encode_heartbeat(
        self, type_url: TypeUrl, version: Version, nonce: Nonce, resources: Iterable[Resource]
    ) -> bytes:
        # Envoy 1.40 sorts a bodiless Resource out before it looks at its TTL (its
        # GrpcMuxImpl::onDiscoveryResponse), so in SotW only the whole resource extends it.
        return framing.sotw_response(type_url, version, nonce, resources)
