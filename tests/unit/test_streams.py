"""Conversations; a number in a name is a case of the project's list of xDS cases."""

import pytest

from tests.unit.client import Client, snapshot
from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import CDS, RDS
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.events import Acked, Nacked, Quarantined, Stale, Subscribed, UnknownType
from xds_server.protocol.messages import DeltaRequest, SotwRequest
from xds_server.protocol.ordering import HOLD_MAX_S
from xds_server.protocol.sotw import SotwStream
from xds_server.protocol.state import PIPELINE_AFTER_S

WORLD = snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": "1"})


@pytest.fixture(params=["delta", "sotw"])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param == "delta")


@pytest.fixture
def started(client: Client) -> Client:
    client.start(WORLD)
    assert client.poll(WORLD) == []
    return client


# -- A: streams and requests ---------------------------------------------------------------


def test_case_04_a_request_without_a_type_is_the_clients_error() -> None:
    with pytest.raises(RemoteProtocolError):
        SotwStream().receive(SotwRequest(""), 0.0)
    with pytest.raises(RemoteProtocolError):
        DeltaStream().receive(DeltaRequest(""), 0.0)


def test_case_05_an_unknown_type_does_not_end_the_stream(client: Client) -> None:
    request = DeltaRequest if client.delta else SotwRequest
    assert client.stream.receive(request("type.x/y"), 0.0) == [UnknownType("type.x/y")]
    client.ask("CDS")
    assert client.poll(WORLD) == ["CDS +a"]


# -- B and C: subscription, ACK, NACK ------------------------------------------------------


def test_case_10_and_37_an_empty_first_list_is_the_wildcard(client: Client) -> None:
    client.ask("CDS")
    assert client.poll(snapshot(CDS={"a": "1", "b": "1"})) == ["CDS +a +b"]


def test_case_37_an_empty_world_is_answered_or_envoy_waits(client: Client) -> None:
    client.ask("CDS")
    assert client.poll(snapshot(CDS={})) == ["CDS"]
    client.ack("CDS")
    assert client.poll(snapshot(CDS={})) == []


def test_case_11_and_38_an_update_sends_all_in_sotw_and_the_change_in_delta(
    client: Client,
) -> None:
    client.ask("CDS")
    client.poll(snapshot(CDS={"a": "1", "b": "1"}))
    client.ack("CDS")
    expected = "CDS +b" if client.delta else "CDS +a +b"
    assert client.poll(snapshot(CDS={"a": "1", "b": "2"})) == [expected]


def test_case_12_endpoints_may_be_sent_alone(client: Client) -> None:
    client.ask("EDS", "a", "b")
    client.poll(snapshot(EDS={"a": "1", "b": "1"}))
    client.ack("EDS")
    assert client.poll(snapshot(EDS={"a": "1", "b": "2"})) == ["EDS +b"]
    assert client.has["EDS"] == {"a": "1", "b": "2"}


def test_case_13_named_clusters_are_the_only_ones(client: Client) -> None:
    client.ask("CDS", "b")
    assert client.poll(snapshot(CDS={"a": "1", "b": "1"})) == ["CDS +b"]


def test_case_15_and_40_what_is_missing_is_sent_when_it_appears(client: Client) -> None:
    client.ask("EDS", "a")
    assert client.poll(snapshot(EDS={})) == (["EDS -a"] if client.delta else [])
    if client.delta:
        client.ack("EDS")
        assert client.poll(snapshot(EDS={})) == []
    assert client.poll(snapshot(EDS={"a": "1"})) == ["EDS +a"]


def test_case_16_an_ack_is_not_answered(started: Client) -> None:
    assert started.poll(WORLD) == []


def test_case_17_a_changed_list_on_the_same_nonce_is_a_subscription(client: Client) -> None:
    both = snapshot(EDS={"a": "1", "b": "1"})
    client.ask("EDS", "a")
    client.poll(both)
    client.ack("EDS")
    client.ask("EDS", "a", "b")
    assert client.poll(both) == ["EDS +b"]


def test_case_18_and_65_endpoints_follow_every_changed_cluster(started: Client) -> None:
    changed = snapshot(CDS={"a": "2"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": "1"})
    assert started.poll(changed) == ["CDS +a", "EDS +a"]


def test_case_19_and_20_a_nack_is_reported_and_its_content_not_sent_again(
    started: Client,
) -> None:
    bad = snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": "bad"})
    assert started.poll(bad) == ["RDS +r"]
    event, verdict = started.nack("RDS", "no domains")
    assert isinstance(event, Nacked)
    assert (event.names, event.error) == (("r",), "no domains")
    assert verdict == Quarantined(RDS, "r", "bad", "no domains", "1")
    assert started.poll(bad) == ["RDS +r"]
    assert started.has["RDS"] == {"r": "1"}
    started.ack("RDS")
    started.now_s += 60.0
    assert started.poll(bad) == []
    good = snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": "2"})
    assert started.poll(good) == ["RDS +r"]


def test_case_21_a_nack_may_change_the_names(client: Client) -> None:
    both = snapshot(EDS={"a": "1", "b": "1"})
    client.ask("EDS", "a")
    client.poll(both)
    client.ask("EDS", "a", "b", nonce=client.last["EDS"].nonce, error="bad")
    assert client.poll(both) == ["EDS +b -a" if client.delta else "EDS +b"]


def test_case_22_a_late_nack_counts_against_its_own_response(client: Client) -> None:
    client.ask("EDS", "a")
    client.poll(snapshot(EDS={"a": "1"}))
    old = client.last["EDS"]
    client.now_s += PIPELINE_AFTER_S
    client.poll(snapshot(EDS={"a": "2"}))
    (event,) = client.ask("EDS", "a", nonce=old.nonce, error="bad")
    assert isinstance(event, Nacked)
    assert event.version == old.version_info
    (event,) = client.ack("EDS")
    assert isinstance(event, Acked)


def test_case_23_and_48_an_unknown_nonce_is_stale_and_harmless(started: Client) -> None:
    events = started.ask("EDS", "a", nonce="never sent")
    assert [type(e) for e in events] == [Stale]
    assert started.poll(WORLD) == []


def test_case_24_and_47_a_stale_request_still_subscribes(client: Client) -> None:
    both = snapshot(EDS={"a": "1", "b": "1"})
    client.ask("EDS", "a")
    client.poll(both)
    client.ack("EDS")
    events = client.ask("EDS", "a", "b", nonce="never sent")
    assert [type(e) for e in events] == [Stale, Subscribed]
    assert client.poll(both) == ["EDS +b"]


def test_case_25_an_empty_nonce_starts_over() -> None:
    client = Client(delta=False)
    client.ask("EDS", "a")
    client.poll(snapshot(EDS={"a": "1"}))
    client.last.clear()
    client.ask("EDS", "a")
    assert client.poll(snapshot(EDS={"a": "1"})) == ["EDS +a"]


def test_case_28_and_43_what_was_unsubscribed_is_not_sent(client: Client) -> None:
    client.ask("EDS", "a", "b")
    client.poll(snapshot(EDS={"a": "1", "b": "1"}))
    client.ack("EDS")
    client.ask("EDS", "a")
    assert client.poll(snapshot(EDS={"a": "1", "b": "2"})) == []
    assert client.poll(snapshot(EDS={"a": "2", "b": "2"})) == ["EDS +a"]


def test_case_29_no_names_after_names_is_not_the_wildcard(client: Client) -> None:
    client.ask("CDS", "a")
    client.poll(WORLD)
    client.ack("CDS")
    client.ask("CDS")
    assert client.poll(snapshot(CDS={"a": "2"})) == []


def test_case_30_and_41_what_is_asked_for_again_is_sent_again(client: Client) -> None:
    client.ask("EDS", "a", "b")
    client.poll(snapshot(EDS={"a": "1", "b": "1"}))
    client.ack("EDS")
    client.ask("EDS", "a")
    client.poll(snapshot(EDS={"a": "1", "b": "1"}))
    client.ask("EDS", "a", "b")
    assert client.poll(snapshot(EDS={"a": "1", "b": "1"})) == ["EDS +b"]


def test_case_31_the_sequence_of_the_specification() -> None:
    client = Client(delta=False)
    world = snapshot(CDS={"A": "1", "B": "1"})
    client.ask("CDS")
    assert client.poll(world) == ["CDS +A +B"]
    client.ack("CDS")
    client.ask("CDS", "*", "A")
    client.poll(world)
    client.ask("CDS", "A")
    client.poll(world)
    client.ask("CDS")
    assert client.poll(snapshot(CDS={"A": "2", "B": "2"})) == []


def test_case_32_an_empty_list_of_endpoints_asks_for_nothing(client: Client) -> None:
    client.ask("EDS")
    assert client.poll(WORLD) == []


def test_case_39_what_goes_is_taken_away(client: Client) -> None:
    client.ask("CDS")
    client.poll(snapshot(CDS={"a": "1", "b": "1"}))
    client.ack("CDS")
    client.poll(snapshot(CDS={"a": "1"}))
    assert client.has["CDS"] == {"a": "1"}


def test_case_42_unsubscribing_an_unknown_name_is_ignored() -> None:
    client = Client(delta=True)
    client.ask("EDS", "a")
    client.poll(WORLD)
    client.ack("EDS")
    request = DeltaRequest("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
                           unsubscribe=("never",))  # fmt: skip
    assert client.stream.receive(request, 0.0) == []
    assert client.poll(WORLD) == []


def test_case_44_under_a_wildcard_an_unsubscribed_name_is_told_again() -> None:
    stream = DeltaStream()
    stream.receive(DeltaRequest(CDS, subscribe=("*", "a", "z")), 0.0)
    world = snapshot(CDS={"a": "1"})
    (first,) = stream.poll(world, 0.0)
    assert (first.names, first.removed) == (("a",), ("z",))
    stream.receive(DeltaRequest(CDS, response_nonce=first.nonce), 0.0)
    stream.receive(DeltaRequest(CDS, unsubscribe=("a", "z")), 0.0)
    (again,) = stream.poll(world, 0.0)
    assert (again.names, again.removed) == (("a",), ("z",))


def test_case_45_the_wildcard_and_a_name_are_apart() -> None:
    stream = DeltaStream()
    stream.receive(DeltaRequest(CDS), 0.0)
    stream.receive(DeltaRequest(CDS, subscribe=("a",)), 0.0)
    stream.poll(snapshot(CDS={"a": "1", "b": "1"}), 0.0)
    stream.receive(DeltaRequest(CDS, unsubscribe=("*",)), 0.0)
    (only,) = stream.poll(snapshot(CDS={"a": "2", "b": "2"}), 60.0)
    assert only.names == ("a",)


def test_case_52_on_reconnect_only_what_differs_is_sent() -> None:
    stream = DeltaStream()
    stream.receive(DeltaRequest(CDS, initial_versions={"a": "1", "b": "1", "gone": "1"}), 0.0)
    (response,) = stream.poll(snapshot(CDS={"a": "1", "b": "2"}), 0.0)
    assert (response.names, response.removed) == (("b",), ("gone",))


def test_case_52_on_reconnect_nothing_is_sent_if_all_is_current() -> None:
    stream = DeltaStream()
    stream.receive(DeltaRequest(CDS, initial_versions={"a": "1"}), 0.0)
    assert stream.poll(snapshot(CDS={"a": "1"}), 0.0) == []
    (cds,) = stream.progress(0.0)
    assert cds.version_acked == cds.version_sent == snapshot(CDS={"a": "1"}).of(CDS).version


# -- D: ordering ---------------------------------------------------------------------------

MORE = snapshot(CDS={"a": "1", "b": "1"}, EDS={"a": "1", "b": "1"}, LDS={"l": "1"}, RDS={"r": "2"})
MOVED = snapshot(CDS={"b": "1"}, EDS={"b": "1"}, LDS={"l": "1"}, RDS={"r": "2"})


def test_case_62_and_63_routes_wait_for_the_cluster_and_its_endpoints(started: Client) -> None:
    assert started.poll(MORE) == ["CDS +b" if started.delta else "CDS +a +b"]
    assert started.poll(MORE) == []
    started.ask("EDS", "a", "b")  # before the CDS ACK, as Envoy does
    assert started.poll(MORE) == ["EDS +b"]
    started.ack("CDS")
    assert started.poll(MORE) == []
    started.ack("EDS")
    assert started.poll(MORE) == ["RDS +r"]


def test_case_64_a_cluster_stays_until_routes_without_it_are_acked(started: Client) -> None:
    first = started.poll(MOVED)
    assert first == ["CDS +b" if started.delta else "CDS +b +a"]
    assert "a" in started.has["CDS"]
    started.ask("EDS", "a", "b")
    started.poll(MOVED)
    started.ack("CDS", "EDS")
    assert started.poll(MOVED) == ["RDS +r"]
    assert "a" in started.has["CDS"]
    started.ack("RDS")
    started.poll(MOVED)
    assert started.has["CDS"] == {"b": "1"}


def test_case_64_refused_routes_keep_the_clusters_that_the_old_ones_name(
    started: Client,
) -> None:
    started.poll(MOVED)
    started.ask("EDS", "a", "b")
    started.poll(MOVED)
    started.ack("CDS", "EDS")
    started.poll(MOVED)
    started.nack("RDS")
    for _ in range(3):
        started.now_s += HOLD_MAX_S + 0.1
        started.poll(MOVED)
        assert set(started.has["CDS"]) == {"a", "b"}
    mended = snapshot(CDS={"b": "1"}, EDS={"b": "1"}, LDS={"l": "1"}, RDS={"r": "3"})
    assert "RDS +r" in started.poll(mended)
    started.ack("RDS")
    started.poll(mended)
    assert set(started.has["CDS"]) == {"b"}


def test_no_hold_lasts_longer_than_its_bound(started: Client) -> None:
    started.poll(MORE)
    assert started.stream.next_deadline_s(started.now_s) is not None
    started.now_s += HOLD_MAX_S + 0.1
    assert "RDS +r" in started.poll(MORE)


def test_case_51_a_client_that_does_not_answer_is_silent(started: Client) -> None:
    started.poll(MORE)
    started.now_s += 6.0
    (cds,) = (p for p in started.stream.progress(started.now_s) if p.type_url == CDS)
    assert cds.silent
    started.ack("CDS")
    (cds,) = (p for p in started.stream.progress(started.now_s) if p.type_url == CDS)
    assert not cds.silent


def test_case_77_many_changes_become_one_response(started: Client) -> None:
    for version in range(2, 9):
        world = snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": str(version)})
        if version == 2:
            assert started.poll(world) == ["RDS +r"]
        else:
            assert started.poll(world) == []  # one in flight
    started.ack("RDS")
    assert started.poll(world) == ["RDS +r"]
    assert started.has["RDS"] == {"r": "8"}


def test_a_change_that_is_taken_back_before_its_answer_is_taken_back_at_the_client(
    started: Client,
) -> None:
    other = snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": "2"})
    assert started.poll(other) == ["RDS +r"]
    assert started.poll(WORLD) == []  # one in flight
    started.ack("RDS")
    assert started.poll(WORLD) == ["RDS +r"]
    assert started.has["RDS"] == {"r": "1"}


# -- E: TTL --------------------------------------------------------------------------------


def test_case_73_and_75_a_heartbeat_extends_what_was_acked_and_changes_nothing(
    client: Client,
) -> None:
    world = snapshot(RTDS={"weights": "1"})
    client.ask("RTDS", "weights")
    assert client.poll(world) == ["RTDS +weights"]
    assert client.stream.heartbeat(world, 1.0) == []  # nothing to extend before the ACK
    client.ack("RTDS")
    (beat,) = client.stream.heartbeat(world, 2.0)
    assert beat.heartbeat
    assert client.stream.heartbeat(world, 3.0) == []  # one unanswered is enough
    client.last["RTDS"] = beat
    (event,) = client.ack("RTDS")
    assert isinstance(event, Acked)
    assert event.heartbeat
    assert client.poll(world) == []
    assert client.poll(snapshot(RTDS={"weights": "2"})) == ["RTDS +weights"]
