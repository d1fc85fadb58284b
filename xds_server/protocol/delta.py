"""Server side of an incremental stream."""

from collections.abc import Iterable, Iterator
from typing import Final

from xds_server.model.ids import ECDS, RDS, VHDS, Nonce, ResourceName, TypeUrl, Version
from xds_server.model.snapshot import Resource, TypeSnapshot
from xds_server.protocol import framing
from xds_server.protocol.events import Event, Subscribed, UnknownType
from xds_server.protocol.messages import DeltaRequest, Response
from xds_server.protocol.quarantine import Quarantine
from xds_server.protocol.state import Sent, Target, TypeState, Update
from xds_server.protocol.stream import StreamMachine, served
from xds_server.protocol.subscription import Subscription

SPLIT_BYTES: Final = 1 << 20
"""Size of resources after which a response ends and another begins.

Clients built on gRPC's C-core refuse messages above 4 MiB.
"""


class DeltaStream(StreamMachine):
    """DeltaDiscoveryRequests in; events, and DeltaDiscoveryResponses as bytes, out.

    For virtual hosts, Envoy 1.40 asks once per stream with no name, and then waits 15 s for
    each RouteConfiguration with VHDS until something in an answer has its name as a prefix.
    So the first answer, and one after each new RouteConfiguration, says that ``<routes>/``,
    which never was, is gone.
    """

    def __init__(
        self,
        nonce_prefix: str = "",
        *,
        only: TypeUrl | None = None,
        drain_s: float = 0.0,
        quarantine: Quarantine | None = None,
    ) -> None:
        super().__init__(nonce_prefix, only=only, drain_s=drain_s, quarantine=quarantine)
        self._hosts_due: set[ResourceName] = set()
        """RouteConfigurations of whose virtual hosts nothing has been said; bounded by them."""

    def receive(self, request: DeltaRequest, now_s: float) -> list[Event]:
        """Apply one request and say what it meant.

        Raises RemoteProtocolError for a request without a type, or of another type than
        that of its stream.
        """
        self._quiet = False
        type_url = request.type_url
        state = self._types.get(type_url)
        if state is None:
            type_url = self._type_of(type_url)
            if not served(type_url):
                return [UnknownType(type_url)]
            state = self._types.get(type_url)
        first = state is None
        if state is None:
            state = self._types[type_url] = TypeState(Subscription(type_url))
            self._start_over(state, fresh=not request.initial_versions)
            # What the client kept from an earlier stream counts as sent, and applied.
            state.sent = {name: Sent(v) for name, v in request.initial_versions.items()}
            state.acked = dict(request.initial_versions)
            state.from_before = bool(request.initial_versions)
        events: list[Event] = []
        if request.response_nonce:
            events = self._settle(state, request.response_nonce, request.error, now_s)
        if first or request.subscribe or request.unsubscribe:
            events += self._names(state, request, first=first)
        return events

    def _names(self, state: TypeState, request: DeltaRequest, *, first: bool) -> list[Event]:
        type_url, wildcard = state.subscription.type_url, state.subscription.wildcard
        state.settled = None
        added, dropped = state.subscription.change(
            request.subscribe, request.unsubscribe, first=first
        )
        if first:
            # Envoy waits for an answer to an empty subscription to VHDS, as to a wildcard.
            waits = state.subscription.wildcard or (type_url == VHDS and not added)
            state.owed = waits and not request.initial_versions
            if type_url == VHDS and RDS in self._types:
                self._hosts_due |= self._types[RDS].sent.keys()
            added -= request.initial_versions.keys()
        for name in added:
            state.missing_told.discard(name)
            state.asked.add(name)
        for name in dropped:  # under a wildcard the client learns again what it has of it
            self._drop(state, name)
        if wildcard and not state.subscription.wildcard:
            state.keep_only(state.subscription.names)  # the client forgot the rest by itself
        if state.subscription.wildcard and not wildcard and not first:
            state.owed = True
        if not first and not added and state.subscription.wildcard == wildcard:
            return []
        return [Subscribed(type_url, tuple(sorted(added)), state.subscription.wildcard)]

    def _drop(self, state: TypeState, name: ResourceName) -> None:
        state.forget(name)
        state.asked.discard(name)
        state.missing_told.discard(name)
        if state.subscription.wildcard:
            state.asked.add(name)
        if state.subscription.type_url == VHDS:  # the name may have been an alias
            names = state.subscription.names
            for other, sent in tuple(state.sent.items()):
                aliases = sent.resource.aliases if sent.resource is not None else ()
                if name in aliases and other not in names and names.isdisjoint(aliases):
                    state.forget(other)

    def _missing(self, state: TypeState, target: Target) -> Update:
        wanted, asked, held = target.wanted, state.asked, target.held
        changed = tuple(
            [  # a list is made faster than a generator is run
                r
                for name, r in wanted.items()
                if name not in held
                and (
                    (s := state.sent.get(name)) is None
                    or s.version != r.version
                    or name in asked
                    or (r.aliases and not asked.isdisjoint(r.aliases))
                )
            ]
        )
        names = state.subscription.names
        if state.sent.keys() <= wanted.keys() and names <= wanted.keys() and not asked:
            return Update(changed, (), state.owed, target.deviates)
        gone = state.sent.keys() - wanted.keys() - target.kept
        unknown = (state.subscription.names | asked) - wanted.keys() - state.missing_told
        unknown -= target.kept & state.sent.keys()
        if target.aliases:
            unknown -= {a for a in unknown if target.aliases.get(a) in wanted}
        if state.subscription.type_url == ECDS:
            # A filter that is in use is not taken away: clients unsubscribe when they are done.
            unknown -= gone
            gone = set()
        removed = tuple(sorted(gone | unknown))
        return Update(changed, removed, state.owed, target.deviates)

    def _chunks(self, update: Update) -> Iterator[Update]:
        """Cut by size; names are taken away last."""
        chunk: list[Resource] = []
        size = 0
        for resource in update.resources:
            if chunk and size + len(resource.body) > SPLIT_BYTES:
                yield Update(tuple(chunk), (), update.owed, update.deviates)
                chunk, size = [], 0
            chunk.append(resource)
            size += len(resource.body)
        yield Update(tuple(chunk), update.removed, update.owed, update.deviates)

    def _encode(self, state: TypeState, version: Version, nonce: Nonce, update: Update) -> bytes:
        type_url, removed = state.subscription.type_url, update.removed
        unresolvable: tuple[ResourceName, ...] = ()
        if type_url == VHDS:
            # Envoy resumes a request that waits for a host only for a Resource of that alias.
            unresolvable = tuple(n for n in removed if n not in state.sent)
            removed = tuple(n for n in removed if n in state.sent)
            removed += tuple(f"{name}/" for name in sorted(self._hosts_due))
            self._hosts_due.clear()
        return framing.delta_response(
            type_url, version, nonce, update.resources, removed, unresolvable
        )

    def _send_one(
        self, state: TypeState, part: TypeSnapshot, update: Update, now_s: float
    ) -> Response:
        hosts = self._types.get(VHDS)
        if state.subscription.type_url == RDS and hosts is not None:
            new = {r.name for r in update.resources} - state.sent.keys()
            if new:
                self._hosts_due |= new
                hosts.owed, hosts.settled = True, None
        return super()._send_one(state, part, update, now_s)

    def _encode_heartbeat(
        self, type_url: TypeUrl, version: Version, nonce: Nonce, resources: Iterable[Resource]
    ) -> bytes:
        return framing.delta_heartbeat(type_url, version, nonce, resources)
