"""The short way through ``poll`` says what the long way says, whatever came before."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.client import snapshot
from xds_server.model.ids import CDS, EDS, LDS, RDS, RTDS, VHDS
from xds_server.model.snapshot import Snapshot
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.messages import DeltaRequest, Response, SotwRequest
from xds_server.protocol.sotw import SotwStream
from xds_server.protocol.stream import StreamMachine

TYPES = {"CDS": CDS, "EDS": EDS, "LDS": LDS, "RDS": RDS, "RTDS": RTDS, "VHDS": VHDS}
NAMES = ("a", "b")


class LongDelta(DeltaStream):
    def _plainly_due(self, snapshot: Snapshot, now_s: float) -> None:
        return None


class LongSotw(SotwStream):
    def _plainly_due(self, snapshot: Snapshot, now_s: float) -> None:
        return None


PAIRS: dict[str, tuple[Callable[..., StreamMachine], Callable[..., StreamMachine]]] = {
    "delta": (DeltaStream, LongDelta),
    "sotw": (SotwStream, LongSotw),
}
worlds = st.fixed_dictionaries(
    {kind: st.dictionaries(st.sampled_from(NAMES), st.sampled_from("12")) for kind in TYPES}
)
BOTH = st.fixed_dictionaries(dict.fromkeys(NAMES, st.sampled_from("123")))
ROUTES = st.fixed_dictionaries({"a": st.sampled_from("123")}, optional={"b": st.just("1")})
steps = st.one_of(
    st.tuples(st.just("change"), st.just("RDS"), ROUTES),  # the short way's own case
    st.tuples(st.just("change"), st.just("CDS"), ROUTES),
    st.tuples(st.just("change"), st.just("LDS"), BOTH),
    st.tuples(st.just("show"), worlds),
    st.tuples(
        st.just("change"),
        st.sampled_from(sorted(TYPES)),
        st.dictionaries(st.sampled_from(NAMES), st.sampled_from("123")),
    ),
    st.tuples(
        st.just("come_back"),
        st.sampled_from(sorted(TYPES)),
        st.frozensets(st.sampled_from(NAMES), min_size=1),
    ),
    st.tuples(st.just("ask"), st.sampled_from(sorted(TYPES)), st.booleans()),
    st.tuples(st.just("answer"), st.integers(0, 3), st.sampled_from([None, None, None, "bad"])),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.5, 1.5, 6.0])),
)


class Conversation:
    """The same requests to both machines; the answers are compared at every step."""

    def __init__(self, protocol: str, drain_s: float) -> None:
        self.delta = protocol == "delta"
        self.short, self.long = (make(drain_s=drain_s) for make in PAIRS[protocol])
        self.world: dict[str, dict[str, str]] = {kind: {"a": "1"} for kind in TYPES}
        self.shown = snapshot(**self.world)
        self.unanswered: list[Response] = []
        self.names: dict[str, tuple[str, ...]] = {}
        self.now_s = 0.0

    def show(self, world: dict[str, dict[str, str]]) -> None:
        self.world = world
        self.shown = snapshot(**world)

    def change(self, kind: str, versions: dict[str, str]) -> None:
        """Other resources of one type; all others are the same objects."""
        self.world = {**self.world, kind: versions}
        part = snapshot(**self.world).of(TYPES[kind])
        self.shown = Snapshot({**self.shown.types, TYPES[kind]: part})

    def ask(self, kind: str, all_of_it: bool) -> None:
        url, names = TYPES[kind], () if all_of_it else NAMES
        self.names[kind] = names
        if self.delta:
            self.request(DeltaRequest(url, names))
        elif kind != "VHDS":
            last = next((r for r in reversed(self.unanswered) if r.type_url == url), None)
            self.request(SotwRequest(url, names, last.nonce if last else ""))

    def answer(self, which: int, error: str | None) -> None:
        if not self.unanswered:
            return
        response = self.unanswered.pop(which % len(self.unanswered))
        kind = next(k for k, url in TYPES.items() if url == response.type_url)
        if self.delta:
            self.request(DeltaRequest(TYPES[kind], response_nonce=response.nonce, error=error))
        else:
            names = self.names[kind]
            self.request(SotwRequest(TYPES[kind], names, response.nonce, error=error))

    def wait(self, duration_s: float) -> None:
        self.now_s += duration_s

    def come_back(self, kind: str, names: frozenset[str]) -> None:
        """Ask for a type for the first time, with what was kept from an earlier stream."""
        if self.delta and kind not in self.names:
            self.names[kind] = NAMES
            kept = dict.fromkeys(sorted(names), "1")
            self.request(DeltaRequest(TYPES[kind], NAMES, initial_versions=kept))

    def request(self, request: DeltaRequest | SotwRequest) -> None:
        assert self.short.receive(request, self.now_s) == self.long.receive(request, self.now_s)

    def poll(self) -> None:
        said = self.short.poll(self.shown, self.now_s)
        assert said == self.long.poll(self.shown, self.now_s)
        self.unanswered += said
        assert self.short.progress(self.now_s) == self.long.progress(self.now_s)
        assert self.short.resources() == self.long.resources()
        # Where the short way sees nothing to wait for, waiting changes nothing.
        if self.short.next_deadline_s(self.now_s) is None:
            assert self.long.next_deadline_s(self.now_s) is None


@pytest.mark.parametrize("protocol", PAIRS)
@given(
    first=st.sampled_from(
        [("CDS", "EDS", "LDS", "RDS"), ("RDS", "RTDS"), ("RDS", "VHDS"), ("LDS",)]
    ),
    script=st.lists(steps, min_size=5, max_size=30),
    drain_s=st.sampled_from([0.0, 2.0]),
)
@settings(max_examples=400, deadline=None)
def test_both_ways_say_the_same(
    protocol: str, first: tuple[str, ...], script: list[tuple[str, ...]], drain_s: float
) -> None:
    conversation = Conversation(protocol, drain_s)
    for kind in first:
        conversation.ask(kind, kind in ("CDS", "VHDS") or (kind == "LDS" and len(first) > 1))
        conversation.poll()
        while conversation.unanswered:
            conversation.answer(0, None)
            conversation.poll()
    for step, *arguments in script:
        getattr(conversation, step)(*arguments)
        conversation.poll()


def test_named_listeners_of_a_sotw_client_are_all_sent_when_one_changes() -> None:
    conversation = Conversation("sotw", 0.0)
    conversation.show({**conversation.world, "LDS": {"a": "1", "b": "1"}})
    conversation.ask("LDS", False)
    conversation.poll()
    conversation.answer(0, None)
    conversation.change("LDS", {"a": "1", "b": "2"})
    conversation.poll()
    assert conversation.unanswered[-1].names == ("a", "b")
