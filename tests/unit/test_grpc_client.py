"""What a gRPC client without a sidecar gets, beside what an Envoy gets."""

from dataclasses import replace

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401 - for its Any
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from tests.e2e.plane import GROUP, overlay, resources, shop
from xds_server.cache.publisher import Publisher
from xds_server.errors import UnknownApplicationError
from xds_server.model.ids import CDS, EDS, LDS, RDS
from xds_server.model.snapshot import Node, Snapshot
from xds_server.model.topology import Address, Mesh, WeightsVia
from xds_server.resources.grpc_bootstrap import render_grpc_bootstrap

CLIENT = Node("g1", "shop", user_agent="gRPC C-core linux Python")
ENVOY = Node("n1", "shop", user_agent="envoy")


def mesh(**options: object) -> Mesh:
    return shop(18000, 15001, {"a": 9001, "b": 9002}, **options)  # type: ignore[arg-type]


def connected(made: Mesh) -> Publisher:
    publisher = Publisher(made, resources(made))
    for node in (CLIENT, ENVOY):
        publisher.connect(node)
        publisher.set_group(node.node_id, GROUP)
    return publisher


def shown(publisher: Publisher, node_id: str = "g1") -> Snapshot:
    return publisher.nodes[node_id].snapshot()


def routes(snapshot: Snapshot) -> route_pb2.RouteConfiguration:
    body = snapshot.of(RDS).resources["shop.search"].body
    return route_pb2.RouteConfiguration.FromString(body)


def weights(snapshot: Snapshot) -> dict[str, int]:
    action = routes(snapshot).virtual_hosts[0].routes[0].route
    return {c.name: c.weight.value for c in action.weighted_clusters.clusters}


def test_its_listener_has_no_port_and_takes_its_routes_over_ads() -> None:
    (resource,) = shown(connected(mesh())).of(LDS).resources.values()
    listener = listener_pb2.Listener.FromString(resource.body)
    assert resource.name == listener.name == "shop.search"
    assert not listener.HasField("address")
    manager = hcm_pb2.HttpConnectionManager()
    assert listener.api_listener.api_listener.Unpack(manager)
    assert manager.rds.route_config_name == "shop.search"
    assert manager.rds.config_source.HasField("ads")
    assert [f.typed_config.type_url.rpartition(".")[2] for f in manager.http_filters] == ["Router"]


def test_its_clusters_balance_as_it_can_and_bound_calls_as_envoys_do() -> None:
    publisher = connected(mesh())
    clusters = {
        node: cluster_pb2.Cluster.FromString(shown(publisher, node).of(CDS).resources["a"].body)
        for node in ("g1", "n1")
    }
    assert clusters["g1"].lb_policy == cluster_pb2.Cluster.ROUND_ROBIN
    assert clusters["n1"].lb_policy == cluster_pb2.Cluster.LEAST_REQUEST
    calls = {n: c.circuit_breakers.thresholds[0].max_requests.value for n, c in clusters.items()}
    assert calls["g1"] == calls["n1"] > 1024
    assert clusters["g1"].outlier_detection.enforcing_success_rate.value == 0


def test_its_routes_retry_what_is_harmless_and_leave_deadlines_to_the_application() -> None:
    action = routes(shown(connected(mesh(retries=2)))).virtual_hosts[0].routes[0].route
    policy = action.retry_policy
    assert (policy.retry_on, policy.num_retries.value) == ("unavailable", 2)
    assert not action.HasField("max_stream_duration")


def test_what_may_have_been_executed_is_not_retried() -> None:
    made = mesh(retries=2)
    template = made.templates["web"]
    calls = tuple(replace(c, idempotent=False) for c in template.calls)
    made = replace(made, templates={"web": replace(template, calls=calls)})
    action = routes(shown(connected(made))).virtual_hosts[0].routes[0].route
    assert not action.HasField("retry_policy")


@pytest.mark.parametrize("via", list(WeightsVia))
def test_weights_come_in_its_routes_whatever_the_way_of_others(via: WeightsVia) -> None:
    publisher = connected(mesh(via=via, baseline={"a": 3, "b": 1}))
    assert weights(shown(publisher)) == {"a": 3, "b": 1}
    assert publisher.weights_via("g1") is None
    publisher.publish(overlay(a=2500, b=7500), 0.0)
    assert weights(shown(publisher)) == {"a": 2500, "b": 7500}
    assert publisher.weights_via("g1") is WeightsVia.RDS
    publisher.withdraw()
    assert weights(shown(publisher)) == {"a": 3, "b": 1}


def test_clients_of_a_group_share_the_bytes_and_have_nothing_of_envoys() -> None:
    publisher = connected(mesh())
    publisher.connect(replace(CLIENT, node_id="g2"))
    publisher.set_group("g2", GROUP)
    publisher.publish(overlay(a=1, b=2), 0.0)
    one, two, envoy = (shown(publisher, n) for n in ("g1", "g2", "n1"))
    assert one.of(RDS) is two.of(RDS)
    assert set(one.types) == {LDS, RDS, CDS, EDS}
    assert not {r.body for r in one.of(LDS).resources.values()} & {
        r.body for r in envoy.of(LDS).resources.values()
    }


def test_a_provider_that_comes_is_used_at_once_by_who_cannot_say_what_it_sees() -> None:
    before = shop(18000, 15001, {"a": 9001})
    publisher = connected(before)
    after = mesh()
    publisher.set_mesh(after, resources(after), 1.0)
    assert weights(shown(publisher)) == {"a": 1, "b": 1}
    assert publisher.waiting == ("n1",)


def test_endpoints_that_are_unix_sockets_are_not_for_it() -> None:
    made = mesh()
    socket, plain = Address("unix:/run/a.sock"), Address("127.0.0.1", 9001)
    service = made.services["search"]
    providers = tuple(
        replace(p, endpoints=(socket, plain) if p.name == "a" else (socket,))
        for p in service.providers
    )
    publisher = connected(replace(made, services={"search": replace(service, providers=providers)}))

    def hosts(node_id: str) -> dict[str, int]:
        found = {
            name: endpoint_pb2.ClusterLoadAssignment.FromString(r.body)
            for name, r in shown(publisher, node_id).of(EDS).resources.items()
        }
        return {n: sum(len(at.lb_endpoints) for at in a.endpoints) for n, a in found.items()}

    assert hosts("g1") == {"a": 1, "b": 0}
    assert hosts("n1") == {"a": 2, "b": 1}


def test_an_unknown_application_or_template_is_refused_as_to_envoys() -> None:
    publisher = connected(mesh())
    for node in (replace(CLIENT, application="x"), replace(CLIENT, metadata={"template": "x"})):
        with pytest.raises(UnknownApplicationError):
            publisher.connect(node)


def test_its_bootstrap_says_where_to_ask_and_who_it_is() -> None:
    settings = {"locality.region": "r1", "metadata.team": "blue", "template": "web"}
    assert render_grpc_bootstrap(mesh(), "shop", "g1", settings) == {
        "xds_servers": [
            {
                "server_uri": "127.0.0.1:18000",
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {
            "id": "g1",
            "cluster": "shop",
            "locality": {"region": "r1"},
            "metadata": {"team": "blue", "template": "web"},
        },
    }


@pytest.mark.parametrize(
    ("address", "target"),
    [("[::1]:18000", "[::1]:18000"), ("xds.test:1", "xds.test:1"), ("unix:/x", "unix:/x")],
)
def test_the_control_plane_may_be_anywhere(address: str, target: str) -> None:
    boot = render_grpc_bootstrap(mesh(), "shop", "g1", {"xds.address": address})
    assert boot["xds_servers"][0]["server_uri"] == target


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("admin.address", "127.0.0.1:9901"),
        ("api", "delta"),
        ("max_connections", "10"),
        ("listeners.search", "127.0.0.1:15001"),
    ],
)
def test_a_setting_that_is_for_envoy_alone_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"{key} is not for a gRPC client: .*; drop it"):
        render_grpc_bootstrap(mesh(), "shop", "g1", {key: value})


def test_a_wrong_setting_is_refused_as_for_envoys() -> None:
    with pytest.raises(ValueError, match=r"did you mean: locality\.zone"):
        render_grpc_bootstrap(mesh(), "shop", "g1", {"locality.zones": "x"})
