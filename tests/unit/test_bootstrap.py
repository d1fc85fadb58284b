import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.envoy import envoy_binary
from tests.e2e.plane import shop
from xds_server.model.topology import Address, ServerSettings, TlsSettings
from xds_server.resources.bootstrap import render_bootstrap

MESH = shop(18000, 15001, {"a": 9001})
SECURE = replace(MESH, server=ServerSettings(xds_tls=TlsSettings("c", "k", "ca")))


def render(mesh=MESH, **settings: str):  # type: ignore[no-untyped-def]
    return render_bootstrap(
        mesh, "shop", "n1", {k.replace("__", "."): v for k, v in settings.items()}
    )


def test_the_node_says_who_it_is_and_where_it_listens() -> None:
    node = render(
        locality__region="r1", listeners__search="127.0.0.1:15099", metadata__team="blue"
    )["node"]
    assert node == {
        "id": "n1",
        "cluster": "shop",
        "locality": {"region": "r1"},
        "metadata": {"team": "blue", "listeners": {"search": "127.0.0.1:15099"}},
    }


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"locality.zones": "x"}, "did you mean: locality.zone"),
        ({"listeners.mail": "127.0.0.1:1"}, "does not call 'mail'; it calls: search"),
        ({"listeners.search": "15001"}, "write host:port"),
        ({"api": "rest"}, "write delta or sotw"),
        ({"template": "wob"}, "configured are: web"),
        ({"max_connections": "many"}, "write a whole number"),
        ({"tls.ca": "ca.pem"}, "server.xds has no tls"),
        ({"admin.address": "nowhere"}, "write host:port"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_would_be_right(
    settings: dict[str, str], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        render_bootstrap(MESH, "shop", "n1", settings)


def test_an_unknown_application_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="configured are: shop"):
        render_bootstrap(MESH, "shoop", "n1")


def test_tls_needs_the_authority() -> None:
    with pytest.raises(ValueError, match=r"tls\.ca"):
        render(SECURE)
    cluster = render(SECURE, tls__ca="ca.pem", tls__cert="c.pem", tls__key="k.pem", tls__san="x")
    socket = cluster["static_resources"]["clusters"][0]["transport_socket"]["typed_config"]
    assert socket["sni"] == "x"


@pytest.mark.parametrize("api", ["delta", "sotw"])
@pytest.mark.parametrize("xds", ["127.0.0.1:18000", "unix:/tmp/xds.sock", "xds.example:18000"])
async def test_envoy_accepts_it(api: str, xds: str, tmp_path: Path) -> None:
    mesh = replace(MESH, server=ServerSettings(xds=Address("127.0.0.1", 18000)))
    path = tmp_path / "boot.json"
    path.write_text(json.dumps(render(mesh, api=api, xds__address=xds)))
    checked = await asyncio.create_subprocess_exec(
        envoy_binary(),
        *("--mode", "validate", "-c", path, "-l", "warn"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await checked.communicate()
    assert checked.returncode == 0, said.decode()
    assert b"[warning]" not in said
