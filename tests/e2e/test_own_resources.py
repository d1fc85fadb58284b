"""People's own Envoy resources, served by selector to real Envoys and followed on disk."""

import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import trustme

from tests.e2e.envoy import Envoy, envoy_binary, eventually, free_port
from tests.e2e.served import Plane, ports, served, xds_server
from tests.e2e.upstream import Traffic, serving

pytestmark = pytest.mark.e2e

MESH = """\
mesh: test
engine: {{tick_s: 0.5}}
telemetry: {{stats_flush_interval_s: 0.5, load_report_interval_s: 10.0}}
services:
  search: {{providers: {{a: {{endpoints: [{{address: 127.0.0.1, port: {a}}}]}}}}}}
templates:
  web: {{calls: {{search: {{listener: "127.0.0.1:{listen}"}}}}, profiles: {{steady: {{}}}}}}
applications: {{shop: {{template: web}}}}
resources:
- {{path: ./n0, nodes: {{id: n0, metadata: {{tier: gold}}}}}}
- {{path: ./n1, nodes: {{id: n1}}}}
- {{path: ./lazy, nodes: {{id: n0}}, on_demand: true}}
server:
  xds: {{address: "127.0.0.1:{xds}"}}
  admin: {{address: "127.0.0.1:{admin}"}}
"""
T = "type.googleapis.com"
ADS = {"resource_api_version": "V3", "ads": {}}
HTTP = f"{T}/envoy.extensions.filters.http"
MUTATION = f"{HTTP}.header_mutation.v3.HeaderMutation"
TLS = f"{T}/envoy.extensions.transport_sockets.tls.v3"


def listener(port: int) -> dict[str, object]:
    """TLS by an SDS secret, routes by RDS, one filter by ECDS; on-demand hosts and clusters."""
    extension = {"config_source": ADS, "type_urls": [MUTATION]}
    tls = {"tls_certificate_sds_secret_configs": [{"name": "own-cert", "sds_config": ADS}]}
    manager = {
        "@type": f"{T}/envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "own",
        "rds": {"config_source": ADS, "route_config_name": "own-routes"},
        "http_filters": [
            {"name": "own-filter", "config_discovery": extension},
            {
                "name": "on-demand",
                "typed_config": {
                    "@type": f"{HTTP}.on_demand.v3.OnDemand",
                    "odcds": {"source": ADS},
                },
            },
            {"name": "router", "typed_config": {"@type": f"{HTTP}.router.v3.Router"}},
        ],
    }
    return {
        "name": "own",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "filters": [{"name": "http", "typed_config": manager}],
                "transport_socket": {
                    "name": "tls",
                    "typed_config": {
                        "@type": f"{TLS}.DownstreamTlsContext",
                        "common_tls_context": tls,
                    },
                },
            }
        ],
    }


def routes(body: str, *, vhds: bool) -> dict[str, object]:
    answer = {"status": 200, "body": {"inline_string": body}}
    return {
        "@type": f"{T}/envoy.config.route.v3.RouteConfiguration",
        "name": "own-routes",
        "virtual_hosts": [
            {
                "name": "local",
                "domains": ["127.0.0.1", "127.0.0.1:*", "localhost", "localhost:*"],
                "routes": [{"match": {"prefix": "/"}, "direct_response": answer}],
            }
        ],
    } | ({"vhds": {"config_source": ADS}} if vhds else {})


def extension(value: str) -> dict[str, object]:
    header = {"append": {"header": {"key": "x-own", "value": value}}}
    return {
        "@type": f"{T}/envoy.config.core.v3.TypedExtensionConfig",
        "name": "own-filter",
        "typed_config": {"@type": MUTATION, "mutations": {"response_mutations": [header]}},
    }


def secret(authority: trustme.CA) -> dict[str, object]:
    made = authority.issue_cert("localhost")
    chain = b"".join(pem.bytes() for pem in made.cert_chain_pems).decode()
    key = made.private_key_pem.bytes().decode()
    return {
        "@type": f"{TLS}.Secret",
        "name": "own-cert",
        "tls_certificate": {
            "certificate_chain": {"inline_string": chain},
            "private_key": {"inline_string": key},
        },
    }


def host(cluster: str) -> dict[str, object]:
    return {
        "@type": f"{T}/envoy.config.route.v3.VirtualHost",
        "name": "own-routes/lazy",
        "domains": ["lazy.example"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}],
    }


def cluster(name: str, port: int) -> dict[str, object]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {
        "@type": f"{T}/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


class Secure(Traffic):
    """Requests over TLS, on a new connection each, as one that checks the certificate."""

    def __init__(self, port: int, authority: trustme.CA) -> None:
        super().__init__(port, gap_s=0.02)
        self._url = f"https://localhost:{port}/"
        self._tls = ssl.create_default_context()
        authority.configure_trust(self._tls)

    def _connect(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self._tls, force_close=True)
        timeout = aiohttp.ClientTimeout(total=5)
        return aiohttp.ClientSession(connector=connector, timeout=timeout)

    async def ask(self, name: str = "") -> tuple[str, str]:
        """One answer, and the header that the filter adds."""
        headers = {"host": name} if name else {}
        async with self._session.get(self._url, headers=headers) as answer:
            return await answer.text(), answer.headers.get("x-own", "")


class OwnPlane(Plane):
    """Serves a mesh with folders of resources."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.authority = trustme.CA()
        for name, port in (("n0", ports["n0"]), ("n1", ports["n1"])):
            (folder / name).mkdir()
            self.put(folder / name / "listener.json", {"static_resources": {
                "listeners": [listener(port)]}})  # fmt: skip
        (folder / "lazy").mkdir()
        self.put(
            folder / "lazy/host.json", [host("lazy-cluster"), cluster("lazy-cluster", ports["a"])]
        )
        super().__init__(folder, ports)
        self.change("v1", "one")

    def write(self, mode: str = "enforce", **changes: int) -> None:
        self.path.write_text(MESH.format(**{**self.ports, **changes}))

    def change(self, body: str, header: str) -> None:
        for name in ("n0", "n1"):
            found = [routes(body, vhds=name == "n0"), extension(header), secret(self.authority)]
            self.put(self.folder / name / "rest.yaml", {"resources": found})

    @staticmethod
    def put(path: Path, value: object) -> None:
        """Replace a file as a whole: JSON is YAML."""
        new = path.with_name(f".{path.name}.new")
        new.write_text(json.dumps(value, indent=1))
        new.replace(path)

    async def error(self) -> str:
        return str((await self.get("/v1/status"))["config_error"])


class World:
    def __init__(self, plane: OwnPlane, envoys: dict[str, Envoy]) -> None:
        self.plane, self.envoys = plane, envoys


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serving("a") as up:
        plane = OwnPlane(tmp_path, ports(up, "n0", "n1"))
        made = (
            ("n0", free_port(), "delta", "metadata.tier=gold"),
            ("n1", free_port(), "sotw", "metadata.tier=gold"),
            ("n2", free_port(), "delta"),
        )
        async with served(plane, *made) as envoys:
            yield World(plane, {envoy.node_id: envoy for envoy in envoys})


async def test_own_resources_reach_who_is_selected_and_follow_their_files(world: World) -> None:
    plane = world.plane
    names = {n: json.loads(await e.get("/listeners?format=json")) for n, e in world.envoys.items()}
    assert {n: "own" in str(found) for n, found in names.items()} == {
        "n0": True, "n1": True, "n2": False,
    }  # fmt: skip
    delta = Secure(plane.ports["n0"], plane.authority)
    sotw = Secure(plane.ports["n1"], plane.authority)
    async with delta, sotw:
        both = (delta, sotw)

        async def all_say(body: str, header: str) -> bool:
            return [await t.ask() for t in both] == [(body, header)] * 2

        await eventually("both serve", lambda: all_say("v1", "one"))
        plane.change("v2", "two")  # routes, filter and certificate
        await eventually("both follow", lambda: all_say("v2", "two"))

        good = (plane.folder / "n1/rest.yaml").read_text()
        (plane.folder / "n1/rest.yaml").write_text(good.replace("virtual_hosts", "virtual_host"))
        reason = await eventually("the bad change is refused", plane.error)
        assert f"{plane.folder}/n1/rest.yaml:" in reason
        assert "`virtual_hosts`" in reason
        assert await all_say("v2", "two")
        plane.change("v3", "three")
        await eventually("a good change ends it", lambda: all_say("v3", "three"))
        assert await plane.error() == ""
        assert delta.failures == []
        assert sotw.failures == []
    for name in ("n0", "n1"):
        found = await world.envoys[name].stats("update_rejected")
        assert {k: v for k, v in found.items() if v} == {}


async def test_kubernetes_swaps_all_files_of_a_folder_at_once(world: World) -> None:
    """A mounted ConfigMap: files are links through ..data, which is what is replaced."""
    plane = world.plane
    folder = plane.folder / "n0"
    for version, names in (("..1", ("listener.json", "rest.yaml")), ("..2", ())):
        (folder / version).mkdir()
        for name in names or ("listener.json", "rest.yaml"):
            (folder / version / name).write_text((folder / name).read_text())
    (folder / "..data").symlink_to("..1")
    for name in ("listener.json", "rest.yaml"):
        (folder / f".{name}").symlink_to(f"..data/{name}")
        (folder / f".{name}").replace(folder / name)
    second = folder / "..2/rest.yaml"
    second.write_text(second.read_text().replace('"v1"', '"swapped"'))
    async with Secure(plane.ports["n0"], plane.authority) as traffic:
        await eventually("it serves", lambda: traffic.answers["v1"] > 3)
        (folder / "..data_tmp").symlink_to("..2")
        (folder / "..data_tmp").replace(folder / "..data")
        await eventually("it follows", lambda: traffic.answers["swapped"] > 0)
        assert traffic.failures == []


async def test_case_58_hosts_and_clusters_come_when_they_are_asked_for(world: World) -> None:
    """VHDS by a domain, which is an alias; and a cluster that is in no wildcard answer."""
    envoy = world.envoys["n0"]
    before = await envoy.get("/clusters?format=json")
    assert "lazy-cluster" not in before
    async with Secure(world.plane.ports["n0"], world.plane.authority) as traffic:
        assert (await traffic.ask("lazy.example"))[0] == "a"
        assert "lazy-cluster" in await envoy.get("/clusters?format=json")
        assert (await traffic.ask("other.example"))[0] == ""


async def test_validate_lets_envoy_look_at_what_only_envoy_knows(world: World) -> None:
    plane = world.plane

    async def validate() -> subprocess.CompletedProcess[str]:
        return await xds_server("validate", plane.path, "--envoy-binary", envoy_binary())

    good = await validate()
    assert (good.returncode, good.stderr) == (0, "")
    bad = host("lazy-cluster")
    bad["routes"] = [{"match": {"safe_regex": {"regex": "("}}, "route": {"cluster": "a"}}]
    plane.put(plane.folder / "lazy/host.json", bad)
    refused = await validate()
    assert refused.returncode == 2
    assert "application shop" in refused.stderr
    assert "missing ): (" in refused.stderr
