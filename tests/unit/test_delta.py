"""Delta conversations, beyond those that both protocols share in test_streams.py."""

from collections.abc import Mapping

import pytest
from envoy.service.discovery.v3 import discovery_pb2 as discovery_pb

from tests.unit.client import TYPES, snapshot
from xds_server.model.ids import CDS, EDS, LDS, RTDS
from xds_server.model.snapshot import Snapshot
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.events import Acked, Event, Nacked, Stale, Subscribed
from xds_server.protocol.messages import DeltaRequest, Response
from xds_server.protocol.state import PIPELINE_AFTER_S

AB = snapshot(CDS={"a": "1", "b": "1"}, EDS={"a": "1", "b": "1"})
NOTHING = snapshot(CDS={}, EDS={})


class Talk:
    """One type on one delta stream."""

    def __init__(self, type_url: str) -> None:
        self.type_url, self.stream, self.now_s = type_url, DeltaStream(), 0.0
        self.last: Response | None = None

    def say(
        self,
        add: str = "",
        drop: str = "",
        *,
        has: Mapping[str, str] | None = None,
        nonce: str = "",
        error: str | None = None,
    ) -> list[Event]:
        """One request; names are single letters, ``*`` the wildcard."""
        request = DeltaRequest(self.type_url, tuple(add), tuple(drop), has or {}, nonce, error)
        return self.stream.receive(request, self.now_s)

    def hear(self, world: Snapshot) -> tuple[str, str] | None:
        """What came, and what went, as letters; None: nothing was sent."""
        responses = self.stream.poll(world, self.now_s)
        if not responses:
            return None
        (self.last,) = responses
        return "".join(sorted(self.last.names)), "".join(sorted(self.last.removed))

    def ack(self) -> list[Event]:
        assert self.last is not None
        return self.say(nonce=self.last.nonce)

    def told(self, world: Snapshot) -> tuple[str, str] | None:
        """The same as ``hear``, and the client agrees."""
        heard = self.hear(world)
        if heard is not None:
            self.ack()
        return heard


@pytest.fixture
def clusters() -> Talk:
    return Talk(CDS)


@pytest.fixture
def endpoints() -> Talk:
    return Talk(EDS)


def test_case_38_each_resource_has_its_own_version(clusters: Talk) -> None:
    clusters.say()
    clusters.hear(snapshot(CDS={"a": "1", "b": "7"}))
    assert clusters.last is not None
    message = discovery_pb.DeltaDiscoveryResponse.FromString(clusters.last.payload)
    assert {r.name: r.version for r in message.resources} == {"a": "1", "b": "7"}
    assert message.system_version_info == clusters.last.version_info  # case 61


def test_case_39_and_40_a_name_may_come_and_go_and_is_told_once_each_time(
    endpoints: Talk,
) -> None:
    endpoints.say("a")
    for _ in range(3):
        assert endpoints.told(NOTHING) == ("", "a")
        assert endpoints.told(NOTHING) is None
        assert endpoints.told(AB) == ("a", "")
        assert endpoints.told(AB) is None


def test_case_40_a_missing_name_does_not_hold_up_those_that_are_there(endpoints: Talk) -> None:
    endpoints.say("azy")
    assert endpoints.told(AB) == ("a", "yz")
    assert endpoints.told(AB) is None


def test_case_41_what_is_subscribed_again_is_sent_again(endpoints: Talk) -> None:
    endpoints.say("ab")
    endpoints.told(AB)
    endpoints.say("a")
    assert endpoints.told(AB) == ("a", "")
    endpoints.say("", "a")
    endpoints.say("a")
    assert endpoints.told(AB) == ("a", "")


def test_case_41_a_missing_name_that_is_subscribed_again_is_answered_again(
    endpoints: Talk,
) -> None:
    endpoints.say("z")
    assert endpoints.told(AB) == ("", "z")
    endpoints.say("z")
    assert endpoints.told(AB) == ("", "z")


def test_case_43_a_request_that_only_unsubscribes_is_not_answered(endpoints: Talk) -> None:
    endpoints.say("ab")
    endpoints.told(AB)
    assert endpoints.say("", "b") == []
    assert endpoints.told(AB) is None
    assert endpoints.told(NOTHING) == ("", "a")  # and b is no longer its concern


def test_case_43_and_45_dropping_the_wildcard_is_not_answered(clusters: Talk) -> None:
    clusters.say()
    clusters.told(AB)
    assert [type(e) for e in clusters.say("", "*")] == [Subscribed]
    assert clusters.told(AB) is None
    assert clusters.told(NOTHING) is None


def test_case_45_a_wildcard_that_is_dropped_and_taken_again_brings_everything(
    clusters: Talk,
) -> None:
    clusters.say()
    clusters.told(AB)
    clusters.say("", "*")
    clusters.say("*")  # no response went out between the two
    assert clusters.told(AB) == ("ab", "")


def test_case_45_after_the_legacy_wildcard_a_name_stays_when_the_wildcard_goes(
    clusters: Talk,
) -> None:
    clusters.say()
    clusters.told(AB)
    clusters.say("a")
    assert clusters.told(AB) == ("a", "")
    clusters.say("", "*")
    assert clusters.told(snapshot(CDS={"a": "2", "b": "2"})) == ("a", "")
    clusters.say("", "a")
    assert clusters.told(snapshot(CDS={"a": "3", "b": "3"})) is None


def test_case_44_a_name_and_then_the_wildcard_dropped_at_once_are_both_forgotten(
    clusters: Talk,
) -> None:
    clusters.say("*a")
    clusters.told(AB)
    clusters.say("", "a")  # would be told again under the wildcard ...
    clusters.say("", "*")  # ... that is gone before the answer
    assert clusters.told(AB) is None


@pytest.mark.parametrize("type_url", [EDS, RTDS])
def test_case_32_an_empty_first_request_means_nothing_where_there_is_no_wildcard(
    type_url: str,
) -> None:
    talk = Talk(type_url)
    talk.say()
    assert talk.told(AB) is None


@pytest.mark.parametrize("type_url", [CDS, LDS])
def test_case_37_the_wildcard_is_answered_though_there_is_nothing(type_url: str) -> None:
    talk = Talk(type_url)
    talk.say()
    assert talk.told(snapshot()) == ("", "")
    assert talk.told(snapshot()) is None


def test_case_46_a_name_in_both_lists_ends_unsubscribed(endpoints: Talk) -> None:
    endpoints.say("ab")
    endpoints.told(AB)
    endpoints.say("a", "a")
    assert endpoints.told(snapshot(EDS={"a": "2", "b": "2"})) == ("b", "")


def test_case_46_the_wildcard_in_both_lists_is_no_wildcard(clusters: Talk) -> None:
    clusters.say("*", "*")
    assert clusters.told(AB) is None


def test_case_47_an_unknown_nonce_blocks_no_subscription(endpoints: Talk) -> None:
    endpoints.say("a")
    endpoints.told(AB)
    events = endpoints.say("b", "a", nonce="of another stream")
    assert [type(e) for e in events] == [Stale, Subscribed]
    assert endpoints.told(AB) == ("b", "")


def test_case_48_answers_find_their_own_response_in_any_order(endpoints: Talk) -> None:
    endpoints.say("a")
    sent = []
    for version in "123":
        endpoints.hear(snapshot(EDS={"a": version}))
        sent.append(endpoints.last)
        endpoints.now_s += PIPELINE_AFTER_S
    versions = []
    for response in reversed(sent):
        (event,) = endpoints.say(nonce=response.nonce)
        assert isinstance(event, Acked)
        versions.append(event.version)
    assert versions == [r.version_info for r in reversed(sent)]
    (eds,) = endpoints.stream.progress(endpoints.now_s + 60.0)
    assert eds.unanswered_s == 0.0


def test_case_49_what_was_refused_is_not_extended() -> None:
    talk = Talk(RTDS)
    world = snapshot(RTDS={"w": "1"})
    talk.say("w")
    talk.told(world)
    (beat,) = talk.stream.heartbeat(world, 0.0)
    talk.say(nonce=beat.nonce)
    changed = snapshot(RTDS={"w": "2"})
    talk.now_s += PIPELINE_AFTER_S
    talk.hear(changed)
    assert talk.last is not None
    event, _ = talk.say(nonce=talk.last.nonce, error="bad")
    assert isinstance(event, Nacked)
    assert talk.stream.heartbeat(changed, 60.0) == []
    talk.hear(changed)  # the one before it again
    assert talk.stream.heartbeat(changed, 60.0) == []
    talk.say(nonce=talk.last.nonce)
    (beat,) = talk.stream.heartbeat(changed, 60.0)
    (inner,) = discovery_pb.DeltaDiscoveryResponse.FromString(beat.payload).resources
    assert (inner.name, inner.version) == ("w", "1")


def test_case_50_going_back_after_a_nack_sends_the_old_and_takes_away_the_new(
    clusters: Talk,
) -> None:
    clusters.say()
    clusters.told(snapshot(CDS={"a": "1"}))
    assert clusters.hear(snapshot(CDS={"a": "2", "n": "1"})) == ("an", "")
    assert clusters.last is not None
    clusters.say(nonce=clusters.last.nonce, error="n is bad")
    assert clusters.told(snapshot(CDS={"a": "1"})) == ("a", "n")


def test_case_52_a_reconnecting_client_gets_the_difference(clusters: Talk) -> None:
    clusters.say(has={"a": "1", "b": "0", "gone": "1"})
    assert clusters.hear(AB) == ("b", "gone")


def test_case_52_a_named_reconnect_gets_the_difference(endpoints: Talk) -> None:
    endpoints.say("abz", has={"a": "1", "b": "0"})
    assert endpoints.told(AB) == ("b", "z")
    assert endpoints.told(AB) is None


def test_case_73_a_heartbeat_changes_nothing_and_its_ack_is_marked() -> None:
    talk = Talk(RTDS)
    world = snapshot(RTDS={"w": "1"})
    talk.say("w")
    talk.told(world)
    (beat,) = talk.stream.heartbeat(world, 1.0)
    message = discovery_pb.DeltaDiscoveryResponse.FromString(beat.payload)
    (inner,) = message.resources
    assert (inner.name, inner.version, inner.ttl.seconds) == ("w", "1", 5)
    assert not inner.HasField("resource")
    (event,) = talk.say(nonce=beat.nonce)
    assert isinstance(event, Acked)
    assert event.heartbeat
    assert talk.told(world) is None


def test_every_type_that_is_served_can_be_named_here() -> None:
    assert {CDS, EDS, LDS, RTDS} < set(TYPES.values())
