import numpy as np
import pytest
from envoy.config.route.v3 import route_pb2
from envoy.service.runtime.v3 import rtds_pb2
from hypothesis import given
from hypothesis import strategies as st

from xds_server.model.template import Call, Flag
from xds_server.model.topology import Provider
from xds_server.resources.patch import VARINT_MAX, VarintTemplate
from xds_server.resources.route import route_template
from xds_server.resources.runtime import runtime_template

PROVIDERS = tuple(Provider(name, "search", baseline_weight=w) for name, w in (("a", 3), ("b", 1)))
ROUTE = route_template("shop", Call("search", "127.0.0.1:1", timeout_s=1.5, retries=1), PROVIDERS)
RUNTIME = runtime_template("shop", (ROUTE,), (Flag("on", default=True),))
rows = st.lists(
    st.tuples(st.integers(0, VARINT_MAX), st.integers(0, VARINT_MAX)), min_size=1, max_size=5
)


@given(rows)
def test_patched_routes_read_back_as_exactly_those_weights(weights) -> None:
    bodies = ROUTE.bytes_but_weights.fill(np.array(weights, dtype=np.int64))
    for row, body in zip(weights, bodies, strict=True):
        message = route_pb2.RouteConfiguration.FromString(body)
        action = message.virtual_hosts[0].routes[0].route
        clusters = action.weighted_clusters.clusters
        assert [(c.name, c.weight.value) for c in clusters] == list(
            zip(("a", "b"), row, strict=True)
        )
        assert action.weighted_clusters.runtime_key_prefix == "routing.shop.search"
        assert action.timeout.ToMilliseconds() == 1500
        assert len(body) == len(bodies[0])


@given(rows)
def test_patched_runtime_layers_read_back_as_exactly_those_numbers(weights) -> None:
    bodies = RUNTIME.bytes_but_weights.fill(np.array(weights, dtype=np.float64))
    for row, body in zip(weights, bodies, strict=True):
        fields = rtds_pb2.Runtime.FromString(body).layer.fields
        assert {k: v.number_value for k, v in fields.items() if k.startswith("routing.")} == {
            "routing.shop.search.a": row[0],
            "routing.shop.search.b": row[1],
        }
        assert fields["flags.shop.on"].bool_value is True


@pytest.mark.parametrize("bad", [-1, VARINT_MAX + 1])
def test_a_number_that_does_not_fit_is_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="within"):
        ROUTE.bytes_but_weights.fill(np.array([[bad, 1]]))


def test_an_ambiguous_placeholder_is_refused() -> None:
    with pytest.raises(ValueError, match="not unique"):
        VarintTemplate.authored(lambda _: b"", 1)
