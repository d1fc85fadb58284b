"""Make before break: no route of a client that follows ever names a cluster that it lacks.

A client that does not answer for HOLD_MAX_S gives that up; here every wait is shorter.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.property.peers import KIND, DeltaPeer, SotwPeer, delta_content, sotw_content
from tests.unit.client import snapshot
from xds_server.model.snapshot import Snapshot
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.messages import Response
from xds_server.protocol.ordering import HOLD_MAX_S
from xds_server.protocol.sotw import SotwStream

CLUSTERS, ROUTES = "abc", "rs"
WAIT_S = 1.1  # longer than an answer is waited for before the next response goes out
WAITS_MAX = int(HOLD_MAX_S / WAIT_S) - 1
clusters = st.dictionaries(st.sampled_from(CLUSTERS), st.sampled_from("12"), min_size=1)
targets = st.frozensets(st.sampled_from(CLUSTERS))


class SotwEnvoy(RuleBasedStateMachine):
    """Follows as Envoy does: endpoints of the clusters it has, routes of its listeners.

    The version of a route here is the clusters that it names.
    """

    delta = False

    @initialize()
    def begin(self) -> None:
        self.now_s, self.waits = 0.0, 0
        self.world: dict[str, dict[str, str]] = {
            "CDS": {"a": "1"},
            "LDS": {"r": "1"},
            "RDS": {"r": "a"},
        }
        self.peer: SotwPeer | DeltaPeer = DeltaPeer() if self.delta else SotwPeer()
        self.stream = DeltaStream() if self.delta else SotwStream()
        self.active: set[str] = set()  # clusters that take requests
        self.warming: set[str] = set()  # clusters that wait for endpoints
        self.early: set[str] = set()  # routes answered at once, for a listener without any
        for kind in ("CDS", "LDS"):
            self.peer.ask(kind, frozenset())
        self.quiesce()

    @property
    def snapshot(self) -> Snapshot:
        return snapshot(**self.world, EDS=dict.fromkeys(self.world["CDS"], "1"))

    @rule(named=clusters, routed=st.tuples(targets, targets), second=st.booleans())
    def change(
        self,
        named: dict[str, str],
        routed: tuple[frozenset[str], frozenset[str]],
        second: bool,
    ) -> None:
        """Another consistent world."""
        routes = ROUTES if second else ROUTES[:1]
        self.world = {
            "CDS": named,
            "LDS": dict.fromkeys(routes, "1"),
            "RDS": {
                name: "".join(sorted(wanted & named.keys() or named.keys()))
                for name, wanted in zip(routes, routed, strict=False)
            },
        }

    @rule()
    def wait(self) -> None:
        if self.waits < WAITS_MAX:
            self.waits += 1
            self.now_s += WAIT_S

    @rule(requests=st.integers(0, 3))
    def server_works(self, requests: int) -> None:
        for _ in range(min(requests, len(self.peer.outbox))):
            self.stream.receive(self.peer.outbox.popleft(), self.now_s)
        self.peer.inbox += self.stream.poll(self.snapshot, self.now_s)

    @precondition(lambda self: self.peer.inbox)
    @rule(ack_last=st.booleans())
    def client_works(self, ack_last: bool) -> None:
        """Take a response; the ACK goes before or after the requests that follow from it."""
        response = self.peer.inbox[0]
        kind, before = KIND[response.type_url], dict(self._has("CDS"))
        routes = set(self._has("RDS"))
        self.peer.read(refuse=False)
        ack = self.peer.outbox.pop()
        follow = {"CDS": "EDS", "LDS": "RDS"}.get(kind)
        if not ack_last:
            self.peer.outbox.append(ack)
        if follow and (follow not in self.peer.views or self._asked(follow) != {*self._has(kind)}):
            self.peer.ask(follow, frozenset(self._has(kind)))
        if ack_last:
            self.peer.outbox.append(ack)
        self._warm(response, before)
        self._check(routes)

    def _asked(self, kind: str) -> frozenset[str]:
        return self.peer.views[kind].asked

    def _has(self, kind: str) -> dict[str, str]:
        view = self.peer.views.get(kind)
        return view.has if view else {}

    def _warm(self, response: Response, before: dict[str, str]) -> None:
        now = self._has("CDS")
        self.active &= now.keys()
        self.warming &= now.keys()
        self.warming |= {n for n, v in now.items() if before.get(n) != v}
        if KIND[response.type_url] == "EDS":
            content = delta_content(response)[0] if self.delta else sotw_content(response)
            got = content.keys() & now.keys()
            self.active |= got
            self.warming -= got

    def _check(self, before: set[str]) -> None:
        routes = self._has("RDS")
        broken = {n for n, named in routes.items() if not set(named) <= self.active}
        self.early = (self.early | (routes.keys() - before)) & broken
        assert broken <= self.early, f"{broken} name clusters that are not there: {routes}"

    @rule()
    def quiesce(self) -> None:
        for _ in range(30):
            self.server_works(len(self.peer.outbox))
            while self.peer.inbox:
                self.client_works(ack_last=True)
        assert not self.peer.outbox
        assert self.stream.poll(self.snapshot, self.now_s) == []
        assert self._has("CDS") == self.world["CDS"]
        assert self._has("RDS") == self.world["RDS"]
        assert self.active == self.world["CDS"].keys()
        assert not self.warming, "a changed cluster was left without endpoints"
        self.waits = 0

    def teardown(self) -> None:
        self.quiesce()


class DeltaEnvoy(SotwEnvoy):
    delta = True


@pytest.mark.parametrize("machine", [SotwEnvoy, DeltaEnvoy])
def test_case_62_to_65_no_route_ever_names_a_cluster_that_is_not_there(
    machine: type[SotwEnvoy],
) -> None:
    case = machine.TestCase
    case.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
    case().runTest()
