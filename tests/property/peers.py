"""Clients that follow the xDS rules, with a network in both directions.

What is on its way stays there until a test lets it arrive, so requests, responses and changes
of the world cross each other in every order. Nothing here uses the code under test but its
records: bytes are read by the protobuf runtime.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from envoy.service.discovery.v3 import discovery_pb2 as discovery_pb

from tests.unit.client import TYPES
from xds_server.protocol.messages import DeltaRequest, Response, SotwRequest

FULL_STATE = ("CDS", "LDS")
KIND = {url: kind for kind, url in TYPES.items()}
Content: TypeAlias = dict[str, str]


@dataclass
class View:
    """One type at the client. ``refused`` maps names to what was refused, None: a removal."""

    asked: frozenset[str] = frozenset()
    wildcard: bool = False
    named: bool = False
    has: Content = field(default_factory=dict)
    refused: dict[str, str | None] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    nonce: str = ""
    version: str = ""  # of the last response that was taken; it outlives a stream

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.asked

    def forget_unwanted(self) -> None:
        for known in (self.has, self.refused):
            for name in [n for n in known if not self.wants(n)]:
                del known[name]
        self.missing &= self.asked

    @property
    def active(self) -> bool:
        return self.wildcard or bool(self.asked)


class Peer:
    """What both protocols share."""

    def __init__(self) -> None:
        self.views: dict[str, View] = {}
        self.inbox: deque[Response] = deque()
        self.outbox: deque[SotwRequest | DeltaRequest] = deque()

    def reconnect(self) -> None:
        """Lose what was on its way; ask again for everything."""
        self.inbox.clear()
        self.outbox.clear()
        self.views = {k: v for k, v in self.views.items() if v.active}
        for kind, view in self.views.items():
            view.nonce = ""
            view.named = False
            view.refused.clear()
            view.missing.clear()
            self._ask_again(kind, view)

    def _ask_again(self, kind: str, view: View) -> None:
        raise NotImplementedError


class SotwPeer(Peer):
    def ask(self, kind: str, names: frozenset[str]) -> None:
        """The whole list, which may hold "*"."""
        view = self.views.setdefault(kind, View())
        view.named |= bool(names)
        legacy = kind in FULL_STATE and not view.named
        for name in names - view.asked:
            if view.refused.get(name) is not None:  # a name that is gone is not answered
                del view.refused[name]
        view.wildcard, view.asked = legacy or "*" in names, names - {"*"}
        view.forget_unwanted()
        self._say(kind, view)

    def _ask_again(self, kind: str, view: View) -> None:
        view.named = bool(view.asked) or (view.wildcard and kind not in FULL_STATE)
        self._say(kind, view)

    def _say(self, kind: str, view: View, error: str | None = None) -> None:
        names = sorted(view.asked)
        if view.wildcard and view.named:
            names.append("*")
        self.outbox.append(SotwRequest(TYPES[kind], tuple(names), view.nonce, view.version, error))

    def read(self, *, refuse: bool, partly: bool = False) -> None:
        """Take the next response; a refused one changes nothing."""
        response = self.inbox.popleft()
        kind, content = KIND[response.type_url], sotw_content(response)
        view = self.views[kind]
        wanted = {n: v for n, v in content.items() if view.wants(n)}
        gone = view.has.keys() - wanted.keys() if kind in FULL_STATE else set()
        if refuse and not response.heartbeat:
            view.refused |= {n: v for n, v in wanted.items() if view.has.get(n) != v}
            view.refused |= dict.fromkeys(gone)
        else:
            view.version = response.version_info
            for name in gone:
                del view.has[name]
            view.has |= wanted
            whole = kind in FULL_STATE
            view.refused = {} if whole else _without(view.refused, wanted)
        view.nonce = response.nonce
        self._say(kind, view, "refused" if refuse else None)


class DeltaPeer(Peer):
    def ask(self, kind: str, names: frozenset[str]) -> None:
        """The list to have from now on, as the difference from before."""
        first = kind not in self.views
        view = self.views.setdefault(kind, View())
        if first and kind in FULL_STATE and not names:
            view.wildcard = True
            self.outbox.append(DeltaRequest(TYPES[kind]))
            return
        before = view.asked | ({"*"} if view.wildcard else set())
        added, dropped = names - before, before - names
        for name in added:
            view.refused.pop(name, None)
            view.missing.discard(name)
        view.wildcard, view.asked = "*" in names, names - {"*"}
        for name in dropped:  # under a wildcard the server says what it has of it
            view.refused.pop(name, None)
        view.forget_unwanted()
        self.outbox.append(DeltaRequest(TYPES[kind], tuple(sorted(added)), tuple(sorted(dropped))))

    def _ask_again(self, kind: str, view: View) -> None:
        names = sorted(view.asked) + (["*"] if view.wildcard else [])
        if names == ["*"] and kind in FULL_STATE:
            names = []
        self.outbox.append(DeltaRequest(TYPES[kind], tuple(names), initial_versions=dict(view.has)))

    def read(self, *, refuse: bool, partly: bool = False) -> None:
        """Take the next response; of a refused one, ``partly`` applies what came first."""
        response = self.inbox.popleft()
        kind = KIND[response.type_url]
        view = self.views[kind]
        content, removed = delta_content(response)
        if not response.heartbeat:
            wanted = [(n, v) for n, v in content.items() if view.wants(n)]
            kept = (len(wanted) // 2 if partly else 0) if refuse else len(wanted)
            for name, version in wanted[:kept]:
                view.has[name] = version
                view.refused.pop(name, None)
                view.missing.discard(name)
            view.refused |= dict(wanted[kept:])
            for name in removed:
                if refuse:
                    view.refused[name] = None
                    continue
                view.has.pop(name, None)
                view.refused.pop(name, None)
                if name in view.asked:
                    view.missing.add(name)
        error = "refused" if refuse else None
        self.outbox.append(DeltaRequest(TYPES[kind], response_nonce=response.nonce, error=error))


def _without(refused: dict[str, str | None], names: Iterable[str]) -> dict[str, str | None]:
    return {n: v for n, v in refused.items() if n not in set(names)}


def sotw_content(response: Response) -> Content:
    """Names to versions; a name that is there twice is a failure."""
    message = discovery_pb.DiscoveryResponse.FromString(response.payload)
    assert message.nonce == response.nonce
    bodies = []
    for packed in message.resources:
        wrapped = discovery_pb.Resource()
        bodies.append(wrapped.resource.value if packed.Unpack(wrapped) else packed.value)
    content = dict(body.decode().split("@") for body in bodies)
    assert len(content) == len(bodies), f"a name twice: {bodies}"
    return content


def delta_content(response: Response) -> tuple[Content, set[str]]:
    """Names to versions, and names taken away; a name that is there twice is a failure."""
    message = discovery_pb.DeltaDiscoveryResponse.FromString(response.payload)
    assert message.nonce == response.nonce
    names = [r.name for r in message.resources] + list(message.removed_resources)
    assert len(names) == len(set(names)), f"a name twice: {names}"
    for r in message.resources:
        whole = f"{r.name}@{r.version}".encode()
        assert r.resource.value == (b"" if response.heartbeat else whole)
    return {r.name: r.version for r in message.resources}, set(message.removed_resources)
