"""A client that comes back with what it had, to a world that has changed meanwhile."""

from tests.unit.client import snapshot
from xds_server.model.ids import CDS, EDS, LDS, RDS, TypeUrl
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.messages import DeltaRequest
from xds_server.protocol.ordering import HOLD_MAX_S

# Cluster d is gone, and with it the routes that named it: RDS was "1".
WORLD = snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": "2"})


class Back:
    """An Envoy with clusters a and d; it asks for one type after the other."""

    def __init__(self, only: TypeUrl | None = None) -> None:
        self.stream = DeltaStream(only=only)
        self.now_s = 0.0

    def ask(self, url: TypeUrl, *names: str, **kept: str) -> None:
        self.stream.receive(DeltaRequest(url, names, initial_versions=kept), self.now_s)

    def said(self, *, ack: bool = True) -> list[tuple[TypeUrl, tuple[str, ...], tuple[str, ...]]]:
        """What is sent now; answered at once."""
        responses = self.stream.poll(WORLD, self.now_s)
        for r in responses if ack else ():
            request = DeltaRequest(r.type_url, response_nonce=r.nonce)
            self.stream.receive(request, self.now_s)
        return [(r.type_url, r.names, r.removed) for r in responses]

    def up_to_listeners(self) -> None:
        self.ask(CDS, a="1", d="1")
        assert self.said() == []
        self.ask(EDS, "a", "d", a="1", d="1")
        assert all("d" not in removed for _, _, removed in self.said())
        self.ask(LDS, l="1")
        assert self.said() == []


def test_a_cluster_that_is_gone_stays_until_the_routes_are_replaced() -> None:
    back = Back()
    back.up_to_listeners()
    back.ask(RDS, "r", r="1")
    assert back.said() == [(RDS, ("r",), ())]
    assert back.said() == [(CDS, (), ("d",)), (EDS, (), ("d",))]


def test_it_goes_at_once_when_the_routes_are_as_they_should_be() -> None:
    back = Back()
    back.up_to_listeners()
    back.ask(RDS, "r", r="2")
    assert back.said() == [(CDS, (), ("d",)), (EDS, (), ("d",))]


def test_who_never_asks_for_routes_keeps_it_no_longer_than_any_hold() -> None:
    back = Back()
    back.up_to_listeners()
    deadline_s = back.stream.next_deadline_s(back.now_s)
    assert deadline_s == HOLD_MAX_S
    back.now_s = deadline_s
    assert (CDS, (), ("d",)) in back.said()


def test_a_stream_of_clusters_alone_waits_for_no_routes() -> None:
    back = Back(only=CDS)
    back.ask(CDS, a="1", d="1")
    assert back.said() == [(CDS, (), ("d",))]
