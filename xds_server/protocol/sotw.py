"""Server side of a state-of-the-world stream."""

from collections.abc import Iterable, Mapping
from typing import Final

from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import CDS, LDS, Nonce, ResourceName, TypeUrl, Version
from xds_server.model.snapshot import Resource
from xds_server.protocol import framing
from xds_server.protocol.events import Event, Stale, Subscribed, UnknownType
from xds_server.protocol.messages import SotwRequest
from xds_server.protocol.stream import Sent, StreamMachine, TypeState, Update, served
from xds_server.protocol.subscription import Subscription

FULL_STATE: Final = frozenset({CDS, LDS})
"""Types whose response is the whole world: what is not in it is gone."""


class SotwStream(StreamMachine):
    """DiscoveryRequests in; events, and DiscoveryResponses as bytes, out."""

    def receive(self, request: SotwRequest, now_s: float) -> list[Event]:
        """Apply one request and say what it meant.

        Raises RemoteProtocolError for a request without a type.
        """
        if not request.type_url:
            raise RemoteProtocolError("a request on an aggregated stream needs a type_url")
        if not served(request.type_url):
            return [UnknownType(request.type_url)]
        state = self._types.get(request.type_url)
        if state is None:
            state = self._types[request.type_url] = TypeState(Subscription(request.type_url))
            return self._start(state, request)
        if not request.response_nonce:
            # A client that lost its nonce starts over on the same stream.
            state.in_flight.clear()
            return self._start(state, request)
        newest = request.response_nonce == state.nonce
        events = self._settle(state, request.type_url, request.response_nonce, request.error, now_s)
        if newest:
            # Answering the newest response answers the older ones too.
            state.in_flight.clear()
            if events and isinstance(events[0], Stale):
                events = []  # the same nonce again: a change of names, or a repetition
        return [*events, *self._names(state, request)]

    def _start(self, state: TypeState, request: SotwRequest) -> list[Event]:
        state.subscription.replace(request.names)
        state.sent.clear()
        state.asked |= state.subscription.names
        # A client that has a version may have names that are gone; only an answer says so.
        has_state = request.type_url in FULL_STATE and bool(request.version_info)
        state.owed = state.subscription.wildcard or has_state
        return [Subscribed(request.type_url, request.names, state.subscription.wildcard)]

    def _names(self, state: TypeState, request: SotwRequest) -> list[Event]:
        """Take the list over, also from a NACK and from a stale request."""
        before = state.subscription.wildcard
        new = state.subscription.replace(request.names)
        if not state.subscription.wildcard:
            # What is asked for again is to be sent again.
            state.keep_only(state.subscription.names)
        state.asked |= new
        if state.subscription.wildcard and not before:
            state.owed = True
        if not new and state.subscription.wildcard == before:
            return []
        return [Subscribed(request.type_url, tuple(sorted(new)), state.subscription.wildcard)]

    def _missing(
        self, state: TypeState, have: Mapping[ResourceName, Resource], keep: bool
    ) -> Update:
        changed = tuple(
            r
            for name, r in have.items()
            if name in state.asked or state.sent.get(name, _NOTHING).version != r.version
        )
        if state.subscription.type_url not in FULL_STATE:
            return Update(changed)
        gone = state.sent.keys() - have.keys()
        kept: list[Resource] = []
        if keep:
            kept = [s.resource for n in sorted(gone) if (s := state.sent[n]).resource is not None]
            gone = gone - {r.name for r in kept}
        if not changed and not gone and not state.owed:
            return Update()
        return Update((*have.values(), *kept), tuple(sorted(gone)), owed=True)

    def _encode(self, type_url: TypeUrl, version: Version, nonce: Nonce, update: Update) -> bytes:
        return framing.sotw_response(type_url, version, nonce, update.resources)

    def _encode_heartbeat(
        self, type_url: TypeUrl, version: Version, nonce: Nonce, resources: Iterable[Resource]
    ) -> bytes:
        # Envoy 1.40 sorts a bodiless Resource out before it looks at its TTL (its
        # GrpcMuxImpl::onDiscoveryResponse), so in SotW only the whole resource extends it.
        return framing.sotw_response(type_url, version, nonce, resources)


_NOTHING: Final = Sent("")
