"""Numbers written over placeholders are the numbers that Envoy reads."""

import numpy as np
import pytest
from envoy.config.route.v3 import route_pb2
from envoy.service.runtime.v3 import rtds_pb2
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.e2e.plane import resources, shop
from xds_server.model.template import Call, Flag
from xds_server.model.topology import Provider
from xds_server.resources.patch import VARINT_MAX, DoubleTemplate, VarintTemplate
from xds_server.resources.route import route_template
from xds_server.resources.runtime import runtime_template

PROVIDERS = tuple(Provider(f"p{i:02}", "search") for i in range(40))
CALL = Call("search", "127.0.0.1:1", timeout_s=2.5, retries=1)
ROUTE = route_template("shop", CALL, PROVIDERS)
RUNTIME = runtime_template("shop", (ROUTE,), (Flag("dark", False), Flag("recommend", True)))
ROWS = st.integers(1, 4)


def arrays(dtype: type, elements: st.SearchStrategy) -> st.SearchStrategy:
    return ROWS.flatmap(lambda g: npst.arrays(dtype, (g, len(PROVIDERS)), elements=elements))


def read_route(body: bytes) -> route_pb2.RouteConfiguration:
    return route_pb2.RouteConfiguration.FromString(body)


def weights_of(route: route_pb2.RouteConfiguration) -> list[tuple[str, int]]:
    action = route.virtual_hosts[0].routes[0].route
    return [(c.name, c.weight.value) for c in action.weighted_clusters.clusters]


@given(arrays(np.int64, st.integers(0, VARINT_MAX)))
def test_a_filled_route_has_exactly_the_weights(numbers: np.ndarray) -> None:
    for row, body in zip(numbers.tolist(), ROUTE.bytes_but_weights.fill(numbers), strict=True):
        assert weights_of(read_route(body)) == [
            (p.name, n) for p, n in zip(PROVIDERS, row, strict=True)
        ]


@given(arrays(np.int64, st.integers(0, VARINT_MAX)))
def test_nothing_of_a_route_but_its_weights_is_changed(numbers: np.ndarray) -> None:
    template = ROUTE.bytes_but_weights
    places = {o + i for o in template.offsets for i in range(3)}
    for body in template.fill(numbers):
        assert len(body) == len(template.body)
        changed = {i for i, (a, b) in enumerate(zip(template.body, body, strict=True)) if a != b}
        assert changed <= places


@given(arrays(np.int64, st.integers(0, VARINT_MAX)))
def test_a_filled_route_is_the_authored_one_but_for_padding(numbers: np.ndarray) -> None:
    for row, body in zip(numbers.tolist(), ROUTE.bytes_but_weights.fill(numbers), strict=True):
        authored = read_route(ROUTE.bytes_but_weights.body)
        action = authored.virtual_hosts[0].routes[0].route
        for cluster, weight in zip(action.weighted_clusters.clusters, row, strict=True):
            cluster.weight.value = weight
        assert read_route(body) == authored


@given(arrays(np.float64, st.floats(allow_nan=False, allow_infinity=False)))
def test_a_filled_runtime_layer_has_exactly_the_numbers_and_the_flags(numbers: np.ndarray) -> None:
    for row, body in zip(numbers.tolist(), RUNTIME.bytes_but_weights.fill(numbers), strict=True):
        fields = rtds_pb2.Runtime.FromString(body).layer.fields
        assert {k: v.number_value for k, v in fields.items() if k.startswith("routing.")} == {
            f"routing.shop.{service}.{provider}": number
            for (service, provider), number in zip(RUNTIME.keys, row, strict=True)
        }
        flags = {k: v.bool_value for k, v in fields.items() if k.startswith("flags.")}
        assert flags == {"flags.shop.dark": False, "flags.shop.recommend": True}


def test_the_baseline_layer_has_flags_and_no_weights() -> None:
    fields = rtds_pb2.Runtime.FromString(RUNTIME.baseline.body).layer.fields
    assert set(fields) == {"flags.shop.dark", "flags.shop.recommend"}


@pytest.mark.parametrize("number", [-1, VARINT_MAX + 1])
def test_a_weight_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"0..{VARINT_MAX}"):
        ROUTE.bytes_but_weights.fill(np.full((1, len(PROVIDERS)), number))


def test_a_placeholder_that_is_not_unique_is_refused() -> None:
    with pytest.raises(ValueError, match="not unique"):
        VarintTemplate.authored(lambda _: bytes.fromhex("8089fa00") * 2, 1)
    with pytest.raises(ValueError, match="not unique"):
        DoubleTemplate.authored(lambda _: b"nothing in it", 1)


def test_a_template_without_places_is_just_copied() -> None:
    template = VarintTemplate.authored(lambda _: b"fixed", 0)
    assert template.fill(np.zeros((3, 0), dtype=np.int64)) == [b"fixed"] * 3


def test_the_route_sends_weights_where_runtime_keys_override_them() -> None:
    mesh = shop(1, 2, {"a": 3, "b": 4}, baseline={"a": 7, "b": 0})
    route = resources(mesh).of("shop", "web").baseline_routes.resources["shop.search"]
    parsed = read_route(route.body)
    assert weights_of(parsed) == [("a", 7), ("b", 0)]
    weighted = parsed.virtual_hosts[0].routes[0].route.weighted_clusters
    assert weighted.runtime_key_prefix == "routing.shop.search"
