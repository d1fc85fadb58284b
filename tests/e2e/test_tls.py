"""Mutual TLS between sidecars and the control plane."""

from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.plane import Recorder, WallClock, resources, shop
from xds_server.cache.publisher import Publisher
from xds_server.errors import ConfigError
from xds_server.model.topology import Mesh, ServerSettings, TlsSettings
from xds_server.resources.bootstrap import render_bootstrap
from xds_server.wire.ads import DiscoveryServices
from xds_server.wire.server import serving

pytestmark = pytest.mark.e2e


def secured(folder: Path, authority: trustme.CA) -> tuple[Mesh, dict[str, str]]:
    """A mesh whose ADS wants client certificates, and a sidecar's settings for it."""
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("plane.local", "sidecar.local"):
        issued = authority.issue_cert(name)
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    ca = str(folder / "ca.pem")
    tls = TlsSettings(str(folder / "plane.local.pem"), str(folder / "plane.local.key"), ca)
    mesh = shop(free_port(), free_port(), {"a": free_port()})
    mesh = replace(mesh, server=ServerSettings(xds=mesh.server.xds, xds_tls=tls))
    return mesh, {
        "admin.address": f"127.0.0.1:{free_port()}",
        "tls.ca": ca,
        "tls.san": "plane.local",
        "tls.cert": str(folder / "sidecar.local.pem"),
        "tls.key": str(folder / "sidecar.local.key"),
    }


async def test_a_sidecar_with_a_certificate_is_served(tmp_path: Path) -> None:
    mesh, settings = secured(tmp_path, trustme.CA())
    publisher = Publisher(mesh, resources(mesh))
    ads = DiscoveryServices(publisher, Recorder(), WallClock())
    async with serving(mesh.server, [ads.handler()]):
        envoy = Envoy(render_bootstrap(mesh, "shop", "n1", settings), tmp_path)
        try:
            await (await envoy.start()).ready()
            assert set(publisher.nodes) == {"n1"}
        finally:
            await envoy.stop()


@pytest.mark.parametrize("lacks", ["its authority", "any certificate", "the plane's name"])
async def test_who_cannot_prove_what_is_asked_gets_no_stream(tmp_path: Path, lacks: str) -> None:
    mesh, settings = secured(tmp_path, trustme.CA())
    if lacks == "its authority":
        (tmp_path / "other").mkdir()
        _, stranger = secured(tmp_path / "other", trustme.CA())
        settings |= {k: stranger[k] for k in ("tls.cert", "tls.key")}
    elif lacks == "any certificate":
        settings = {k: v for k, v in settings.items() if k not in ("tls.cert", "tls.key")}
    else:
        settings["tls.san"] = "elsewhere.local"
    publisher, seen = Publisher(mesh, resources(mesh)), Recorder()
    ads = DiscoveryServices(publisher, seen, WallClock())
    async with serving(mesh.server, [ads.handler()]):
        envoy = Envoy(render_bootstrap(mesh, "shop", "n1", settings), tmp_path)
        try:
            await envoy.start()

            async def refused() -> bool:
                # One connection may be tried again and again; three failures are no accident.
                found = await envoy.get("/clusters")
                fails = [line for line in found.splitlines() if "cx_connect_fail" in line]
                return any(int(line.rsplit("::", 1)[1]) >= 3 for line in fails) or (
                    envoy.log.read_text().count("gRPC config stream") >= 3
                )

            await eventually("it is refused", refused, within_s=15.0)
            assert publisher.nodes == {}
        finally:
            await envoy.stop()


async def test_a_missing_certificate_file_is_named(tmp_path: Path) -> None:
    mesh, _ = secured(tmp_path, trustme.CA())
    (tmp_path / "plane.local.key").unlink()
    with pytest.raises(ConfigError, match=r"server\.xds\.tls\.key: cannot be read"):
        async with serving(mesh.server, []):
            pass
