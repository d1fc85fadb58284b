"""Which nodes get which of people's own resources, and that nothing of it can break a node."""

from collections.abc import Mapping

import pytest

from tests.unit.test_publisher import NODE, publisher
from xds_server.model.extra import EVERY_NODE, NodeSelector, ResourceSet
from xds_server.model.ids import CDS, LDS, SDS
from xds_server.model.snapshot import Node, Resource
from xds_server.model.versions import make_resource, type_snapshot
from xds_server.resources import extra
from xds_server.resources.extra import Extras

EDGE = Node("edge-1", "shop", "east", "a", "a1", {"tier": "gold", "n": 1.0, "deep": {"x": "y"}})


def one(name: str, body: bytes = b"x", type_url: str = CDS) -> Resource:
    return make_resource(type_url, name, body)


def own(*resources: Resource, selector: NodeSelector = EVERY_NODE) -> ResourceSet:
    by_type: dict[str, tuple[Resource, ...]] = {}
    for r in resources:
        by_type[r.type_url] = (*by_type.get(r.type_url, ()), r)
    return ResourceSet(selector, by_type)


SELECTORS = [
    (NodeSelector(), True),
    (NodeSelector(id="edge-*"), True),
    (NodeSelector(id="Edge-*"), False),
    (NodeSelector(id="edge"), False),
    (NodeSelector(cluster="sh?p"), True),
    (NodeSelector(cluster="shop", id="x"), False),
    (NodeSelector(region="east", zone="a", sub_zone="a1"), True),
    (NodeSelector(region="east", zone="b"), False),
    (NodeSelector(metadata={"tier": "gold"}), True),
    (NodeSelector(metadata={"tier": "gold", "more": 1}), False),
    (NodeSelector(metadata={"n": 1}), True),
    (NodeSelector(metadata={"n": True}), False),
    (NodeSelector(metadata={"deep": {"x": "y"}}), True),
    (NodeSelector(metadata={"deep": {"x": "z"}}), False),
    (NodeSelector(metadata={"deep": "y"}), False),
]


@pytest.mark.parametrize(("selector", "matches"), SELECTORS, ids=[str(s) for s, _ in SELECTORS])
def test_a_selector_matches_a_node_that_has_all_that_is_given(
    selector: NodeSelector, matches: bool
) -> None:
    assert selector.matches(EDGE) is matches


@pytest.mark.parametrize("one", [s for s, _ in SELECTORS], ids=str)
@pytest.mark.parametrize("other", [s for s, _ in SELECTORS], ids=str)
def test_what_selectors_say_of_each_other_holds_for_a_node(
    one: NodeSelector, other: NodeSelector
) -> None:
    if one.covers(other) and other.matches(EDGE):
        assert one.matches(EDGE)
    if one.excludes(other):
        assert not (one.matches(EDGE) and other.matches(EDGE))
        assert other.excludes(one)


def test_a_node_gets_the_sets_that_it_matches_in_their_order() -> None:
    extras = Extras([own(one("b")), own(one("a"), selector=NodeSelector(id="edge-*"))])
    assert [r.name for r in extras.of(EDGE)[CDS]] == ["b", "a"]
    assert [r.name for r in extras.of(NODE)[CDS]] == ["b"]
    assert extras.of(EDGE) is extras.of(Node("edge-2", "shop"))


def test_of_one_name_the_first_counts(caplog: pytest.LogCaptureFixture) -> None:
    extras = Extras([own(one("c", b"1")), own(one("c", b"2"))])
    assert [r.body for r in extras.of(EDGE)[CDS]] == [b"1"]
    base = {CDS: type_snapshot([one("c", b"0")])}
    assert extras.add_to(base, EDGE)[CDS].resources["c"].body == b"0"


def test_nodes_with_the_same_share_objects_and_others_are_untouched() -> None:
    extras = Extras([own(one("own", type_url=LDS), selector=NodeSelector(id="edge-*"))])
    base = {CDS: type_snapshot([one("c")]), LDS: type_snapshot([])}
    first, second = extras.add_to(base, EDGE), extras.add_to(base, Node("edge-2", "shop"))
    assert first[LDS] is second[LDS]
    assert first[CDS] is base[CDS]
    assert list(first[LDS].resources) == ["own"]
    assert extras.add_to(base, NODE) == base


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "CACHE_MAX", 3)
    extras = Extras([own(one(f"c{i}"), selector=NodeSelector(id=f"n{i}")) for i in range(9)])
    for i in range(9):
        node = Node(f"n{i}", "shop")
        assert [r.name for r in extras.of(node)[CDS]] == [f"c{i}"]
        assert list(extras.add_to({}, node)[CDS].resources) == [f"c{i}"]


def test_the_publisher_serves_them_and_wakes_nodes_when_they_change_or_go() -> None:
    import asyncio
    from dataclasses import replace

    from tests.e2e.plane import resources

    made = publisher()
    mesh = made._mesh
    handle, wakeup = made.connect(NODE), asyncio.Event()
    handle.subscribe_wakeup(wakeup)
    seen: list[Mapping[str, Resource]] = []
    for sets in ((own(one("cert", b"1", SDS)),), (own(one("cert", b"2", SDS)),), ()):
        changed = replace(mesh, resources=sets)
        made.set_mesh(changed, resources(changed), 0.0)
        assert wakeup.is_set()
        wakeup.clear()
        seen.append(handle.snapshot().of(SDS).resources)
    assert [[r.body for r in found.values()] for found in seen] == [[b"1"], [b"2"], []]
