"""SotW conversations, beyond those that both protocols share in test_streams.py."""

import pytest
from envoy.service.discovery.v3 import discovery_pb2 as discovery_pb

from tests.unit.client import TYPES, Client, snapshot
from xds_server.model.ids import CDS, EDS
from xds_server.model.snapshot import Resource, Snapshot
from xds_server.protocol.events import Acked, Stale, Subscribed
from xds_server.protocol.messages import Response, SotwRequest
from xds_server.protocol.sotw import SotwStream
from xds_server.protocol.state import IN_FLIGHT_MAX, PIPELINE_AFTER_S

AB = snapshot(CDS={"a": "1", "b": "1"}, EDS={"a": "1", "b": "1"})


@pytest.fixture
def client() -> Client:
    return Client(delta=False)


def names(response: Response) -> list[str]:
    return sorted(response.names)


def only(responses: list[Response]) -> Response:
    (response,) = responses
    return response


@pytest.mark.parametrize("kind", ["CDS", "LDS"])
def test_case_14_a_new_resource_brings_the_whole_set_under_a_new_version(
    client: Client, kind: str
) -> None:
    client.ask(kind)
    client.poll(snapshot(**{kind: {"a": "1"}}))
    first = client.last[kind]
    client.ack(kind)
    assert client.poll(snapshot(**{kind: {"a": "1", "b": "1"}})) == [f"{kind} +a +b"]
    assert client.last[kind].version_info != first.version_info


@pytest.mark.parametrize("kind", ["CDS", "LDS"])
def test_case_27_the_last_resource_that_goes_leaves_an_empty_response(
    client: Client, kind: str
) -> None:
    client.ask(kind)
    client.poll(snapshot(**{kind: {"a": "1"}}))
    client.ack(kind)
    assert client.poll(snapshot(**{kind: {}})) == [kind]
    assert client.has[kind] == {}


@pytest.mark.parametrize("kind", ["EDS", "RDS"])
def test_case_27_an_empty_response_is_not_sent_where_it_means_nothing(
    client: Client, kind: str
) -> None:
    client.ask(kind, "a")
    client.poll(snapshot(**{kind: {"a": "1"}}))
    client.ack(kind)
    assert client.poll(snapshot(**{kind: {}})) == []


@pytest.mark.parametrize("kind", ["CDS", "LDS"])
def test_case_29_one_empty_string_is_a_name_that_does_not_exist(client: Client, kind: str) -> None:
    world = snapshot(**{kind: {"a": "1"}})
    client.ask(kind, "a")
    client.poll(world)
    client.ack(kind)
    client.ask(kind, "")
    assert client.poll(world) == []
    assert client.poll(snapshot(**{kind: {"a": "2"}})) == []


def test_case_31_after_the_wildcard_a_name_alone_stays_and_then_nothing(client: Client) -> None:
    """The sequence of the specification: [], [*, A], [A], []."""
    client.ask("CDS")
    client.poll(AB)
    client.ack("CDS")
    client.ask("CDS", "*", "a")
    client.poll(AB)
    client.ack("CDS")
    client.ask("CDS", "a")
    assert client.poll(AB) == []
    assert client.poll(snapshot(CDS={"a": "1", "b": "2"})) == []
    assert client.poll(snapshot(CDS={"a": "2", "b": "2"})) == ["CDS +a"]
    client.ack("CDS")
    client.ask("CDS")
    assert client.poll(snapshot(CDS={"a": "3", "b": "3"})) == []


def test_case_31_a_wildcard_that_is_asked_for_again_brings_everything(client: Client) -> None:
    client.ask("CDS")
    client.poll(AB)
    client.ack("CDS")
    client.ask("CDS", "a")  # a new name on the list, so it is answered
    assert client.poll(AB) == ["CDS +a"]
    client.ack("CDS")
    client.ask("CDS", "*")
    assert client.poll(AB) == ["CDS +a +b"]


def test_case_26_nonces_are_never_used_twice_on_a_stream(client: Client) -> None:
    seen = []
    client.ask("CDS")
    client.ask("RTDS", "w")
    for version in "123456":
        client.poll(snapshot(CDS={"a": version}, RTDS={"w": version}))
        client.ack("CDS", "RTDS")
        seen += [client.last["CDS"].nonce, client.last["RTDS"].nonce]
    assert len(set(seen)) == len(seen) == 12


def test_case_26_a_stream_may_mark_its_nonces_as_its_own() -> None:
    streams = [SotwStream(prefix) for prefix in ("one-", "two-")]
    for stream in streams:
        stream.receive(SotwRequest(CDS), 0.0)
    nonces = [only(stream.poll(AB, 0.0)).nonce for stream in streams]
    assert nonces == ["one-1", "two-1"]


def test_case_17_an_ack_that_is_repeated_is_settled_once(client: Client) -> None:
    client.ask("EDS", "a")
    client.poll(AB)
    assert [type(e) for e in client.ack("EDS")] == [Acked]
    assert client.ack("EDS") == []
    assert client.poll(AB) == []


def test_case_24_names_of_a_stale_request_count_and_its_answer_comes_once(client: Client) -> None:
    client.ask("EDS", "a")
    client.poll(AB)
    old = client.last["EDS"].nonce
    client.now_s += PIPELINE_AFTER_S
    client.poll(snapshot(EDS={"a": "2", "b": "1"}))  # a newer response crosses the request
    newest = client.last["EDS"].nonce
    events = client.stream.receive(SotwRequest(EDS, ("a", "b"), old), client.now_s)
    assert [type(e) for e in events] == [Acked, Subscribed]
    client.stream.receive(SotwRequest(EDS, ("a", "b"), newest), client.now_s)
    world = snapshot(EDS={"a": "2", "b": "1"})
    assert client.poll(world) == ["EDS +b"]
    assert [type(e) for e in client.ask("EDS", "a", "b", nonce=old)] == [Stale]
    client.ack("EDS")
    assert client.poll(world) == []


def test_an_answer_to_the_newest_response_answers_the_older_ones(client: Client) -> None:
    client.ask("EDS", "a")
    client.poll(AB)
    client.now_s += PIPELINE_AFTER_S
    client.poll(snapshot(EDS={"a": "2"}))
    client.ack("EDS")
    (eds,) = client.stream.progress(client.now_s + 60.0)
    assert eds.unanswered_s == 0.0


@pytest.mark.parametrize("kind", ["CDS", "LDS"])
def test_case_34_a_client_that_returns_for_names_that_are_gone_is_told(kind: str) -> None:
    stream = SotwStream()
    stream.receive(SotwRequest(TYPES[kind], ("a",), version_info="from another stream"), 0.0)
    response = only(stream.poll(snapshot(**{kind: {}}), 0.0))
    assert response.names == ()
    fresh = SotwStream()
    fresh.receive(SotwRequest(TYPES[kind], ("a",)), 0.0)
    assert fresh.poll(snapshot(**{kind: {}}), 0.0) == []  # it waits until there is one


def test_case_34_a_version_of_an_earlier_stream_is_no_reason_to_send_nothing() -> None:
    version = AB.of(CDS).version
    stream = SotwStream()
    stream.receive(SotwRequest(CDS, version_info=version), 0.0)
    assert names(only(stream.poll(AB, 0.0))) == ["a", "b"]


def test_case_36_types_may_be_asked_for_in_any_order(client: Client) -> None:
    world = snapshot(
        CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"l": "1"}, RTDS={"w": "1"}
    )
    for kind, wanted in (("RTDS", "w"), ("RDS", "l"), ("EDS", "a")):
        client.ask(kind, wanted)
    client.ask("LDS")
    client.ask("CDS")
    said = client.poll(world)
    assert [s.split()[0] for s in said] == ["RTDS", "CDS", "EDS", "LDS", "RDS"]


def test_case_55_an_emptied_cluster_is_sent_and_not_removed(client: Client) -> None:
    """Envoy keeps the hosts of an assignment that is merely gone."""
    from xds_server.model.topology import Address, Provider
    from xds_server.model.versions import type_snapshot
    from xds_server.resources.endpoint import load_assignment

    provider = Provider("a", "search")
    full, empty = (
        Snapshot({EDS: type_snapshot([load_assignment(provider, found)])})
        for found in ((Address("127.0.0.1", 1),), ())
    )
    client.stream.receive(SotwRequest(EDS, ("a",)), 0.0)
    first = only(client.stream.poll(full, 0.0))
    client.stream.receive(SotwRequest(EDS, ("a",), first.nonce), 0.0)
    assert only(client.stream.poll(empty, 0.0)).names == ("a",)


def test_case_72_only_what_has_a_ttl_is_wrapped(client: Client) -> None:
    client.ask("RTDS", "w")
    client.ask("RDS", "r")
    client.poll(snapshot(RTDS={"w": "1"}, RDS={"r": "1"}))
    kinds = {}
    for kind in ("RTDS", "RDS"):
        message = discovery_pb.DiscoveryResponse.FromString(client.last[kind].payload)
        kinds[kind] = message.resources[0].type_url.rpartition(".")[2]
    assert kinds == {"RTDS": "Resource", "RDS": "RouteConfiguration"}


def test_case_73_a_heartbeat_carries_the_whole_resource_which_envoy_needs(client: Client) -> None:
    world = snapshot(RTDS={"w": "1"})
    client.ask("RTDS", "w")
    client.poll(world)
    client.ack("RTDS")
    beat = only(client.stream.heartbeat(world, 1.0))
    message = discovery_pb.DiscoveryResponse.FromString(beat.payload)
    inner = discovery_pb.Resource()
    assert message.resources[0].Unpack(inner)
    assert (inner.name, inner.version, inner.ttl.seconds) == ("w", "1", 5)
    assert inner.resource.value == b"w@1"
    assert beat.version_info == client.last["RTDS"].version_info


def test_case_74_what_has_no_ttl_has_no_heartbeat(client: Client) -> None:
    client.start(snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"l": "1"}))
    world = snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"l": "1"})
    assert client.stream.heartbeat(world, 1.0) == []


def test_case_76_a_client_that_answers_nothing_gets_a_bounded_number_of_responses(
    client: Client,
) -> None:
    client.ask("RTDS", "w")
    sent = 0
    for step in range(5 * IN_FLIGHT_MAX):
        client.now_s += PIPELINE_AFTER_S
        sent += len(client.poll(snapshot(RTDS={"w": str(step)})))
    assert sent == IN_FLIGHT_MAX


def test_case_51_an_unanswered_response_does_not_block_its_type_for_ever(client: Client) -> None:
    client.ask("EDS", "a")
    client.poll(snapshot(EDS={"a": "1"}))
    assert client.poll(snapshot(EDS={"a": "2"})) == []
    assert client.stream.next_deadline_s(client.now_s) == PIPELINE_AFTER_S
    client.now_s += PIPELINE_AFTER_S
    assert client.poll(snapshot(EDS={"a": "2"})) == ["EDS +a"]


def test_progress_says_what_was_sent_acked_and_refused(client: Client) -> None:
    client.ask("CDS")
    client.poll(AB)
    client.ack("CDS")
    good = client.last["CDS"].version_info
    client.poll(snapshot(CDS={"a": "2"}, EDS={}))
    bad = client.last["CDS"].version_info
    client.nack("CDS", "no such filter")
    (cds,) = client.stream.progress(0.0)
    assert (cds.version_sent, cds.version_acked) == (bad, good)
    assert (cds.nacks, cds.last_nack) == (1, "no such filter")


def test_case_33_a_name_that_is_asked_for_twice_is_sent_once() -> None:
    stream = SotwStream()
    stream.receive(SotwRequest(EDS, ("a", "a")), 0.0)
    world = Snapshot({EDS: AB.of(EDS)})
    response = only(stream.poll(world, 0.0))
    assert response.names == ("a",)
    assert isinstance(world.of(EDS).resources["a"], Resource)
