"""Nodes that differ in nothing share a snapshot; those that differ do not."""

from dataclasses import replace

from tests.e2e.plane import GROUP, overlay
from tests.unit.test_extra import one, own
from tests.unit.test_publisher import publisher
from xds_server.cache import publisher as module
from xds_server.cache.publisher import Publisher
from xds_server.model.extra import NodeSelector
from xds_server.model.ids import CDS, LDS, RTDS, GroupKey, Locality
from xds_server.model.snapshot import Node, Overlay
from xds_server.resources.mesh import MeshResources

ELSEWHERE = {"listeners": {"search": "127.0.0.1:15009"}}
PEAK = GroupKey("shop", "peak", Locality())


def fleet() -> Publisher:
    made = publisher()
    nodes = [Node("a1", "shop"), Node("a2", "shop"), Node("elsewhere", "shop", metadata=ELSEWHERE)]
    nodes += [Node("peak", "shop"), Node("plain", "shop")]
    for node in nodes:
        handle = made.connect(node)
        if node.node_id != "plain":
            made.uses_runtime(handle)
        made.set_group(node.node_id, PEAK if node.node_id == "peak" else GROUP)
    weights = overlay(a=2500, b=7500).weights
    made.publish(Overlay({**weights, PEAK: {"search": {"a": 1, "b": 2}}}), 0.0)
    return made


def test_what_is_alike_is_one_object() -> None:
    made = fleet()
    shown = {node_id: handle.snapshot() for node_id, handle in made.nodes.items()}
    assert shown["a1"] is shown["a2"]
    assert len({id(s) for s in shown.values()}) == 4


def test_what_differs_is_told_apart() -> None:
    made = fleet()
    shown = {node_id: handle.snapshot() for node_id, handle in made.nodes.items()}
    assert shown["elsewhere"].of(LDS) != shown["a1"].of(LDS)
    assert shown["peak"].of(RTDS) != shown["a1"].of(RTDS)
    assert shown["plain"].of(RTDS).resources["weights"].ttl_s is None


def test_a_selector_that_comes_later_tells_nodes_apart() -> None:
    made = fleet()
    mesh = made._mesh
    sets = (own(one("extra"), selector=NodeSelector(id="a2")),)
    made.set_mesh(replace(mesh, resources=sets), MeshResources(mesh, {}), 1.0)
    shown = {node_id: handle.snapshot() for node_id, handle in made.nodes.items()}
    assert "extra" in shown["a2"].of(CDS).resources
    assert "extra" not in shown["a1"].of(CDS).resources


def test_more_kinds_than_are_kept_only_share_less(monkeypatch) -> None:
    monkeypatch.setattr(module, "KINDS_MAX", 2)
    made = publisher()
    for i in range(6):
        listeners = {"listeners": {"search": f"127.0.0.1:{15001 + i % 3}"}}
        made.set_group(made.connect(Node(f"n{i}", "shop", metadata=listeners)).node.node_id, GROUP)
    made.publish(overlay(a=2500, b=7500), 0.0)
    shown = [made.nodes[f"n{i}"].snapshot() for i in range(6)]
    assert [s.of(LDS) for s in shown[:3]] == [s.of(LDS) for s in shown[3:]]
    assert shown[0].of(LDS) != shown[1].of(LDS)
