"""Any interleaving of changes, requests, answers and reconnects, in both protocols."""

from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.property.peers import (
    FULL_STATE,
    KIND,
    Content,
    DeltaPeer,
    SotwPeer,
    delta_content,
    sotw_content,
)
from tests.unit.client import snapshot
from xds_server.model.snapshot import Snapshot
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.events import Acked, Nacked
from xds_server.protocol.messages import DeltaRequest, Response, SotwRequest
from xds_server.protocol.quarantine import Quarantine
from xds_server.protocol.sotw import SotwStream
from xds_server.protocol.state import IN_FLIGHT_MAX

NAMES = ("a", "b", "c")
KINDS = ("CDS", "EDS", "LDS", "RDS", "RTDS")
kinds, names = st.sampled_from(KINDS), st.sampled_from(NAMES)


class Server:
    """A stream machine, and what one may demand of it on the wire."""

    def __init__(self, delta: bool, quarantine: Quarantine) -> None:
        self.delta, self.quarantine = delta, quarantine
        kind = DeltaStream if delta else SotwStream
        self.stream = kind(quarantine=quarantine)
        self.nonces: set[str] = set()
        self.settled: set[tuple[str, str]] = set()
        self.told: dict[str, Content] = defaultdict(dict)
        self.asked: dict[str, set[str]] = {}  # "*" is the wildcard
        self.named: set[str] = set()  # types whose list ever had something in it

    def receive(self, request: SotwRequest | DeltaRequest, now_s: float) -> None:
        self._excuse(request)
        for event in self.stream.receive(request, now_s):
            if isinstance(event, Acked | Nacked):
                key = (request.type_url, request.response_nonce)
                assert key not in self.settled, "settled twice"
                self.settled.add(key)
                assert isinstance(event, Nacked) == (request.error is not None)
            if isinstance(event, Nacked):
                self._forget(event)

    def _forget(self, event: Nacked) -> None:
        """What a client has of a refused response is not known: it may be sent again."""
        kind = KIND[event.type_url]
        if not self.delta and kind in FULL_STATE:
            self.told[kind].clear()
        for name in event.names:
            self.told[kind].pop(name, None)

    def _excuse(self, request: SotwRequest | DeltaRequest) -> None:
        """Follow the subscription, and forget what may be sent again since it is asked for."""
        kind, first = KIND[request.type_url], KIND[request.type_url] not in self.asked
        before = self.asked.get(kind, set())
        if isinstance(request, DeltaRequest):
            added, dropped = set(request.subscribe), set(request.unsubscribe)
            after = (before | added) - dropped
            again = added | dropped
            if first:
                self.told[kind] = dict(request.initial_versions)
        else:
            after = set(request.names)
            again = after ^ before
            if not request.response_nonce or (kind in FULL_STATE and again):
                again = {"*"}
            added = after
        self.named |= {kind} if added else set()
        if kind in FULL_STATE and not added and (first or not self.delta):
            after |= set() if kind in self.named else {"*"}
        self.asked[kind] = after
        if "*" in again:
            self.told[kind].clear()
        for name in again:
            self.told[kind].pop(name, None)

    def poll(self, world: Snapshot, now_s: float) -> list[Response]:
        responses = self.stream.poll(world, now_s)
        for response in responses:
            self._sent(response)
        return responses

    def heartbeat(self, world: Snapshot, now_s: float) -> list[Response]:
        responses = self.stream.heartbeat(world, now_s)
        for response in responses:
            assert response.heartbeat
            self._fresh_nonce(response)
        return responses

    def _sent(self, response: Response) -> None:
        self._fresh_nonce(response)
        kind = KIND[response.type_url]
        told, asked = self.told[kind], self.asked[kind]
        if response.unwedge:
            assert kind == "EDS"
            for name in response.names:
                told.pop(name, None)
        if self.delta:
            content, removed = delta_content(response)
            assert "*" in asked or removed <= asked, "took away what was not asked for"
            again = [n for n, v in content.items() if told.get(n) == v]
            for name in removed:
                told.pop(name, None)
        elif kind in FULL_STATE:
            content = sotw_content(response)
            again = [kind] if told == content and content else []
            told.clear()
        else:
            content = sotw_content(response)
            again = [n for n, v in content.items() if told.get(n) == v]
        assert "*" in asked or content.keys() <= asked, "sent what was not asked for"
        for (url, name), refusal in self.quarantine.refusals.items():
            if KIND[url] == kind:
                assert content.get(name) != refusal.version, "offered again what was refused"
        assert not again, f"sent again though nothing changed: {kind} {again}"
        told |= content
        if kind == "CDS":  # a changed cluster needs its endpoints again
            for name in content:
                self.told["EDS"].pop(name, None)

    def _fresh_nonce(self, response: Response) -> None:
        assert response.nonce
        assert response.nonce not in self.nonces, "a nonce twice"
        self.nonces.add(response.nonce)


class SotwNetwork(RuleBasedStateMachine):
    """One client, one server, and what is between them."""

    delta = False

    @initialize()
    def begin(self) -> None:
        self.now_s = 0.0
        self.world: dict[str, dict[str, str]] = {k: {"a": "1"} for k in KINDS}
        self.peer: SotwPeer | DeltaPeer = DeltaPeer() if self.delta else SotwPeer()
        self.quarantine = Quarantine()
        self.server = Server(self.delta, self.quarantine)
        for kind in KINDS:
            self.peer.ask(kind, frozenset() if kind in FULL_STATE else frozenset("ab"))
        self.quiesce()

    @property
    def snapshot(self) -> Snapshot:
        # A cluster always has its endpoints, as the publisher guarantees.
        lacking = dict.fromkeys(self.world["CDS"].keys() - self.world["EDS"].keys(), "1")
        return snapshot(**{**self.world, "EDS": {**self.world["EDS"], **lacking}})

    # -- the world -------------------------------------------------------------------

    @rule(kind=kinds, name=names, version=st.sampled_from("1234"))
    def change(self, kind: str, name: str, version: str) -> None:
        self.world[kind][name] = version

    @rule(kind=kinds, name=names)
    def remove(self, kind: str, name: str) -> None:
        self.world[kind].pop(name, None)

    @rule(duration_s=st.sampled_from((0.01, 0.6, 1.1, 6.0)))
    def wait(self, duration_s: float) -> None:
        self.now_s += duration_s

    # -- the client ------------------------------------------------------------------

    @rule(kind=kinds, wanted=st.frozensets(names))
    def ask(self, kind: str, wanted: frozenset[str]) -> None:
        self.peer.ask(kind, wanted)

    @rule(kind=st.sampled_from(FULL_STATE), wanted=st.frozensets(names))
    def ask_for_all(self, kind: str, wanted: frozenset[str]) -> None:
        self.peer.ask(kind, wanted | {"*"})

    @rule()
    def reconnect(self) -> None:
        self.peer.reconnect()
        self.server = Server(self.delta, self.quarantine)

    # -- the network -----------------------------------------------------------------

    @rule(requests=st.integers(0, 3))
    def server_works(self, requests: int) -> None:
        """Read so many requests, then send what is due."""
        for _ in range(min(requests, len(self.peer.outbox))):
            self.server.receive(self.peer.outbox.popleft(), self.now_s)
        self.peer.inbox += self.server.poll(self.snapshot, self.now_s)
        for state in self.server.stream.progress(self.now_s):
            assert state.unanswered_s >= 0.0
        assert len(self.peer.inbox) <= len(KINDS) * (IN_FLIGHT_MAX + 1)

    @precondition(lambda self: self.peer.inbox)
    @rule(taken=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=3))
    def client_works(self, taken: list[tuple[bool, bool]]) -> None:
        """Take so many responses, some refused, some of these applied in part."""
        for refuse, partly in taken[: len(self.peer.inbox)]:
            self.peer.read(refuse=refuse, partly=partly)

    @rule()
    def server_extends(self) -> None:
        self.peer.inbox += self.server.heartbeat(self.snapshot, self.now_s)

    # -- what follows ----------------------------------------------------------------

    @rule()
    def quiesce(self) -> None:
        """Everything answered and every hold over: the client has what it asked for."""
        for _ in range(12):
            self.server_works(len(self.peer.outbox))
            while self.peer.inbox:
                self.peer.read(refuse=False)
            self.now_s += 6.0
        assert not self.peer.outbox
        assert self.server.poll(self.snapshot, self.now_s) == []
        for kind in self.peer.views:
            self._compare(kind)

    def teardown(self) -> None:
        self.quiesce()

    def _compare(self, kind: str) -> None:
        view = self.peer.views[kind]
        world = {r.name: r.version for r in self.snapshot.of(_url(kind)).resources.values()}
        for name in NAMES:
            want = world.get(name) if view.wants(name) else None
            refusal = self.quarantine.refusals.get((_url(kind), name))
            if refusal is not None and refusal.version == want:
                want = refusal.good.version if refusal.good is not None else None
            if name in view.refused and view.refused[name] == want:
                continue  # refused, and still what it should have
            if want is None and view.wants(name) and not self.delta and kind not in FULL_STATE:
                continue  # SotW takes no endpoints, routes or layers away
            if want is None and kind in ("CDS", "EDS") and self._refused_pointers():
                continue  # it goes on with routes that may name it
            assert view.has.get(name) == want, f"{kind} {name}"
            if self.delta and want is None and name in view.asked:
                assert name in view.missing, f"{kind} {name}: not told that it does not exist"

    def _refused_pointers(self) -> bool:
        views = (self.peer.views[k] for k in ("LDS", "RDS") if k in self.peer.views)
        return any(view.refused for view in views) or any(
            KIND[url] in ("LDS", "RDS") and refusal.good is not None
            for (url, _), refusal in self.quarantine.refusals.items()
        )


def _url(kind: str) -> str:
    return next(url for url, k in KIND.items() if k == kind)


class DeltaNetwork(SotwNetwork):
    delta = True


STEPS_EACH = 40


@pytest.mark.parametrize("machine", [SotwNetwork, DeltaNetwork])
def test_any_interleaving_ends_with_what_was_asked_for(
    machine: type[SotwNetwork], steps: int
) -> None:
    case = machine.TestCase
    case.settings = settings(
        max_examples=max(steps // STEPS_EACH, 1), stateful_step_count=STEPS_EACH, deadline=None
    )
    case().runTest()
