"""Holds: what starts them, what ends them, and that they end."""

import pytest

from tests.unit.client import Client, snapshot
from xds_server.model.snapshot import Snapshot
from xds_server.protocol.ordering import HOLD_MAX_S, Gate, Hold


def world(clusters: str, *, version: str = "1", **routes: str) -> Snapshot:
    """Clusters by letter; routes by the version that tells them apart."""
    named = dict.fromkeys(clusters, version)
    return snapshot(
        CDS=named, EDS=dict.fromkeys(clusters, "1"), LDS=dict.fromkeys(routes, "1"), RDS=routes
    )


OLD = world("a", r="1")
MORE = world("ab", r="2")
MOVED = world("b", r="2")


@pytest.fixture(params=["delta", "sotw"])
def started(request: pytest.FixtureRequest) -> Client:
    client = Client(request.param == "delta")
    client.start(OLD)
    assert client.poll(OLD) == []
    return client


def kinds(said: list[str]) -> list[str]:
    return [line.split()[0] for line in said]


# -- Hold ----------------------------------------------------------------------------------


def test_a_hold_blocks_until_its_bound_and_forgets_its_age_when_nothing_waits() -> None:
    hold = Hold()
    assert hold.blocks(True, 10.0)
    assert hold.deadline_s() == 10.0 + HOLD_MAX_S
    assert hold.blocks(True, 9.9 + HOLD_MAX_S)
    assert not hold.blocks(True, 10.0 + HOLD_MAX_S)
    assert not hold.blocks(False, 20.0)
    assert hold.deadline_s() is None
    assert hold.blocks(True, 30.0)


def test_only_holds_that_have_not_lapsed_set_an_alarm() -> None:
    gate = Gate()
    gate.pointers.blocks(True, 1.0)
    gate.removals.blocks(True, 3.0)
    assert gate.deadlines(0.0, 2.0) == [1.0 + HOLD_MAX_S, 3.0 + HOLD_MAX_S]
    assert gate.deadlines(0.0, 2.0 + HOLD_MAX_S) == [3.0 + HOLD_MAX_S]


# -- routes wait for clusters --------------------------------------------------------------


def test_case_63_a_wait_long_ago_does_not_count_as_this_one(started: Client) -> None:
    assert kinds(started.poll(MORE)) == ["CDS"]
    started.ask("EDS", "a", "b")
    started.poll(MORE)  # r waits, and then has nothing left to wait for
    back = world("ab", r="1")
    started.ack("CDS", "EDS")
    assert started.poll(back) == []
    started.now_s += 10 * HOLD_MAX_S
    assert kinds(started.poll(world("abc", r="3"))) == ["CDS"]


def test_case_63_endpoints_sent_before_their_cluster_changed_do_not_end_the_wait(
    started: Client,
) -> None:
    started.poll(snapshot(CDS={"a": "1"}, EDS={"a": "2"}, LDS={"r": "1"}, RDS={"r": "1"}))
    changed = snapshot(CDS={"a": "2"}, EDS={"a": "2"}, LDS={"r": "1"}, RDS={"r": "2"})
    assert kinds(started.poll(changed)) == ["CDS"]  # endpoints are in flight already
    started.ack("EDS")
    assert kinds(started.poll(changed)) == ["EDS"]
    started.ack("CDS")
    assert started.poll(changed) == []
    started.ack("EDS")
    assert started.poll(changed) == ["RDS +r"]


def test_case_62_a_route_that_is_asked_for_during_a_hold_goes_alone(started: Client) -> None:
    wider = world("ab", r="2", s="1")
    assert kinds(started.poll(wider)) == ["CDS"]
    started.ask("RDS", "r", "s")
    assert started.poll(wider) == ["RDS +s"]  # r goes on waiting for cluster b
    started.ask("EDS", "a", "b")
    started.poll(wider)
    started.ack("CDS", "EDS", "RDS")
    assert sorted(kinds(started.poll(wider))) == ["LDS", "RDS"]


def test_case_63_a_route_that_does_not_exist_opens_no_hold(started: Client) -> None:
    started.ask("RDS", "r", "zombie")
    started.poll(OLD)
    if started.delta:
        started.ack("RDS")
    assert kinds(started.poll(MORE)) == ["CDS"]


def test_weights_do_not_wait_for_clusters_of_the_future(started: Client) -> None:
    """With no cluster on its way a change of routes goes out at once."""
    assert started.poll(world("a", r="2")) == ["RDS +r"]


# -- clusters wait for routes --------------------------------------------------------------


def settle(client: Client, snap: Snapshot, *, routes: bool) -> None:
    """Take everything but, if so wished, the routes."""
    client.poll(snap)
    client.ask("EDS", "a", "b")
    client.poll(snap)
    client.ack("CDS", "EDS")
    client.poll(snap)
    if routes:
        client.ack("RDS")
        client.poll(snap)


def test_case_64_a_client_that_never_takes_the_routes_does_not_keep_the_cluster_for_ever(
    started: Client,
) -> None:
    settle(started, MOVED, routes=False)
    started.now_s += HOLD_MAX_S - 0.1
    started.poll(MOVED)
    assert set(started.has["CDS"]) == {"a", "b"}
    started.now_s += 0.2
    started.poll(MOVED)
    assert set(started.has["CDS"]) == {"b"}


def test_case_64_a_cluster_that_returns_before_it_was_removed_is_not_sent_again(
    started: Client,
) -> None:
    settle(started, MOVED, routes=False)
    assert started.has["CDS"] == {"a": "1", "b": "1"}
    started.ack("RDS")
    back = world("ab", r="2")
    assert [k for k in kinds(started.poll(back)) if k in ("LDS", "RDS")] == []
    assert started.has["CDS"] == {"a": "1", "b": "1"}


def test_case_64_what_goes_first_and_last_in_a_move(started: Client) -> None:
    settle(started, MOVED, routes=True)
    assert started.has["CDS"] == {"b": "1"}
    assert started.has["RDS"] == {"r": "2"}


def test_case_65_every_change_of_a_cluster_is_followed_by_its_endpoints(started: Client) -> None:
    for version in ("2", "3", "4"):
        changed = world("a", version=version, r="1")
        assert started.poll(changed) == ["CDS +a", "EDS +a"]
        started.ack("CDS", "EDS")
        assert started.poll(changed) == []


def test_case_53_clusters_that_are_answered_after_a_reconnect_bring_their_endpoints() -> None:
    client = Client(delta=False)
    client.ask("EDS", "a")  # before CDS, as a reconnecting Envoy may
    assert client.poll(OLD) == ["EDS +a"]
    client.ack("EDS")
    client.ask("CDS")
    assert client.poll(OLD) == ["CDS +a", "EDS +a"]
