import asyncio
from dataclasses import replace

import pytest

from tests.e2e.plane import GROUP, overlay, resources, shop
from xds_server.cache.publisher import Publisher
from xds_server.errors import InvalidWeightsError, RemoteProtocolError, UnknownApplicationError
from xds_server.model.ids import CDS, EDS, LDS, RDS, RTDS, GroupKey, Locality
from xds_server.model.snapshot import Node, Overlay
from xds_server.model.topology import Mode, WeightsVia

NODE = Node("n1", "shop")
ENDPOINTS = {"a": 9001, "b": 9002}


def publisher(**options: object) -> Publisher:
    mesh = shop(18000, 15001, ENDPOINTS, **options)  # type: ignore[arg-type]
    return Publisher(mesh, resources(mesh))


def connected(runtime: bool = True, **options: object) -> Publisher:
    made = publisher(**options)
    handle = made.connect(NODE)
    if runtime:
        made.uses_runtime(handle)
    made.set_group("n1", GROUP)
    return made


def versions(made: Publisher, node_id: str = "n1") -> dict[str, str]:
    return {url: part.version for url, part in made.nodes[node_id].snapshot().types.items()}


def test_a_new_node_gets_everything_it_needs_at_the_baseline() -> None:
    handle = publisher().connect(NODE)
    found = {url: sorted(part.resources) for url, part in handle.snapshot().types.items()}
    assert found == {
        CDS: ["a", "b"],
        EDS: ["a", "b"],
        LDS: ["shop.search"],
        RDS: ["shop.search"],
        RTDS: ["weights"],
    }
    assert handle.snapshot().of(RTDS).resources["weights"].ttl_s is None


def test_case_67_weights_change_the_runtime_layer_and_nothing_else() -> None:
    made = connected()
    before = versions(made)
    made.publish(overlay(a=2500, b=7500), 0.0)
    changed = {url for url, v in versions(made).items() if v != before[url]}
    assert changed == {RTDS}
    assert made.nodes["n1"].snapshot().of(RTDS).resources["weights"].ttl_s == 10.0
    assert made.weights_via("n1") is WeightsVia.RTDS


def test_weights_change_the_routes_of_a_node_without_a_runtime_layer() -> None:
    made = connected(runtime=False)
    before = versions(made)
    made.publish(overlay(a=2500, b=7500), 0.0)
    assert {url for url, v in versions(made).items() if v != before[url]} == {RDS}
    made.uses_runtime(made.nodes["n1"])
    assert versions(made)[RDS] == before[RDS]


def test_the_configuration_can_force_the_way() -> None:
    by_routes = connected(via=WeightsVia.RDS)
    before = versions(by_routes)
    by_routes.publish(overlay(a=2500, b=7500), 0.0)
    assert {url for url, v in versions(by_routes).items() if v != before[url]} == {RDS}


def test_nodes_of_a_group_share_the_bytes() -> None:
    made = connected()
    made.uses_runtime(made.connect(Node("n2", "shop")))
    made.set_group("n2", GROUP)
    made.publish(overlay(a=2500, b=7500), 0.0)
    one, two = (made.nodes[n].snapshot() for n in ("n1", "n2"))
    assert one.of(RTDS).resources["weights"] is two.of(RTDS).resources["weights"]
    assert one.of(CDS) is two.of(CDS)


async def test_only_the_nodes_that_a_change_concerns_are_woken() -> None:
    made = connected()
    other = GroupKey("shop", "peak", Locality())
    made.uses_runtime(made.connect(Node("n2", "shop")))
    made.set_group("n2", other)
    made.publish(Overlay({**overlay(a=1, b=1).weights, other: {"search": {"a": 1, "b": 1}}}), 0.0)
    mine, theirs = asyncio.Event(), asyncio.Event()
    made.nodes["n1"].subscribe_wakeup(mine)
    made.nodes["n2"].subscribe_wakeup(theirs)
    made.publish(Overlay({**overlay(a=1, b=9).weights, other: {"search": {"a": 1, "b": 1}}}), 1.0)
    assert (mine.is_set(), theirs.is_set()) == (True, False)


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ({"a": 0, "b": 0}, "all weights are 0"),
        ({"a": -1, "b": 2}, "not an integer"),
        ({"a": 20_000, "b": 1}, "not an integer in 0..10000"),
        ({"a": 1.5, "b": 1}, "not an integer"),
    ],
)
def test_case_68_and_69_weights_that_envoy_would_fail_on_change_nothing(
    weights: dict[str, int], why: str
) -> None:
    made = connected()
    made.publish(overlay(a=1, b=1), 0.0)
    before = versions(made)
    with pytest.raises(InvalidWeightsError, match=why):
        made.publish(overlay(**weights), 1.0)
    assert versions(made) == before


def test_heartbeats_go_out_three_times_per_ttl_while_the_engine_renews() -> None:
    made = connected(ttl_s=3.0)
    made.publish(overlay(a=1, b=1), 0.0)
    seen = []
    for tick in range(10):
        made.renew(tick * 0.5)
        seen.append(made.nodes["n1"].heartbeat_seq)
    assert seen == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_weights_that_were_not_renewed_are_withdrawn_and_come_back_as_new() -> None:
    made = connected(ttl_s=3.0)
    baseline = versions(made)
    made.publish(overlay(a=1, b=1), 0.0)
    published = versions(made)[RTDS]
    assert not made.expire(2.9)
    assert made.expire(3.0)
    assert versions(made) == baseline
    made.publish(overlay(a=1, b=1), 4.0)
    assert versions(made)[RTDS] not in (published, baseline[RTDS])


def test_leaving_enforce_withdraws_the_weights() -> None:
    made = connected()
    baseline = versions(made)
    made.publish(overlay(a=1, b=1), 0.0)
    mesh = replace(shop(18000, 15001, ENDPOINTS), mode=Mode.RECOMMEND)
    made.set_mesh(mesh, resources(mesh), 0.0)
    assert versions(made) == baseline


def test_after_a_reload_weights_stay_and_a_new_provider_waits_for_its_first() -> None:
    made = connected(runtime=False)
    made.publish(overlay(a=2500, b=7500), 0.0)
    mesh = shop(18000, 15001, {"b": 9002, "c": 9003})
    made.set_mesh(mesh, resources(mesh), 0.0)
    reference = Publisher(mesh, resources(mesh))
    reference.connect(NODE)
    reference.set_group("n1", GROUP)
    reference.publish(overlay(b=7500, c=0), 0.0)
    assert versions(made)[RDS] == versions(reference)[RDS]


def test_a_node_whose_application_is_gone_keeps_what_it_has() -> None:
    made = connected()
    before = made.nodes["n1"].snapshot()
    mesh = shop(18000, 15001, ENDPOINTS)
    mesh = replace(mesh, applications={"other": mesh.applications["shop"]})
    made.set_mesh(mesh, resources(mesh), 0.0)
    assert made.nodes["n1"].snapshot() is before


def test_an_unknown_application_or_template_is_refused_with_the_known_names() -> None:
    made = publisher()
    with pytest.raises(UnknownApplicationError, match="configured are: shop"):
        made.connect(Node("n9", "shoop"))
    with pytest.raises(UnknownApplicationError, match=r"template 'wob'.*web"):
        made.connect(Node("n9", "shop", metadata={"template": "wob"}))
    assert made.nodes == {}


def test_a_node_says_where_it_listens() -> None:
    made = publisher()
    here = made.connect(NODE).snapshot().of(LDS)
    there = made.connect(
        Node("n2", "shop", metadata={"listeners": {"search": "127.0.0.1:15099"}})
    ).snapshot()
    assert there.of(LDS).version != here.version
    with pytest.raises(RemoteProtocolError, match=r"listeners\.search"):
        made.connect(Node("n3", "shop", metadata={"listeners": {"search": "nowhere"}}))
    with pytest.raises(RemoteProtocolError, match="must map"):
        made.connect(Node("n3", "shop", metadata={"listeners": 5}))


def test_a_node_stays_until_its_last_stream_closes() -> None:
    made = publisher()
    first, second = made.connect(NODE), made.connect(NODE)
    made.disconnect(first)
    assert made.nodes["n1"] is second
    made.disconnect(second)
    assert made.nodes == {}
    made.set_group("n1", GROUP)  # a tick that has not noticed yet


def test_a_second_envoy_with_the_same_id_moves_nothing_of_the_first() -> None:
    made = connected()
    made.publish(overlay(a=2500, b=7500), 0.0)
    first = made.nodes["n1"]
    before = first.snapshot()
    second = made.connect(Node("n1", "shop", metadata={"listeners": {"search": "127.0.0.1:15099"}}))
    made.publish(overlay(a=2500, b=7500), 1.0)
    assert first.snapshot().types == before.types
    assert second.snapshot().of(LDS) != before.of(LDS)
    assert second.group == GROUP
