"""What follows a NACK: the culprit is found, the rest delivered, the last good restored."""

import math

import pytest

from tests.unit.client import Client, snapshot
from xds_server.model.ids import CDS, EDS, LDS, RDS
from xds_server.model.snapshot import Resource, Snapshot
from xds_server.protocol.events import Acked, Event, Nacked, Quarantined
from xds_server.protocol.messages import DeltaRequest, SotwRequest
from xds_server.protocol.ordering import HOLD_MAX_S
from xds_server.protocol.quarantine import REFUSALS_MAX, Quarantine
from xds_server.protocol.status import SILENT_AFTER_S, Standing

KINDS = ("CDS", "EDS", "LDS", "RDS")


@pytest.fixture(params=["sotw", "delta"])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param == "delta")


def world(**changed: str) -> dict[str, str]:
    """Sixteen clusters at version 1, but those that are named otherwise."""
    return {f"c{i:02}": "1" for i in range(16)} | changed


def shown(client: Client, kind: str) -> dict[str, str]:
    """Name to version of what the client was last told."""
    return client.has[kind]


def test_case_50_of_many_new_resources_only_the_culprit_is_kept_back(client: Client) -> None:
    client.ask("CDS")
    good = snapshot(CDS=world())
    client.judge(good)
    new = dict.fromkeys(world(), "2")
    bad = snapshot(CDS=new | {"c05": "bad"})
    responses = client.judge(bad, "c05@bad")
    assert shown(client, "CDS") == new | {"c05": "1"}
    assert responses <= 2 * math.log2(16) + 2
    assert client.judge(bad, "c05@bad") == 0
    mended = snapshot(CDS=new | {"c05": "3"})
    client.judge(mended)
    assert shown(client, "CDS") == new | {"c05": "3"}


def test_case_50_what_was_new_and_refused_is_taken_away_again(client: Client) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS=world()))
    bad = snapshot(CDS=world(x="bad", y="1"))
    client.judge(bad, "x@bad")
    assert shown(client, "CDS") == world(y="1")


def test_two_culprits_are_both_found(client: Client) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS=world()))
    new = dict.fromkeys(world(), "2")
    bad = snapshot(CDS=new | {"c03": "bad", "c11": "bad"})
    client.judge(bad, "c03@bad", "c11@bad")
    assert shown(client, "CDS") == new | {"c03": "1", "c11": "1"}


def test_a_culprit_of_the_very_first_response_leaves_the_others(client: Client) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS=world(c00="bad")), "c00@bad")
    assert shown(client, "CDS") == {k: v for k, v in world().items() if k != "c00"}


def test_routes_that_are_refused_are_restored_and_the_others_delivered(client: Client) -> None:
    client.ask("RDS", "r", "s")
    client.judge(snapshot(RDS={"r": "1", "s": "1"}))
    client.judge(snapshot(RDS={"r": "bad", "s": "2"}), "r@bad")
    assert shown(client, "RDS") == {"r": "1", "s": "2"}


def test_a_change_that_comes_while_a_culprit_is_looked_for_is_delivered(client: Client) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS=world()))
    new = dict.fromkeys(world(), "2") | {"c05": "bad"}
    client.poll(snapshot(CDS=new))
    client.nack("CDS")
    client.judge(snapshot(CDS=new | {"c09": "3"}), "c05@bad")
    assert shown(client, "CDS") == new | {"c05": "1", "c09": "3"}


def test_content_that_changes_before_its_turn_is_not_held_back(client: Client) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS=world()))
    new = dict.fromkeys(world(), "2") | {"c15": "bad"}
    client.poll(snapshot(CDS=new))
    client.nack("CDS")
    mended = snapshot(CDS=new | {"c15": "3"})
    client.judge(mended)
    assert shown(client, "CDS") == new | {"c15": "3"}


def test_a_client_that_stops_answering_while_a_culprit_is_looked_for_gets_everything(
    client: Client,
) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS=world()))
    bad = snapshot(CDS=dict.fromkeys(world(), "2") | {"c05": "bad"})
    client.poll(bad)
    client.nack("CDS")
    client.poll(bad)  # one half; no answer
    client.now_s += HOLD_MAX_S + 1.0
    client.poll(bad)
    assert shown(client, "CDS")["c05"] == "bad"


def test_the_events_name_the_culprit_and_what_is_kept(client: Client) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS={"a": "1", "b": "1"}))
    client.poll(snapshot(CDS={"a": "1", "b": "2"}))
    nacked, verdict = client.nack("CDS", "b is wrong")
    assert isinstance(nacked, Nacked)
    assert verdict == Quarantined(CDS, "b", "2", "b is wrong", "1")


def test_a_refused_resource_shows_what_the_client_keeps_and_why(client: Client) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS={"a": "1"}))
    bad = snapshot(CDS={"a": "bad"})
    client.poll(bad)
    client.nack("CDS", "no such thing")
    (state,) = client.stream.resources()
    assert (state.state, state.version_acked, state.error) == (
        Standing.REFUSED,
        "",
        "no such thing",
    )
    client.judge(bad)
    (state,) = client.stream.resources()
    assert (state.state, state.version_acked, state.version_refused) == (
        Standing.REFUSED,
        "1",
        "bad",
    )


def test_a_response_that_deviates_from_the_snapshot_has_a_version_of_its_own(
    client: Client,
) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS={"a": "1"}))
    bad = snapshot(CDS={"a": "bad"})
    client.judge(bad, "a@bad")
    assert client.last["CDS"].version_info.startswith(bad.of(CDS).version + "~")


# -- suspicion -----------------------------------------------------------------------------


def own(name: str, version: str) -> Resource:
    return Resource(CDS, name, version, f"{name}@{version}".encode(), own=True)


def refuse(client: Client, snap: Snapshot, bad: str, error: str) -> list[dict[str, str]]:
    """Let it run to its end with these words; every set of clusters that was accepted."""
    accepted = []
    for _ in range(60):
        had = dict(client.has.get("CDS", {}))
        if not client.poll(snap):
            return accepted
        name, _, version = bad.partition("@")
        if client.has["CDS"].get(name) == version:
            client.has["CDS"] = had
            client.nack("CDS", error)
        else:
            accepted.append(dict(client.has["CDS"]))
            client.ack("CDS")
    raise AssertionError("it does not come to an end")


def test_what_the_clients_words_name_is_suspected_first(client: Client) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS=world()))
    new = dict.fromkeys(world(), "2")
    bad = snapshot(CDS=new | {"c05": "bad"})
    accepted = refuse(client, bad, "c05@bad", "Error adding/updating cluster(s) c05: ring hash")
    assert accepted[0] == new | {"c05": "1"}
    assert len(accepted) == 2
    assert shown(client, "CDS") == new | {"c05": "1"}


@pytest.mark.parametrize("error", ["Error adding/updating cluster(s) x: no", "no name in it"])
def test_a_client_that_came_back_keeps_what_is_generated_while_the_culprit_is_found(
    client: Client, error: str
) -> None:
    there = {"a": "1", "b": "1", "c": "1"}
    client.resume("CDS", there)
    bad = snapshot(CDS=there, extra=[own("x", "bad"), own("y", "1")])
    accepted = refuse(client, bad, "x@bad", error)
    assert all(there.items() <= found.items() for found in accepted)
    assert shown(client, "CDS") == there | {"y": "1"}


def test_a_client_that_came_back_loses_nothing_on_mere_suspicion() -> None:
    client = Client(delta=False)
    there = {"a": "1", "b": "1"}
    client.resume("CDS", there)
    bad = snapshot(CDS=there | {"c": "bad"})
    assert refuse(client, bad, "c@bad", "no name in it") == []
    assert shown(client, "CDS") == there
    assert refuse(client, snapshot(CDS=there | {"c": "2"}), "c@bad", "") == [there | {"c": "2"}]


def late(client: Client, error: str) -> list[Event]:
    """Answer as Envoy does that was silent: the newest nonce and version, an older error."""
    last = client.last["CDS"]
    request = SotwRequest(CDS, (), last.nonce, last.version_info, error)
    return client.stream.receive(request, client.now_s)


def test_case_22_a_late_error_with_the_newest_nonce_is_not_the_newest_responses_fault() -> None:
    client = Client(delta=False)
    client.ask("CDS")
    client.judge(snapshot(CDS={"a": "1"}))
    client.poll(snapshot(CDS={"a": "1"}, extra=[own("x", "bad")]))
    client.now_s += 2.0  # silent, so the next goes out too
    after = snapshot(CDS={"a": "1", "b": "1"})
    assert client.poll(after) == ["CDS +a +b"]
    events = late(client, "Error adding/updating cluster(s) x: no")
    assert [type(e) for e in events] == [Acked, Nacked]
    assert client.poll(after) == []
    assert shown(client, "CDS") == {"a": "1", "b": "1"}
    assert all(s.state is Standing.ACKED for s in client.stream.resources())


def test_case_22_what_a_late_error_names_was_skipped_and_not_accepted() -> None:
    client = Client(delta=False)
    client.ask("CDS")
    client.judge(snapshot(CDS={"a": "1"}))
    client.poll(snapshot(CDS={"a": "1"}, extra=[own("x", "bad")]))
    client.now_s += 2.0
    after = snapshot(CDS={"a": "1", "b": "1"}, extra=[own("x", "bad")])
    client.poll(after)
    events = late(client, "Error adding/updating cluster(s) x: no")
    assert [type(e) for e in events] == [Acked, Nacked, Quarantined]
    assert client.poll(after) == ["CDS +a +b"]
    assert shown(client, "CDS") == {"a": "1", "b": "1"}


def test_a_refusal_is_forgotten_with_its_resource(client: Client) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS={"a": "1"}))
    client.judge(snapshot(CDS={"a": "1", "x": "bad"}), "x@bad")
    client.judge(snapshot(CDS={"a": "1"}))
    assert [s.name for s in client.stream.resources()] == ["a"]


# -- across streams ------------------------------------------------------------------------


def reconnected(client: Client, quarantine: Quarantine) -> Client:
    again = Client(client.delta)
    again.stream.use(quarantine)
    return again


def refusing(client: Client) -> Quarantine:
    quarantine = Quarantine()
    client.stream.use(quarantine)
    client.ask("CDS")
    client.judge(snapshot(CDS={"a": "1", "b": "1"}))
    client.judge(snapshot(CDS={"a": "bad", "b": "1"}), "a@bad")
    return quarantine


def test_a_client_that_reconnects_is_not_offered_what_it_refused(client: Client) -> None:
    quarantine = refusing(client)
    again = reconnected(client, quarantine)
    again.resume("CDS", {"a": "1", "b": "1"})
    again.judge(snapshot(CDS={"a": "bad", "b": "2"}), "a@bad")
    assert again.last["CDS"].names == (("b",) if client.delta else ("a", "b"))
    assert again.has["CDS"]["b"] == "2"
    assert again.has["CDS"].get("a", "1") == "1"


def test_a_client_that_starts_anew_may_judge_anew(client: Client) -> None:
    again = reconnected(client, refusing(client))
    again.ask("CDS")
    again.judge(snapshot(CDS={"a": "bad", "b": "1"}))
    assert shown(again, "CDS") == {"a": "bad", "b": "1"}


def test_a_quarantine_is_bounded_and_drops_the_oldest() -> None:
    quarantine = Quarantine()
    for i in range(REFUSALS_MAX + 1):
        quarantine.add(Resource(CDS, f"c{i}", "1", b""), "no", None)
    assert len(quarantine) == REFUSALS_MAX
    assert quarantine.of(Resource(CDS, "c0", "1", b"")) is None
    assert quarantine.of(Resource(CDS, f"c{REFUSALS_MAX}", "1", b"")) is not None


# -- make before break ---------------------------------------------------------------------


def test_case_64_clusters_that_the_kept_routes_name_stay(client: Client) -> None:
    before = snapshot(
        CDS={"a": "1", "b": "1"}, EDS={"a": "1", "b": "1"}, LDS={"l": "1"}, RDS={"r": "1"}
    )
    client.start(before)
    after = snapshot(CDS={"b": "1"}, EDS={"b": "1"}, LDS={"l": "1"}, RDS={"r": "bad"})
    client.judge(after, "r@bad")
    client.now_s += 60.0
    client.judge(after, "r@bad")
    assert shown(client, "CDS") == {"a": "1", "b": "1"}
    mended = snapshot(CDS={"b": "1"}, EDS={"b": "1"}, LDS={"l": "1"}, RDS={"r": "2"})
    client.judge(mended)
    assert shown(client, "CDS") == {"b": "1"}


def test_case_64_a_cluster_that_nothing_names_drains_before_it_goes(client: Client) -> None:
    draining = Client(client.delta, drain_s=3.0)
    before = snapshot(
        CDS={"a": "1", "b": "1"}, EDS={"a": "1", "b": "1"}, LDS={"l": "1"}, RDS={"r": "1"}
    )
    draining.start(before)
    after = snapshot(CDS={"b": "1"}, EDS={"b": "1"}, LDS={"l": "1"}, RDS={"r": "2"})
    draining.judge(after)
    assert shown(draining, "RDS") == {"r": "2"}
    deadline_s = draining.stream.next_deadline_s(draining.now_s)
    assert deadline_s == 3.0
    draining.now_s = 2.9
    draining.judge(after)
    assert shown(draining, "CDS") == {"a": "1", "b": "1"}
    draining.now_s = 3.0
    draining.judge(after)
    assert shown(draining, "CDS") == {"b": "1"}


def test_each_cluster_drains_for_itself(client: Client) -> None:
    draining = Client(client.delta, drain_s=3.0)
    draining.start(snapshot(CDS={"a": "1", "b": "1", "c": "1"}, LDS={"l": "1"}))
    draining.judge(snapshot(CDS={"b": "1", "c": "1"}, LDS={"l": "1"}))
    draining.now_s = 2.0
    last = snapshot(CDS={"c": "1"}, LDS={"l": "1"})
    draining.judge(last)
    draining.now_s = 3.5
    draining.judge(last)
    assert shown(draining, "CDS") == {"b": "1", "c": "1"}
    draining.now_s = 5.0
    draining.judge(last)
    assert shown(draining, "CDS") == {"c": "1"}


# -- silence -------------------------------------------------------------------------------


def test_case_51_a_client_that_is_silent_about_clusters_gets_their_endpoints_again(
    client: Client,
) -> None:
    client.start(snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": "1"}))
    changed = snapshot(CDS={"a": "2"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": "1"})
    assert client.poll(changed) == ["CDS +a", "EDS +a"]
    cds = next(p for p in client.stream.progress(client.now_s) if p.type_url == CDS)
    assert cds.lacks == ("a",)
    client.now_s += SILENT_AFTER_S - 0.1
    assert client.poll(changed) == []
    assert client.stream.next_deadline_s(client.now_s) == SILENT_AFTER_S
    client.now_s = SILENT_AFTER_S
    assert client.poll(changed) == ["EDS +a"]
    assert client.last["EDS"].unwedge
    assert client.poll(changed) == []
    client.now_s += SILENT_AFTER_S
    assert client.poll(changed) == ["EDS +a"]
    client.ack("EDS", "CDS")
    client.now_s += SILENT_AFTER_S
    assert client.poll(changed) == []


def test_endpoints_called_otherwise_than_their_cluster_follow_it(client: Client) -> None:
    def one(version: str) -> Resource:
        return Resource(CDS, "a", version, f"a@{version}".encode(), needs=("svc",))

    client.ask("CDS")
    client.ask("EDS", "svc")
    client.judge(snapshot(EDS={"svc": "1"}, extra=[one("1")]))
    assert client.poll(snapshot(EDS={"svc": "1"}, extra=[one("2")])) == ["CDS +a", "EDS +svc"]


def test_the_types_that_are_served_have_an_order() -> None:
    from xds_server.model.ids import SHORT
    from xds_server.protocol.ordering import ORDER

    assert set(ORDER) == set(SHORT)
    assert ORDER.index(CDS) < ORDER.index(EDS) < ORDER.index(LDS) < ORDER.index(RDS)


@pytest.mark.parametrize("words", ["Error adding/updating cluster(s) x: no", "no name in it"])
def test_case_51_own_clusters_that_a_client_is_silent_about_are_taken_back(
    client: Client, words: str
) -> None:
    client.ask("CDS")
    client.judge(snapshot(CDS={"a": "1"}))
    new = [own(name, "1") for name in ("w", "y", "z")]
    world = snapshot(CDS={"a": "1"}, extra=[*new, own("x", "bad")])
    owed = None  # the response that it refuses, and says so only when it has another
    for _ in range(90):
        said = client.poll(world)
        if said and "x" in client.has["CDS"]:
            owed = client.last["CDS"]
        elif said and owed is not None:
            if client.delta:
                refusal = DeltaRequest(CDS, response_nonce=owed.nonce, error=words)
                client.stream.receive(refusal, client.now_s)
                client.ack("CDS")
            else:
                late(client, words)
            owed = None
        elif said:
            client.ack("CDS")
        client.now_s += 1.0
    assert shown(client, "CDS") == {"a": "1", "w": "1", "y": "1", "z": "1"}
    refused = [s.name for s in client.stream.resources() if s.state is Standing.REFUSED]
    assert refused == ["x"]
