"""Server side of an incremental stream."""

from collections.abc import Iterable, Mapping

from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import Nonce, ResourceName, TypeUrl, Version
from xds_server.model.snapshot import Resource
from xds_server.protocol import framing
from xds_server.protocol.events import Event, Subscribed, UnknownType
from xds_server.protocol.messages import DeltaRequest
from xds_server.protocol.stream import Sent, StreamMachine, TypeState, Update, served
from xds_server.protocol.subscription import Subscription


class DeltaStream(StreamMachine):
    """DeltaDiscoveryRequests in; events, and DeltaDiscoveryResponses as bytes, out."""

    def receive(self, request: DeltaRequest, now_s: float) -> list[Event]:
        """Apply one request and say what it meant.

        Raises RemoteProtocolError for a request without a type.
        """
        if not request.type_url:
            raise RemoteProtocolError("a request on an aggregated stream needs a type_url")
        if not served(request.type_url):
            return [UnknownType(request.type_url)]
        state = self._types.get(request.type_url)
        first = state is None
        if state is None:
            state = self._types[request.type_url] = TypeState(Subscription(request.type_url))
            # What the client kept from an earlier stream counts as sent, and applied.
            state.sent = {name: Sent(v) for name, v in request.initial_versions.items()}
            state.acked = dict(request.initial_versions)
            state.resumed = bool(request.initial_versions)
        events: list[Event] = []
        if request.response_nonce:
            events = self._settle(
                state, request.type_url, request.response_nonce, request.error, now_s
            )
        return [*events, *self._names(state, request, first=first)]

    def _names(self, state: TypeState, request: DeltaRequest, *, first: bool) -> list[Event]:
        wildcard = state.subscription.wildcard
        added, dropped = state.subscription.change(
            request.subscribe, request.unsubscribe, first=first
        )
        if first:
            state.owed = state.subscription.wildcard and not request.initial_versions
            added -= request.initial_versions.keys()
        for name in added:
            state.missing_told.discard(name)
            state.asked.add(name)
        for name in dropped:  # under a wildcard the client learns again what it has of it
            state.sent.pop(name, None)
            state.acked.pop(name, None)
            state.asked.discard(name)
            state.missing_told.discard(name)
            if state.subscription.wildcard:
                state.asked.add(name)
        if wildcard and not state.subscription.wildcard:
            state.keep_only(state.subscription.names)  # the client forgot the rest by itself
        if state.subscription.wildcard and not wildcard and not first:
            state.owed = True
        if not first and not added and state.subscription.wildcard == wildcard:
            return []
        return [Subscribed(request.type_url, tuple(sorted(added)), state.subscription.wildcard)]

    def _missing(
        self, state: TypeState, have: Mapping[ResourceName, Resource], keep: bool
    ) -> Update:
        changed = tuple(
            r
            for name, r in have.items()
            if name in state.asked or (s := state.sent.get(name)) is None or s.version != r.version
        )
        gone = set() if keep else state.sent.keys() - have.keys()
        unknown = (state.subscription.names | state.asked) - have.keys() - state.missing_told
        if keep:
            unknown -= state.sent.keys()
        return Update(changed, tuple(sorted(gone | unknown)), state.owed)

    def _encode(self, type_url: TypeUrl, version: Version, nonce: Nonce, update: Update) -> bytes:
        return framing.delta_response(type_url, version, nonce, update.resources, update.removed)

    def _encode_heartbeat(
        self, type_url: TypeUrl, version: Version, nonce: Nonce, resources: Iterable[Resource]
    ) -> bytes:
        return framing.delta_heartbeat(type_url, version, nonce, resources)
