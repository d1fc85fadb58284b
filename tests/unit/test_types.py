"""What is particular to a type, or to a stream of one type."""

import pytest
from envoy.service.discovery.v3 import discovery_pb2

from tests.unit.client import TYPES, Client, resource, snapshot
from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import CDS, EDS, VHDS
from xds_server.model.snapshot import Resource, Snapshot
from xds_server.model.versions import type_snapshot
from xds_server.protocol.delta import SPLIT_BYTES, DeltaStream
from xds_server.protocol.messages import DeltaRequest, Response, SotwRequest
from xds_server.protocol.sotw import SotwStream
from xds_server.protocol.state import IN_FLIGHT_MAX


@pytest.fixture(params=["sotw", "delta"])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param == "delta")


def read(response: Response) -> discovery_pb2.DeltaDiscoveryResponse:
    return discovery_pb2.DeltaDiscoveryResponse.FromString(response.payload)


# -- streams of one type -------------------------------------------------------------------


def test_case_04_a_stream_of_one_type_implies_it() -> None:
    world = snapshot(EDS={"a": "1"})
    for stream, request in (
        (SotwStream(only=EDS), SotwRequest("", ("a",))),
        (DeltaStream(only=EDS), DeltaRequest("", ("a",))),
    ):
        stream.receive(request, 0.0)
        (response,) = stream.poll(world, 0.0)
        assert (response.type_url, response.names) == (EDS, ("a",))
        ack = type(request)("", response_nonce=response.nonce)
        assert [type(e).__name__ for e in stream.receive(ack, 0.0)][:1] == ["Acked"]


def test_case_04_another_type_than_that_of_the_stream_is_the_clients_error() -> None:
    with pytest.raises(RemoteProtocolError, match="aggregated"):
        SotwStream(only=EDS).receive(SotwRequest(CDS), 0.0)
    with pytest.raises(RemoteProtocolError, match="aggregated"):
        DeltaStream(only=EDS).receive(DeltaRequest(CDS), 0.0)


# -- the other types -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SDS", "ECDS"])
def test_what_is_asked_for_by_name_is_answered_and_followed(client: Client, kind: str) -> None:
    client.ask(kind, "x")
    assert client.poll(snapshot(**{kind: {"x": "1", "y": "1"}})) == [f"{kind} +x"]
    client.ack(kind)
    assert client.poll(snapshot(**{kind: {"x": "2", "y": "2"}})) == [f"{kind} +x"]


def test_scopes_have_a_wildcard_and_are_replaced_as_a_whole(client: Client) -> None:
    client.ask("SRDS")
    client.judge(snapshot(SRDS={"s": "1", "t": "1"}))
    client.judge(snapshot(SRDS={"t": "2"}))
    assert client.has["SRDS"] == {"t": "2"}


def test_case_62_everything_goes_in_the_order_in_which_it_can_be_used(client: Client) -> None:
    kinds = ("RTDS", "SDS", "CDS", "EDS", "ECDS", "LDS", "SRDS", "RDS")
    first = snapshot(**{kind: {"x": "1"} for kind in kinds})
    for kind in reversed(kinds):
        client.ask(kind, "x")
    said = [line.split()[0] for line in client.poll(first)]
    assert said[:4] == ["RTDS", "SDS", "CDS", "EDS"]
    assert set(said) == set(kinds)  # what is asked for is not held back


def test_case_56_a_filter_in_use_is_not_taken_away() -> None:
    client = Client(delta=True)
    client.ask("ECDS", "f")
    client.judge(snapshot(ECDS={"f": "1"}))
    assert client.poll(snapshot(ECDS={})) == []
    assert client.poll(snapshot(ECDS={"f": "2"})) == ["ECDS +f"]


def test_case_56_a_filter_that_never_was_is_said_to_be_missing() -> None:
    client = Client(delta=True)
    client.ask("ECDS", "f")
    assert client.poll(snapshot(ECDS={})) == ["ECDS -f"]


# -- virtual hosts: aliases ----------------------------------------------------------------


def host(name: str, *domains: str, version: str = "1") -> Resource:
    aliases = tuple(f"r/{d}" for d in domains)
    return Resource(VHDS, f"r/{name}", version, f"r/{name}@{version}".encode(), aliases=aliases)


def hosts(*found: Resource) -> Snapshot:
    return Snapshot({VHDS: type_snapshot(found)})


def test_the_empty_subscription_to_virtual_hosts_is_answered() -> None:
    stream = DeltaStream()
    stream.receive(DeltaRequest(VHDS), 0.0)
    (response,) = stream.poll(hosts(host("shop", "shop.test")), 0.0)
    assert response.names == ()


def test_case_58_a_virtual_host_is_found_by_its_alias_and_followed() -> None:
    stream = DeltaStream()
    stream.receive(DeltaRequest(VHDS, ("r/shop.test",)), 0.0)
    (response,) = stream.poll(hosts(host("shop", "shop.test", "www.test")), 0.0)
    (found,) = read(response).resources
    assert (found.name, list(found.aliases)) == ("r/shop", ["r/shop.test", "r/www.test"])
    stream.receive(DeltaRequest(VHDS, response_nonce=response.nonce), 0.0)
    changed = hosts(host("shop", "shop.test", version="2"))
    (response,) = stream.poll(changed, 0.0)
    assert response.names == ("r/shop",)
    stream.receive(DeltaRequest(VHDS, response_nonce=response.nonce), 0.0)
    (response,) = stream.poll(hosts(), 0.0)
    assert response.removed[0] == "r/shop"


def test_case_58_an_alias_of_nothing_is_answered_with_a_resource_without_a_body() -> None:
    stream = DeltaStream()
    stream.receive(DeltaRequest(VHDS, ("r/nobody.test",)), 0.0)
    (response,) = stream.poll(hosts(host("shop", "shop.test")), 0.0)
    (answer,) = read(response).resources
    assert (answer.name, list(answer.aliases)) == ("r/nobody.test", ["r/nobody.test"])
    assert not answer.HasField("resource")
    stream.receive(DeltaRequest(VHDS, response_nonce=response.nonce), 0.0)
    assert stream.poll(hosts(host("shop", "shop.test")), 0.0) == []


def test_an_alias_that_is_unsubscribed_takes_its_host_along_only_if_no_other_names_it() -> None:
    world = hosts(host("shop", "a.test", "b.test"))
    stream = DeltaStream()
    stream.receive(DeltaRequest(VHDS, ("r/a.test", "r/b.test")), 0.0)
    (response,) = stream.poll(world, 0.0)
    stream.receive(DeltaRequest(VHDS, (), ("r/a.test",), response_nonce=response.nonce), 0.0)
    changed = hosts(host("shop", "a.test", "b.test", version="2"))
    (response,) = stream.poll(changed, 0.0)
    assert response.names == ("r/shop",)
    stream.receive(DeltaRequest(VHDS, (), ("r/b.test",), response_nonce=response.nonce), 0.0)
    assert stream.poll(hosts(), 0.0) == []


# -- on demand -----------------------------------------------------------------------------


def on_demand(name: str, version: str = "1") -> Resource:
    return Resource(CDS, name, version, f"{name}@{version}".encode(), on_demand=True)


def test_what_is_on_demand_is_for_those_who_name_it(client: Client) -> None:
    world = snapshot(CDS={"a": "1"}, extra=[on_demand("later")])
    client.ask("CDS", "*")
    client.judge(world)
    assert client.has["CDS"] == {"a": "1"}
    client.ask("CDS", "*", "later")
    client.judge(world)
    assert client.has["CDS"] == {"a": "1", "later": "1"}
    client.judge(snapshot(CDS={"a": "1"}, extra=[on_demand("later", "2")]))
    assert client.has["CDS"] == {"a": "1", "later": "2"}


def test_case_44_what_is_on_demand_goes_when_it_is_no_longer_named() -> None:
    world = snapshot(CDS={"a": "1"}, extra=[on_demand("later")])
    client = Client(delta=True)
    client.ask("CDS", "*", "later")
    client.judge(world)
    client.ask("CDS", "*")
    client.judge(world)
    assert client.has["CDS"] == {"a": "1"}


# -- size ----------------------------------------------------------------------------------


def large(count: int, size: int) -> Snapshot:
    bodies = {f"c{i:03}": f"c{i:03}@1".encode().ljust(size, b" ") for i in range(count)}
    return Snapshot({EDS: type_snapshot(Resource(EDS, n, "1", b) for n, b in bodies.items())})


def test_case_60_a_large_delta_is_cut_and_all_of_it_arrives() -> None:
    world = large(count=40, size=SPLIT_BYTES // 2)
    stream = DeltaStream()
    stream.receive(DeltaRequest(EDS, tuple(world.of(EDS).resources)), 0.0)
    got: list[str] = []
    now_s = 0.0
    for _ in range(10):
        responses = stream.poll(world, now_s)
        assert len(responses) <= IN_FLIGHT_MAX
        for response in responses:
            assert len(response.payload) <= SPLIT_BYTES + 4096
            got += response.names
            stream.receive(DeltaRequest(EDS, response_nonce=response.nonce), now_s)
    assert sorted(got) == sorted(world.of(EDS).resources)


def test_case_60_one_resource_that_is_larger_goes_alone() -> None:
    world = large(count=2, size=SPLIT_BYTES + 1)
    stream = DeltaStream()
    stream.receive(DeltaRequest(EDS, tuple(world.of(EDS).resources)), 0.0)
    assert [r.names for r in stream.poll(world, 0.0)] == [("c000",), ("c001",)]


def test_case_60_a_state_of_the_world_is_never_cut() -> None:
    bodies = [resource("CDS", f"c{i}") for i in range(4)]
    big = [Resource(r.type_url, r.name, "1", r.body.ljust(SPLIT_BYTES)) for r in bodies]
    stream = SotwStream()
    stream.receive(SotwRequest(CDS), 0.0)
    (response,) = stream.poll(Snapshot({CDS: type_snapshot(big)}), 0.0)
    assert len(response.names) == 4


def test_case_60_routes_wait_for_clusters_that_did_not_fit() -> None:
    client = Client(delta=True)
    client.ask("CDS")
    client.ask("RDS", "r")
    client.judge(snapshot(CDS={"a": "1"}, RDS={"r": "1"}))
    many = IN_FLIGHT_MAX + 2
    big = [Resource(CDS, f"c{i}", "1", f"c{i}@1".encode().ljust(SPLIT_BYTES)) for i in range(many)]
    world = snapshot(CDS={"a": "1"}, RDS={"r": "2"}, extra=big)
    responses = client.stream.poll(world, 0.0)
    assert [r.type_url for r in responses] == [CDS] * IN_FLIGHT_MAX
    for response in responses:
        client.stream.receive(DeltaRequest(CDS, response_nonce=response.nonce), 0.0)
    rest = client.stream.poll(world, 0.0)
    assert [r.type_url for r in rest] == [CDS] * 2
    for response in rest:
        client.stream.receive(DeltaRequest(CDS, response_nonce=response.nonce), 0.0)
    assert [r.type_url for r in client.stream.poll(world, 0.0)] == [TYPES["RDS"]]
