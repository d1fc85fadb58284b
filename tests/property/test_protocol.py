"""Any interleaving of changes, requests, answers and reconnects, in both protocols."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.client import TYPES, Client, snapshot
from xds_server.model.snapshot import Snapshot
from xds_server.protocol.events import Acked, Nacked
from xds_server.protocol.ordering import HOLD_MAX_S

NAMES = ("a", "b", "c")
KINDS = ("CDS", "EDS", "LDS", "RDS")


class Conversation(RuleBasedStateMachine):
    """One client, one stream; the world changes under both."""

    delta = False

    @initialize()
    def connect(self) -> None:
        self.client = Client(self.delta)
        self.world: dict[str, dict[str, str]] = {k: {"a": "1"} for k in KINDS}
        self.versions = 1
        self.pending: dict[str, list[tuple[str, tuple[str, ...]]]] = {k: [] for k in KINDS}
        self.refused: dict[str, dict[str, str]] = {k: {} for k in KINDS}
        self.sent: set[str] = set()
        self.settled: list[str] = []
        self.client.start(self.snapshot)

    @property
    def snapshot(self) -> Snapshot:
        # A cluster always has its endpoints, as the publisher guarantees.
        for name in self.world["CDS"]:
            self.world["EDS"].setdefault(name, "1")
        return snapshot(**self.world)

    @rule(kind=st.sampled_from(KINDS), name=st.sampled_from(NAMES))
    def change(self, kind: str, name: str) -> None:
        self.versions += 1
        self.world[kind][name] = str(self.versions)

    @rule(kind=st.sampled_from(KINDS), name=st.sampled_from(NAMES))
    def remove(self, kind: str, name: str) -> None:
        self.world[kind].pop(name, None)

    @rule(kind=st.sampled_from(("EDS", "RDS")), names=st.sets(st.sampled_from(NAMES), min_size=1))
    def subscribe(self, kind: str, names: set[str]) -> None:
        self.client.ask(kind, *sorted(names))
        for gone in set(self.client.has.get(kind, {})) - names:
            del self.client.has[kind][gone]

    @rule()
    def poll(self) -> None:
        before = {k: r.nonce for k, r in self.client.last.items()}
        self.client.poll(self.snapshot)
        for kind, response in self.client.last.items():
            if before.get(kind) != response.nonce:
                assert response.nonce not in self.sent
                self.sent.add(response.nonce)

    @rule(kind=st.sampled_from(KINDS), refuse=st.booleans())
    def answer(self, kind: str, refuse: bool) -> None:
        if kind not in self.client.last:
            return
        events = self.client.nack(kind) if refuse else self.client.ack(kind)
        self.settled += [
            f"{kind}{self.client.last[kind].nonce}"
            for e in events
            if isinstance(e, Acked | Nacked) and not getattr(e, "heartbeat", False)
        ]

    @rule(seconds=st.sampled_from((0.01, 0.6, 1.1, HOLD_MAX_S + 0.1)))
    def wait(self, seconds: float) -> None:
        self.client.now_s += seconds

    @rule()
    def quiesce(self) -> None:
        """Everything answered and every hold over, the client has what it asked for."""
        for _ in range(12):
            self.client.now_s += HOLD_MAX_S + 0.1
            self.poll()
            for kind in list(self.client.last):
                self.answer(kind, False)
        self.client.now_s += HOLD_MAX_S + 0.1
        assert self.client.poll(self.snapshot) == []
        for kind in KINDS:
            have = self.world[kind]
            asked = self.client.names[kind]
            wanted = have if not asked else {n: v for n, v in have.items() if n in asked}
            held = self.client.has.get(kind, {})
            # SotW never takes endpoints or routes away: what is gone stays as it was.
            gone = {} if self.delta or kind in ("CDS", "LDS") else held
            assert {**gone, **wanted} == held

    @invariant()
    def settled_once(self) -> None:
        if hasattr(self, "settled"):
            assert len(self.settled) == len(set(self.settled))


class DeltaConversation(Conversation):
    delta = True


@pytest.mark.parametrize("machine", [Conversation, DeltaConversation])
def test_any_interleaving_ends_with_what_was_asked_for(machine) -> None:
    case = machine.TestCase
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
    case().runTest()


def test_every_kind_has_a_type() -> None:
    assert set(KINDS) < set(TYPES)
