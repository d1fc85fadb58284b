"""Who may speak for a node: the Envoy whose ADS stream announced it, and nobody else.

Measured on Envoy 1.40 (``tests/e2e/test_truth_envoy.py``): the ADS stream, the metrics service
and load reports share one connection, the main thread's; access logs have a connection per
worker. After the control plane was away the metrics service is back up to a second *before*
the ADS stream, and when connections end by age, streams of one Envoy are on two for a while.
So a stream that does not fit yet waits, and its samples do not count meanwhile; only what stays
wrong is refused. The first rule that applies decides:

1. The stream's connection carries an ADS stream of that node: it may.
2. It carries ADS streams of one other node: refused at once.
3. The node has no ADS stream: wait.
4. With mutual TLS, the certificate names the node, or has the names of a certificate that the
   node's ADS streams came with: it may. Without, its address is one that they came from: it may.
5. Else: wait ``GRACE_S``, then refused.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from xds_server.model.ids import NodeId
from xds_server.ports import Clock
from xds_server.wire.identity import Identity, read_identity

GRACE_S: Final = 5.0
"""How long a stream may not fit, since the node's ADS stream may just be moving."""
KEPT_S: Final = 0.5
"""How long a node is known after its last ADS stream closed: less than the registry knows it
(2 s), by more than a tick, so that nothing is read that the registry would not take."""
PLACES_KEPT: Final = 8
"""Addresses and certificates kept per node; of more, the least recent is forgotten."""
_NAMED: Final = 3
_NAME_MAX: Final = 200


class SpeakerRefusedError(Exception):
    """The stream speaks for a node that is not its own."""


class Context(Protocol):
    """What is read of a call."""

    def peer(self) -> str:
        """Return whom it is with, as gRPC writes it: ``ipv4:10.0.0.7:41234``."""
        ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS knows of them."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stream comes from, and with whose certificate."""

    address: str
    connection: str  # "" where connections cannot be told apart
    names: frozenset[str]  # of the certificate

    @classmethod
    def of(cls, peer: str, identity: Identity | None) -> "Place":
        """Take gRPC's ``peer`` apart; clients of a Unix socket all have the same."""
        names = identity.names if identity is not None else frozenset()
        family, _, rest = peer.partition(":")
        if family not in ("ipv4", "ipv6"):
            return cls(peer, "", names)
        host = rest.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]").strip("[]")
        return cls(host.removeprefix("::ffff:"), peer, names)

    def fits(self, node_id: NodeId, other: "Place") -> bool:
        """Whether it may be the Envoy that was at the other place."""
        if self.names or other.names:
            return node_id in self.names or self.names == other.names
        return self.address == other.address

    def __str__(self) -> str:
        named = ", ".join(sorted(self.names)[:_NAMED])
        return f"{self.address} (certificate of {named})" if named else self.address


@dataclass(slots=True)
class _Known:
    """One node with ADS streams, and the places that they came from, the newest last."""

    streams: int = 0
    places: list[Place] = field(default_factory=list)


class Speakers:
    """The open ADS streams, and who may speak for their nodes.

    Bounded by the open streams and those that closed within ``KEPT_S``.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._nodes: dict[NodeId, _Known] = {}
        self._streams: dict[int, tuple[NodeId, Place]] = {}
        self._on: dict[str, Counter[NodeId]] = {}  # ADS streams by connection
        self._leaving: deque[tuple[float, NodeId]] = deque()
        self.changes = 0

    def opened(self, stream_id: int, node_id: NodeId, peer: str, identity: Identity | None) -> None:
        """Note that a discovery stream announced its node."""
        place = Place.of(peer, identity)
        known = self._nodes.setdefault(node_id, _Known())
        known.streams += 1
        others = [p for p in known.places if p != place]
        known.places = [*others[1 - PLACES_KEPT :], place]
        self._streams[stream_id] = node_id, place
        if place.connection:
            self._on.setdefault(place.connection, Counter())[node_id] += 1
        self.changes += 1

    def closed(self, stream_id: int) -> None:
        """Note that a discovery stream ended, if it had announced a node."""
        found = self._streams.pop(stream_id, None)
        if found is None:
            return
        node_id, place = found
        self._leaving.append((self._clock.now_s() + KEPT_S, node_id))
        if place.connection:
            nodes = self._on[place.connection]
            nodes[node_id] -= 1
            if not nodes[node_id]:
                del nodes[node_id]
            if not nodes:
                del self._on[place.connection]
        self.changes += 1

    def of(self, context: Context, node_id: NodeId, *, grace_s: float = GRACE_S) -> "Speaker":
        """Return who speaks for a node on that call; a call that is over at once has no grace."""
        place = Place.of(context.peer(), read_identity(context.auth_context()))
        return Speaker(self, self._clock, place, node_id, grace_s)

    def expire(self, now_s: float) -> None:
        """Forget nodes that left."""
        while self._leaving and self._leaving[0][0] <= now_s:
            _, node_id = self._leaving.popleft()
            known = self._nodes[node_id]
            known.streams -= 1
            if known.streams == 0:
                del self._nodes[node_id]
            self.changes += 1

    def judge(self, place: Place, node_id: NodeId) -> tuple[bool, str]:
        """Return whether it may speak, and else why it never may ("": it may later)."""
        on = self._on.get(place.connection)
        if on is not None and node_id in on:
            return True, ""
        if on is not None and len(on) == 1:  # more: a proxy, which is none of them
            (other,) = on
            return False, f"this connection's ADS stream announced node {_cut(other)}"
        known = self._nodes.get(node_id)
        return known is not None and any(place.fits(node_id, p) for p in known.places), ""

    def misfit(self, place: Place, node_id: NodeId) -> str:
        """Return why it is refused when it has waited; "" while the node is unknown."""
        known = self._nodes.get(node_id)
        if known is None:
            return ""
        others = (n for n, k in self._nodes.items() if any(place.fits("", p) for p in k.places))
        named = [_cut(n) for n, _ in zip(others, range(_NAMED), strict=False)]
        here = f", where the ADS stream of node {' and '.join(named)} is from" if named else ""
        return f"it comes from {place}{here}, and that node's own from {known.places[-1]}"


class Speaker:
    """One stream that speaks for a node."""

    __slots__ = ("_clock", "_grace_s", "_may", "_misfit_since_s", "_node_id", "_place", "_seen",
                 "_speakers")  # fmt: skip

    def __init__(
        self, speakers: Speakers, clock: Clock, place: Place, node_id: NodeId, grace_s: float
    ) -> None:
        self._speakers, self._clock = speakers, clock
        self._place, self._node_id, self._grace_s = place, node_id, grace_s
        self._may, self._seen = False, -1
        self._misfit_since_s: float | None = None

    def may(self) -> bool:
        """Whether what it says counts now; asked at every message, so it is quick.

        Raises SpeakerRefusedError when it never will.
        """
        now_s = self._clock.now_s()
        self._speakers.expire(now_s)
        if self._may and self._seen == self._speakers.changes:
            return True
        self._seen = self._speakers.changes
        self._may, why = self._speakers.judge(self._place, self._node_id)
        if self._may:
            self._misfit_since_s = None
            return True
        if not why:
            why = self._waited(now_s)
        if why:
            raise SpeakerRefusedError(f"this stream may not speak for {_cut(self._node_id)}: {why}")
        return False

    def _waited(self, now_s: float) -> str:
        why = self._speakers.misfit(self._place, self._node_id)
        if not why:
            self._misfit_since_s = None
            return ""
        if self._misfit_since_s is None:
            self._misfit_since_s = now_s
        return why if now_s - self._misfit_since_s >= self._grace_s else ""


def _cut(node_id: NodeId) -> str:
    return repr(node_id[:_NAME_MAX])
