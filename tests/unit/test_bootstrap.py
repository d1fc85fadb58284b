import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.e2e.envoy import envoy_binary
from tests.e2e.plane import shop
from xds_server.model.telemetry import LATENCY_BUCKETS_MS
from xds_server.model.template import Call
from xds_server.model.topology import ServerSettings, TlsSettings
from xds_server.resources.bootstrap import SETTINGS, render_bootstrap

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
        ({"tls.san": "xds.example"}, "server.xds has no tls"),
        ({"template": "web", "listeners.mail": "127.0.0.1:1"}, "does not call 'mail'"),
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


async def accepted(bootstrap: dict[str, Any], folder: Path) -> None:
    """Envoy itself finds nothing wrong with it."""
    path = folder / "boot.json"
    path.write_text(json.dumps(bootstrap))
    checked = await asyncio.create_subprocess_exec(
        envoy_binary(),
        *("--mode", "validate", "-c", path, "-l", "warn"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await checked.communicate()
    assert checked.returncode == 0, said.decode()
    assert b"[warning]" not in said


@pytest.mark.parametrize("api", ["delta", "sotw"])
@pytest.mark.parametrize("xds", ["127.0.0.1:18000", "unix:/tmp/xds.sock", "xds.example:18000"])
async def test_envoy_accepts_it(api: str, xds: str, tmp_path: Path) -> None:
    await accepted(render(api=api, xds__address=xds), tmp_path)


def test_every_documented_setting_is_taken() -> None:
    values = {
        "admin.address": "127.0.0.1:9999",
        "xds.address": "[::1]:18000",
        "api": "sotw",
        "template": "web",
        "max_connections": "7",
        "listeners.SERVICE": "unix:/run/search.sock",
    }
    chosen = {
        key.replace("SERVICE", "search").replace("KEY", "team"): values.get(key, "x")
        for key in SETTINGS
    }
    text = json.dumps(render_bootstrap(SECURE, "shop", "n1", chosen))
    for key, value in chosen.items():
        if key != "api":
            host = value.rpartition(":")[0].strip("[]") if key.endswith("address") else value
            assert json.dumps(host).strip('"') in text, key
    assert '"api_type": "GRPC"' in text


def test_a_node_without_an_id_is_refused() -> None:
    with pytest.raises(ValueError, match="--node N"):
        render_bootstrap(MESH, "shop", "")


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tls\.cert and tls\.key go together"):
        render(SECURE, tls__ca="ca.pem", tls__cert="c.pem")


def test_a_name_to_check_is_checked() -> None:
    def context(**settings: str) -> dict[str, Any]:
        cluster = render(SECURE, tls__ca="ca.pem", **settings)["static_resources"]["clusters"][0]
        return cluster["transport_socket"]["typed_config"]  # type: ignore[no-any-return]

    named = context(tls__san="xds.example")["common_tls_context"]["validation_context"]
    (san,) = named["match_typed_subject_alt_names"]
    assert san == {"san_type": "DNS", "matcher": {"exact": "xds.example"}}
    assert "sni" not in context()
    assert "tls_certificates" not in context()["common_tls_context"]


def test_a_settings_key_with_a_placeholder_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown setting"):
        render(listeners__SERVICE="127.0.0.1:1")


def test_another_template_may_call_other_services() -> None:
    other = replace(MESH.templates["web"], name="mailer", calls=(Call("mail", "127.0.0.1:1"),))
    mesh = replace(MESH, templates={**MESH.templates, "mailer": other})
    node = render(mesh, template="mailer", listeners__mail="127.0.0.1:15002")["node"]
    assert node["metadata"] == {"listeners": {"mail": "127.0.0.1:15002"}, "template": "mailer"}


def test_the_control_plane_is_where_the_server_listens_unless_said_otherwise() -> None:
    def where(**settings: str) -> Any:
        (cluster,) = render(**settings)["static_resources"]["clusters"]
        (locality,) = cluster["load_assignment"]["endpoints"]
        return cluster["type"], locality["lb_endpoints"][0]["endpoint"]["address"]

    assert where() == (
        "STATIC",
        {"socket_address": {"address": "127.0.0.1", "port_value": 18000}},
    )
    assert where(xds__address="unix:/run/xds.sock") == (
        "STATIC",
        {"pipe": {"path": "/run/xds.sock"}},
    )
    assert where(xds__address="xds.example:18000")[0] == "STRICT_DNS"
    assert where(xds__address="[::1]:18000")[0] == "STATIC"


def test_histograms_have_the_buckets_that_telemetry_reads() -> None:
    (match,) = render()["stats_config"]["histogram_bucket_settings"]
    assert match["buckets"] == list(LATENCY_BUCKETS_MS)


async def test_envoy_accepts_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("n1.example")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    files = {f"tls__{name}": str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")}
    await accepted(render(SECURE, tls__san="xds.example", **files), tmp_path)
