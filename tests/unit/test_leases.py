import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds_server.model.ids import Locality
from xds_server.model.snapshot import Node
from xds_server.model.telemetry import LoadReport
from xds_server.model.topology import Address, DiscoverySource, Provider
from xds_server.registry.leases import (
    AWAY_S,
    HEARTBEAT_MAX_S,
    Announcement,
    LeaseRefusedError,
    Leases,
    Refusal,
    Said,
)
from xds_server.registry.registry import Registry

REGISTRY = DiscoverySource("registry")
EAST = Locality("us-east-1")


def provider(name: str, **more: object) -> Provider:
    return Provider(name, "search", **{"discovery": REGISTRY, **more})


def leases(*providers: Provider, **bounds: int) -> Leases:
    made = Leases(**bounds)
    made.set_providers({p.name: p for p in providers or (provider("a"),)})
    return made


def at(port: int, name: str = "a", **more: object) -> Announcement:
    return Announcement(name, Address("10.0.0.1", port), **more)


def refused(why: Refusal, call, *args: object, **kwargs: object) -> str:
    with pytest.raises(LeaseRefusedError) as raised:
        call(*args, **kwargs)
    assert raised.value.why is why
    return str(raised.value)


def test_an_endpoint_is_there_until_its_time_is_over() -> None:
    held = leases()
    held.expire(0.0)
    held.register("one", at(1), 2.0, 0.0)
    held.register("two", at(2), 4.0, 0.0)
    assert held.expire(1.9) == set()
    assert held.expire(2.0) == {"a"}
    assert held.endpoints("a") == (Address("10.0.0.1", 2),)
    assert held.ended == {"expired": 1}


def test_a_heartbeat_gives_the_whole_time_again_and_one_too_late_none() -> None:
    held = leases()
    held.expire(0.0)
    held.register("one", at(1), 3.0, 0.0)
    held.expire(1.5)
    assert held.heartbeat("one", 2.9).expires_at_s == 5.9
    held.expire(3.4)
    held.expire(5.3)
    assert "register again" in refused(Refusal.LEASE, held.heartbeat, "one", 5.9)
    assert held.expire(5.9) == {"a"}
    refused(Refusal.LEASE, held.heartbeat, "one", 6.0)


def test_two_heartbeats_may_get_lost() -> None:
    held = leases()
    assert held.register("one", at(1), 3.0, 0.0).heartbeat_s == 1.0
    assert held.register("two", at(2), 300.0, 0.0).heartbeat_s == HEARTBEAT_MAX_S


def test_what_this_process_slept_through_counts_against_nobody() -> None:
    held = leases()
    held.expire(0.0)
    held.register("one", at(1), 3.0, 0.0)
    held.expire(1.0)
    assert held.heartbeat("one", 60.0).heard_at_s == 60.0  # it had waited in a buffer
    held.register("two", at(2), 3.0, 60.0)
    assert held.expire(60.0) == set()
    held.expire(60.5)
    held.expire(62.0)
    assert held.expire(63.0) == {"a"}
    assert len(held) == 0


def test_a_lease_that_is_given_time_is_not_given_more_than_it_lost() -> None:
    held = leases()
    held.expire(0.0)
    held.register("one", at(1), 3.0, 0.0)
    away_s = AWAY_S + 0.5
    assert held.expire(away_s) == set()
    assert held.of("a")[Address("10.0.0.1", 1)].expires_at_s == away_s + 3.0


def test_an_endpoint_that_registers_again_has_one_lease_and_a_new_id() -> None:
    held = leases(per_provider_max=1)
    held.register("old", at(1), 3.0, 0.0)
    held.register("new", at(1), 3.0, 1.0)
    assert len(held) == 1
    refused(Refusal.LEASE, held.heartbeat, "old", 1.0)
    refused(Refusal.LEASE, held.deregister, "old", 1.0)
    assert held.deregister("new", 1.0).lease_id == "new"
    assert held.endpoints("a") == ()


def test_a_provider_that_is_not_declared_for_it_is_refused_with_those_that_are() -> None:
    static = Provider("fixed", "search", endpoints=(Address("10.0.0.1", 1),))
    held = leases(provider("b"), provider("a"), static)
    for name in ("fixed", "nobody", ""):
        message = refused(Refusal.PROVIDER, held.register, "x", at(1, name), 3.0, 0.0)
        assert message.endswith("these do: a, b")
    assert "these do: none" in refused(
        Refusal.PROVIDER, leases(static).register, "x", at(1), 3.0, 0.0
    )


def test_an_endpoint_must_be_what_its_provider_is_declared_to_be() -> None:
    held = leases(provider("a", locality=EAST, capabilities=frozenset({"fulltext"})))
    west = at(1, locality=Locality("us-west-2"))
    assert "us-west-2" in refused(Refusal.MISMATCH, held.register, "x", west, 3.0, 0.0)
    other = at(1, capabilities=frozenset({"geo"}))
    assert "fulltext" in refused(Refusal.MISMATCH, held.register, "x", other, 3.0, 0.0)
    held.register("more", at(1, capabilities=frozenset({"geo", "fulltext"})), 3.0, 0.0)
    held.register("zone", at(2, locality=Locality("us-east-1", "b")), 3.0, 0.0)
    held.register("silent", at(3), 3.0, 0.0)
    assert len(held) == 3


def test_beyond_the_bounds_who_comes_is_refused_and_who_is_there_stays() -> None:
    held = leases(provider("a"), provider("b"), per_provider_max=2, total_max=3)
    held.register("1", at(1), 3.0, 0.0)
    held.register("2", at(2), 3.0, 0.0)
    refused(Refusal.FULL, held.register, "3", at(3), 3.0, 0.0)
    held.register("3", at(1, "b"), 3.0, 0.0)
    refused(Refusal.FULL, held.register, "4", at(2, "b"), 3.0, 0.0)
    held.deregister("1", 0.0)
    held.register("4", at(2, "b"), 3.0, 0.0)
    assert len(held) == 3


def test_a_reload_ends_the_leases_that_no_longer_fit() -> None:
    held = leases(provider("a"), provider("b"), provider("c"))
    for name in "abc":
        held.register(name, at(1, name, locality=EAST), 3.0, 0.0)
    west = provider("b", locality=Locality("us-west-2"))
    assert held.set_providers({"b": west, "c": provider("c")}) == {"a", "b"}
    assert len(held) == 1
    assert held.heartbeat("c", 1.0).announcement.provider == "c"
    refused(Refusal.LEASE, held.heartbeat, "a", 1.0)


def test_what_endpoints_say_is_their_mean_as_old_as_the_oldest() -> None:
    held = leases()
    assert held.utilisation_ratio("a") is None
    held.register("1", at(1, capacity_rps=100.0), 9.0, 0.0)
    held.register("2", at(2, capacity_rps=50.0), 9.0, 0.0)
    held.register("3", at(3), 9.0, 0.0)
    held.heartbeat("1", 1.0, utilisation_ratio=0.2, price_per_million_usd=4.0)
    held.heartbeat("2", 2.0, utilisation_ratio=0.6)
    held.heartbeat("1", 3.0)  # says nothing new: what it said stays
    assert held.utilisation_ratio("a") == Said(pytest.approx(0.4), 1.0)
    assert held.price_per_million_usd("a") == Said(4.0, 1.0)
    assert held.capacity_rps("a") == 75.0


def test_the_engine_hears_leases_where_orca_says_nothing() -> None:
    held = leases(provider("a"), provider("b"))
    reg = Registry({"a": "search", "b": "search"}, slot_s=1.0, load_valid_s=30.0, leases=held)
    reg.node_connected(Node("n1", "shop"), 0.0)
    held.register("1", at(1), 300.0, 0.0)
    held.register("2", at(1, "b"), 300.0, 0.0)
    held.heartbeat("1", 5.0, utilisation_ratio=0.3, price_per_million_usd=2.0)
    held.heartbeat("2", 5.0, utilisation_ratio=0.7, price_per_million_usd=9.0)
    reg.observe_load("n1", [LoadReport("b", 0.5, math.nan, math.nan)], 6.0)
    load = reg.provider_load(6.0)
    assert load.utilisation_ratio.tolist() == [0.3, 0.5]
    assert load.price_per_million_usd.tolist() == [2.0, 9.0]
    later = reg.provider_load(36.0)  # a load grows old, a price holds until it changes
    assert np.isnan(later.utilisation_ratio[0])
    assert later.price_per_million_usd.tolist() == [2.0, 9.0]


Steps = st.lists(
    st.tuples(
        st.sampled_from(["register", "heartbeat", "deregister", "expire", "reload"]),
        st.integers(0, 4),
        st.floats(0.0, 1.5),
    ),
    max_size=60,
)


@given(Steps)
def test_in_any_order_of_calls_tables_agree_and_bounds_hold(steps) -> None:
    held = leases(provider("a"), provider("b"), per_provider_max=2, total_max=3)
    now_s, made = 0.0, 0
    for what, k, pause_s in steps:
        now_s += pause_s
        name = "ab"[k % 2]
        try:
            if what == "register":
                made += 1
                held.register(f"id{made}", at(k, name), 2.0, now_s)
            elif what == "heartbeat":
                held.heartbeat(f"id{made - k}", now_s, utilisation_ratio=0.5)
            elif what == "deregister":
                held.deregister(f"id{made - k}", now_s)
            elif what == "expire":
                held.expire(now_s)
            else:
                held.set_providers({name: provider(name)})
                held.set_providers({"a": provider("a"), "b": provider("b")})
        except LeaseRefusedError:
            pass
        by_provider = {n: held.of(n) for n in "ab"}
        assert sum(map(len, by_provider.values())) == len(held) <= 3
        assert all(len(mine) <= 2 for mine in by_provider.values())
        for n, mine in by_provider.items():
            assert held.endpoints(n) == tuple(sorted(mine))
            assert all(lease.announcement.address == where for where, lease in mine.items())
            assert all(lease.heard_at_s <= now_s for lease in mine.values())
