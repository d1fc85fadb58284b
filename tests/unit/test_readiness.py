"""Which providers a node may not use yet, and when it may."""

import math

from xds_server.cache.nodes import GONE_MAX, Quarantines
from xds_server.cache.readiness import READY_WAIT_S, Readiness
from xds_server.model.ids import CDS
from xds_server.model.snapshot import Resource
from xds_server.model.telemetry import HostsSeen


def offered() -> Readiness:
    """Node n started with a; b came at 10 s."""
    readiness = Readiness()
    readiness.offer("n", ["a"], 0.0)
    readiness.offer("n", ["a", "b"], 10.0)
    return readiness


def test_what_a_node_starts_with_may_be_used_at_once() -> None:
    readiness = Readiness()
    readiness.offer("n", ["a", "b"], 0.0)
    assert readiness.masked("n") == set()
    assert readiness.waiting == ()


def test_what_comes_later_waits_for_healthy_hosts() -> None:
    readiness = offered()
    assert readiness.masked("n") == {"b"}
    assert readiness.waiting == ("n",)
    assert not readiness.see("n", {"b": HostsSeen(0.0, 11.0)}, 0.0, 11.0)
    assert not readiness.see("n", {"a": HostsSeen(1.0, 11.0)}, 0.0, 11.0)
    assert readiness.see("n", {"b": HostsSeen(1.0, 12.0)}, 0.0, 12.0)
    assert readiness.masked("n") == set()


def test_what_was_seen_before_it_came_does_not_count() -> None:
    readiness = offered()
    assert not readiness.see("n", {"b": HostsSeen(3.0, 9.9)}, 0.0, 11.0)


def test_a_node_that_reports_is_not_believed_for_want_of_patience() -> None:
    readiness = offered()
    assert not readiness.see("n", {}, 1.0, 10.0 + 100.0 * READY_WAIT_S)


def test_a_node_that_reports_nothing_is_given_the_benefit_of_the_doubt() -> None:
    readiness = offered()
    assert not readiness.see("n", {}, math.inf, 9.9 + READY_WAIT_S)
    assert readiness.see("n", {}, math.inf, 10.0 + READY_WAIT_S)


def test_what_goes_and_comes_back_waits_again() -> None:
    readiness = offered()
    readiness.see("n", {"b": HostsSeen(1.0, 12.0)}, 0.0, 12.0)
    readiness.offer("n", ["a"], 20.0)
    readiness.offer("n", ["a", "b"], 30.0)
    assert readiness.masked("n") == {"b"}
    assert not readiness.see("n", {"b": HostsSeen(1.0, 19.0)}, 0.0, 31.0)


def test_a_node_that_left_starts_anew() -> None:
    readiness = offered()
    readiness.forget("n")
    assert readiness.masked("n") == set()
    readiness.offer("n", ["a", "b"], 20.0)
    assert readiness.masked("n") == set()


def test_a_quarantine_outlives_its_streams_and_is_bounded_for_nodes_that_are_gone() -> None:
    quarantines = Quarantines()
    first = quarantines.open("n0")
    assert quarantines.open("n0") is first
    first.add(Resource(CDS, "c", "1", b""), "no", None)
    quarantines.close("n0")
    assert quarantines.open("n0") is first
    quarantines.close("n0")
    for i in range(1, GONE_MAX + 1):
        quarantines.open(f"n{i}").add(Resource(CDS, "c", "1", b""), "no", None)
        quarantines.close(f"n{i}")
    assert len(quarantines.open("n0")) == 0


def test_a_quarantine_without_refusals_is_not_kept() -> None:
    quarantines = Quarantines()
    first = quarantines.open("n0")
    quarantines.close("n0")
    assert quarantines.open("n0") is not first
