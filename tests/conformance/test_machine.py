"""Cases of the state machine that no other file has a place for."""

from envoy.service.discovery.v3 import discovery_pb2

from tests.unit.client import TYPES, Client, snapshot
from xds_server.model.ids import CDS, EDS, LDS, RDS
from xds_server.model.snapshot import Resource
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.messages import DeltaRequest, SotwRequest
from xds_server.protocol.sotw import SotwStream


def test_case_35_a_replica_with_other_data_sends_it_whatever_the_client_has() -> None:
    world = snapshot(CDS={"a": "1", "b": "1"})
    whole = SotwStream()
    whole.receive(SotwRequest(CDS, version_info="of another replica, and newer"), 0.0)
    (response,) = whole.poll(world, 0.0)
    assert response.names == ("a", "b")
    part = DeltaStream()
    part.receive(DeltaRequest(CDS, initial_versions={"a": "2", "b": "1", "c": "1"}), 0.0)
    (response,) = part.poll(world, 0.0)
    assert (response.names, response.removed) == (("a",), ("c",))


def test_case_57_a_subscription_whose_parent_is_gone_is_answered_and_holds_nothing_up() -> None:
    world = snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "2"}, RDS={"r": "1"})
    stream = DeltaStream()
    stream.receive(DeltaRequest(RDS, ("r", "zombie"), initial_versions={"zombie": "1"}), 0.0)
    stream.receive(DeltaRequest(LDS, initial_versions={"l": "1", "gone": "1"}), 0.0)
    stream.receive(DeltaRequest(CDS, initial_versions={"a": "1"}), 0.0)
    stream.receive(DeltaRequest(EDS, ("a",), initial_versions={"a": "1"}), 0.0)
    told = {r.type_url: (r.names, r.removed) for r in stream.poll(world, 0.0)}
    assert told == {LDS: (("l",), ("gone",)), RDS: (("r",), ("zombie",))}


def test_case_59_a_glob_is_a_name_that_does_not_exist() -> None:
    stream = DeltaStream()
    stream.receive(DeltaRequest(EDS, ("xdstp://here/endpoints/*", "a*")), 0.0)
    (response,) = stream.poll(snapshot(EDS={"a": "1", "ab": "1"}), 0.0)
    assert response.names == ()
    assert response.removed == ("a*", "xdstp://here/endpoints/*")


def test_case_66_clusters_that_share_endpoints_get_them_once_and_again_for_each_newcomer() -> None:
    def clusters(*names: str) -> list[Resource]:
        return [Resource(CDS, n, "1", f"{n}@1".encode(), needs=("svc",)) for n in names]

    for is_delta in (True, False):
        client = Client(is_delta)
        client.ask("CDS")
        client.ask("EDS", "svc")
        client.judge(snapshot(EDS={"svc": "1"}, extra=clusters("a", "b")))
        client.now_s += 10.0
        # No request comes with the third: the name is subscribed already.
        said = client.poll(snapshot(EDS={"svc": "1"}, extra=clusters("a", "b", "c")))
        assert said[-1] == "EDS +svc"


def test_case_67_and_70_and_71_weights_travel_without_clusters_and_endpoints() -> None:
    before = snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": "1"})
    for is_delta in (True, False):
        client = Client(is_delta)
        client.ask("RTDS", "w")
        client.start(before)
        for version in "234":
            after = snapshot(
                CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": "1"}, RTDS={"w": version}
            )
            client.now_s += 2.0
            assert client.poll(after) == ["RTDS +w"]
            client.ack("RTDS")


def test_case_33_one_name_is_once_in_a_response_however_often_it_is_asked_for() -> None:
    world = snapshot(EDS={"a": "1"})
    whole = SotwStream()
    whole.receive(SotwRequest(EDS, ("a", "a", "a")), 0.0)
    (response,) = whole.poll(world, 0.0)
    assert len(discovery_pb2.DiscoveryResponse.FromString(response.payload).resources) == 1
    part = DeltaStream()
    part.receive(DeltaRequest(EDS, ("a", "a")), 0.0)
    part.receive(DeltaRequest(EDS, ("a",)), 0.0)
    (response,) = part.poll(world, 0.0)
    assert len(discovery_pb2.DeltaDiscoveryResponse.FromString(response.payload).resources) == 1


def test_the_types_of_the_conversation_are_those_that_are_served() -> None:
    assert TYPES["CDS"] == CDS
