"""Whatever is published, reloaded or withdrawn, no node ever has a world that does not work."""

from dataclasses import replace

import pytest
from envoy.config.route.v3 import route_pb2
from envoy.service.runtime.v3 import rtds_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.e2e.plane import resources, shop
from xds_server.cache.publisher import Publisher
from xds_server.errors import InvalidWeightsError
from xds_server.model.ids import CDS, EDS, LDS, RDS, RTDS, GroupKey, Locality
from xds_server.model.snapshot import Node, Overlay, Snapshot
from xds_server.model.telemetry import HostsSeen
from xds_server.model.topology import Mesh, Mode, WeightsVia
from xds_server.resources.weights import WEIGHT_MAX, validate_weights

PROVIDERS = "abcd"
GROUPS = tuple(GroupKey("shop", phase, Locality()) for phase in ("steady", "peak"))
PREFIX = "routing.shop.search."
some = st.frozensets(st.sampled_from(PROVIDERS), min_size=1)
weight = st.integers(0, WEIGHT_MAX)
wild = st.one_of(
    st.integers(-10, WEIGHT_MAX + 10), st.floats(), st.booleans(), st.none(), st.text(max_size=3)
)


def mesh_of(providers: frozenset[str], via: WeightsVia, mode: Mode = Mode.ENFORCE) -> Mesh:
    ports = {name: 9000 + ord(name) for name in sorted(providers)}
    baseline = {name: ord(name) - ord("a") for name in ports} | {min(ports): 3}
    return replace(shop(18000, 15001, ports, baseline=baseline, via=via), mode=mode)


def routed(snapshot: Snapshot) -> dict[str, int]:
    (route,) = snapshot.of(RDS).resources.values()
    message = route_pb2.RouteConfiguration.FromString(route.body)
    clusters = message.virtual_hosts[0].routes[0].route.weighted_clusters.clusters
    return {c.name: c.weight.value for c in clusters}


def by_runtime(snapshot: Snapshot) -> dict[str, int]:
    (layer,) = snapshot.of(RTDS).resources.values()
    fields = rtds_pb2.Runtime.FromString(layer.body).layer.fields
    return {
        k.removeprefix(PREFIX): int(v.number_value)
        for k, v in fields.items()
        if k.startswith(PREFIX)
    }


reported = st.dictionaries(st.sampled_from(PROVIDERS), st.integers(0, 1))


def without(weights: dict[str, int], waits: frozenset[str]) -> dict[str, int]:
    """Weights at a node that waits for some; all of them where nothing else would be left."""
    left = {name: 0 if name in waits else weight for name, weight in weights.items()}
    return left if any(left.values()) else weights


class Plane(RuleBasedStateMachine):
    """A publisher with two nodes: n0 has a runtime layer, n1 has none."""

    @initialize(providers=some, via=st.sampled_from(WeightsVia))
    def begin(self, providers: frozenset[str], via: WeightsVia) -> None:
        self.now_s, self.via = 0.0, via
        self.asked: dict[GroupKey, dict[str, int]] = {}
        self._mesh(providers, Mode.ENFORCE)
        self.publisher = Publisher(self.mesh, resources(self.mesh))
        self.handles = [self.publisher.connect(Node(f"n{i}", "shop")) for i in range(2)]
        self.publisher.uses_runtime(self.handles[0])
        self.groups: list[GroupKey | None] = [None, None]

    def _mesh(self, providers: frozenset[str], mode: Mode) -> None:
        self.providers, self.mesh = providers, mesh_of(providers, self.via, mode)

    @rule(which=st.integers(0, 1), group=st.sampled_from(GROUPS))
    def group(self, which: int, group: GroupKey) -> None:
        self.groups[which] = group
        self.publisher.set_group(f"n{which}", group)

    @rule(weights=st.lists(st.dictionaries(st.sampled_from(PROVIDERS), weight), max_size=2))
    def publish(self, weights: list[dict[str, int]]) -> None:
        """A plan names every provider and sums up to something."""
        plan = {
            group: {name: chosen.get(name, 0) for name in self.providers}
            for group, chosen in zip(GROUPS, weights, strict=False)
            if any(chosen.get(name) for name in self.providers)
        }
        if self.mesh.mode is Mode.ENFORCE:
            overlay = Overlay({g: {"search": w} for g, w in plan.items()})
            self.publisher.publish(overlay, self.now_s)
            self.asked = plan

    @rule(bad=st.dictionaries(st.sampled_from(PROVIDERS), wild, min_size=1))
    def publish_wrong(self, bad: dict[str, object]) -> None:
        """What is not valid is refused, and changes nothing."""
        full = {name: bad.get(name, 0) for name in self.providers}
        try:
            validate_weights("", full, self.providers)  # type: ignore[arg-type]
        except InvalidWeightsError:
            before = [h.snapshot() for h in self.handles]
            overlay = Overlay({GROUPS[0]: {"search": full}})  # type: ignore[dict-item]
            with pytest.raises(InvalidWeightsError):
                self.publisher.publish(overlay, self.now_s)
            assert [h.snapshot() for h in self.handles] == before

    @rule(providers=some, mode=st.sampled_from(Mode))
    def reload(self, providers: frozenset[str], mode: Mode) -> None:
        self._mesh(providers, mode)
        self.publisher.set_mesh(self.mesh, resources(self.mesh), self.now_s)
        if mode is not Mode.ENFORCE:
            self.asked = {}

    @rule(
        which=st.integers(0, 1), seen=st.dictionaries(st.sampled_from(PROVIDERS), st.integers(0, 1))
    )
    def sees(self, which: int, seen: dict[str, int]) -> None:
        """A node reports healthy hosts: what it waited for and has is no longer masked."""
        before = self.publisher.waits_for(f"n{which}")
        now_s = self.now_s + 0.1
        hosts = {name: HostsSeen(float(count), now_s) for name, count in seen.items()}
        self.publisher.see(f"n{which}", hosts, 0.0, now_s)
        freed = {name for name, count in seen.items() if count}
        assert self.publisher.waits_for(f"n{which}") == before - freed

    @rule()
    def withdraw(self) -> None:
        self.publisher.withdraw()
        self.asked = {}

    @rule(waited_s=st.sampled_from((1.0, 11.0)), alive=st.booleans())
    def time_passes(self, waited_s: float, alive: bool) -> None:
        self.now_s += waited_s
        if alive:
            self.publisher.renew(self.now_s)
        elif self.publisher.expire(self.now_s):
            self.asked = {}

    @invariant()
    def every_route_works(self) -> None:
        for handle in self.handles:
            snapshot = handle.snapshot()
            weights = routed(snapshot)
            assert weights.keys() == snapshot.of(CDS).resources.keys() == self.providers
            assert snapshot.of(EDS).resources.keys() == self.providers
            assert list(snapshot.of(LDS).resources) == ["shop.search"]
            assert sum(weights.values()) > 0
            layer = by_runtime(snapshot)
            assert not layer or (layer.keys() == self.providers and sum(layer.values()) > 0)

    @invariant()
    def weights_are_those_asked_for_or_the_baseline(self) -> None:
        baseline = {name: p.baseline_weight for name, p in self.mesh.providers.items()}
        for handle, group, has_layer in zip(self.handles, self.groups, (True, False), strict=True):
            snapshot = handle.snapshot()
            layer, weights = by_runtime(snapshot), routed(snapshot)
            asked = self.asked.get(group) if group else None
            waits = self.publisher.waits_for(handle.node.node_id)
            routed_baseline = without(baseline, waits)
            if asked is None:
                assert (layer, weights) == ({}, routed_baseline)
                continue
            # After a reload new providers wait at 0, and what only gone ones had is undone.
            expected = {name: asked.get(name, 0) for name in self.providers}
            if not any(expected.values()):
                expected = baseline
            expected = without(expected, waits)
            if self.via is WeightsVia.RTDS or (self.via is WeightsVia.AUTO and has_layer):
                assert (layer, weights) == (expected, routed_baseline)
                assert snapshot.of(RTDS).resources["weights"].ttl_s == 10.0
            else:
                assert (layer, weights) == ({}, expected)
                assert snapshot.of(RTDS).resources["weights"].ttl_s is None


TestPlane = Plane.TestCase
TestPlane.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


@given(st.dictionaries(st.sampled_from(PROVIDERS), weight), some)
def test_valid_weights_name_each_provider_once_and_sum_above_zero(
    weights: dict[str, int], providers: frozenset[str]
) -> None:
    if weights.keys() == providers and sum(weights.values()) > 0:
        validate_weights("here", weights, providers)
    else:
        with pytest.raises(InvalidWeightsError, match=r"^here: "):
            validate_weights("here", weights, providers)
