"""Every resource of a node, readable: a change of shape shows as a diff."""

import json
from pathlib import Path

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401 - inside an Any
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,  # noqa: F401 - inside an Any
)
from envoy.extensions.retry.host.previous_hosts.v3 import (
    previous_hosts_pb2,  # noqa: F401 - inside an Any
)
from envoy.extensions.upstreams.http.v3 import (
    http_protocol_options_pb2,  # noqa: F401 - inside an Any
)
from envoy.service.runtime.v3 import rtds_pb2
from google.protobuf import json_format
from ruamel.yaml import YAML

from tests.e2e.plane import shop
from xds_server.cache.publisher import Publisher
from xds_server.config import load_mesh
from xds_server.model.ids import CDS, EDS, LDS, RDS, RTDS, SHORT, GroupKey, Locality
from xds_server.model.snapshot import Node, Overlay
from xds_server.model.topology import Address, Mesh, WeightsVia
from xds_server.resources.bootstrap import render_bootstrap
from xds_server.resources.mesh import MeshResources

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MESSAGES = {
    CDS: cluster_pb2.Cluster,
    EDS: endpoint_pb2.ClusterLoadAssignment,
    LDS: listener_pb2.Listener,
    RDS: route_pb2.RouteConfiguration,
    RTDS: rtds_pb2.Runtime,
}
GROUP = GroupKey("checkout", "steady", Locality("us-east-1"))


def reference() -> Mesh:
    return load_mesh(ROOT / "tests/mesh_reference.yaml")


def readable(publisher: Publisher) -> str:
    found = {
        SHORT[url]: {
            name: json_format.MessageToDict(
                MESSAGES[url].FromString(r.body), preserving_proto_field_name=True
            )
            for name, r in part.resources.items()
        }
        for url, part in publisher.nodes["n1"].snapshot().types.items()
    }
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def compare(text: str, path: Path, update: bool) -> None:
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs: pytest --update-golden, then read it"


@pytest.mark.parametrize("weighted", [False, True])
def test_the_resources_of_the_reference_mesh(weighted: bool, update_golden: bool) -> None:
    mesh = reference()
    endpoints = {p.name: p.endpoints for p in mesh.providers.values()}
    publisher = Publisher(mesh, MeshResources(mesh, endpoints))
    publisher.uses_runtime(publisher.connect(Node("n1", "checkout")))
    publisher.set_group("n1", GROUP)
    if weighted:
        search = {"search-east": 9000, "search-west": 1000, "search-managed": 0}
        weights = {"search": search, "payments": {"payments-main": 10_000}}
        publisher.publish(Overlay({GROUP: weights}), 0.0)
    name = "weighted" if weighted else "baseline"
    compare(readable(publisher), HERE / f"out/reference-{name}.json", update_golden)


def test_the_resources_of_a_mesh_of_unix_sockets_with_weights_in_its_routes(
    update_golden: bool,
) -> None:
    mesh = shop(18000, 15001, {"a": 9001, "b": 9002}, baseline={"b": 0}, via=WeightsVia.RDS)
    endpoints = {"a": (Address("unix:/run/a.sock"), Address("::1", 9001))}  # case 55: b has none
    publisher = Publisher(mesh, MeshResources(mesh, endpoints))
    here = {"listeners": {"search": "unix:/run/search.sock"}}
    publisher.connect(Node("n1", "shop", metadata=here))
    group = GroupKey("shop", "steady", Locality())
    publisher.set_group("n1", group)
    publisher.publish(Overlay({group: {"search": {"a": 1, "b": 9999}}}), 0.0)
    compare(readable(publisher), HERE / "out/sockets-weighted.json", update_golden)


@pytest.mark.parametrize("api", ["delta", "sotw"])
def test_the_bootstraps_that_people_copy(api: str, update_golden: bool) -> None:
    settings = {"api": api, "locality.region": "us-east-1", "locality.zone": "a"}
    data = render_bootstrap(reference(), "checkout", "checkout-1", settings)
    path = ROOT / f"envoy-configs/sidecar-{api}.yaml"
    made = (
        "# A sidecar of application checkout in tests/mesh_reference.yaml, made by\n"
        "#   xds-server bootstrap -c tests/mesh_reference.yaml --application checkout "
        f"--node checkout-1 \\\n#     --set api={api} --set locality.region=us-east-1 "
        "--set locality.zone=a\n"
        "# and kept current by tests/golden.\n"
    )
    yaml = YAML()
    if update_golden:
        with path.open("w") as out:
            out.write(made)
            yaml.dump(data, out)
    assert path.read_text().startswith(made)
    assert json.loads(json.dumps(yaml.load(path))) == data
