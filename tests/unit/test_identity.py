"""Who a client is by its certificate; over real TLS where that matters."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from tests.e2e.envoy import eventually, free_port
from tests.e2e.fixed import Fixed
from tests.e2e.plane import Recorder, WallClock
from xds_server.app.clock import SystemClock
from xds_server.errors import ConfigError
from xds_server.model.ids import CDS
from xds_server.model.snapshot import Resource, Snapshot
from xds_server.model.topology import Address, ServerSettings, TlsSettings
from xds_server.model.versions import type_snapshot
from xds_server.wire.ads import AGGREGATED, DiscoveryServices
from xds_server.wire.credentials import credentials
from xds_server.wire.identity import read_identity
from xds_server.wire.server import serving

METHOD = f"/{AGGREGATED}/DeltaAggregatedResources"
START = datetime(2026, 11, 1, tzinfo=UTC)


def pem(common_name: str = "", *, dns: str = "", uri: str = "") -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    name = x509.Name(attributes)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(START + timedelta(days=1))
    )
    names: list[x509.GeneralName] = [x509.DNSName(dns)] if dns else []
    names += [x509.UniformResourceIdentifier(uri)] if uri else []
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("certificate", "names"),
    [
        (pem("checkout-1"), {"checkout-1"}),
        (pem(dns="checkout-1.shop"), {"checkout-1.shop"}),
        (pem(uri="spiffe://shop.example/ns/shop/sa/checkout-1"), {"checkout-1"}),
        (pem("c", dns="d", uri="spiffe://shop.example/e"), {"c", "d", "e"}),
        (pem(uri="https://shop.example/checkout-1"), set()),
        (pem(uri="spiffe://shop.example"), set()),
        (pem(uri="spiffe://shop.example/checkout-1/"), set()),
        (pem(), set()),
    ],
)
def test_a_certificate_s_names(certificate: bytes, names: set[str]) -> None:
    identity = read_identity({"x509_pem_cert": [certificate]})
    assert identity is not None
    assert identity.names == names
    assert identity.expires_at_s == (START + timedelta(days=1)).timestamp()
    assert not identity.may_be("")
    assert all(identity.may_be(name) for name in names)


def test_without_a_certificate_there_is_no_identity_and_a_strange_one_has_no_name() -> None:
    assert read_identity({}) is None
    assert read_identity({"transport_security_type": [b"ssl"]}) is None
    strange = read_identity({"x509_pem_cert": [b"-----BEGIN CERTIFICATE-----\nAAAA\n"]})
    assert strange is not None
    assert (strange.names, strange.expires_at_s) == (frozenset(), math.inf)


class Calendar(WallClock):
    """Real time, that can be moved."""

    later_s = 0.0

    def wall_s(self) -> float:
        return SystemClock().wall_s() + self.later_s


@dataclass
class World:
    services: DiscoveryServices
    seen: Recorder
    clock: Calendar
    folder: Path
    port: int
    clients: trustme.CA

    def channel(self, name: str, ca: bytes, **validity: Any) -> Any:
        cert = self.clients.issue_cert(name, **validity)
        credentials = grpc.ssl_channel_credentials(
            ca, cert.private_key_pem.bytes(), b"".join(c.bytes() for c in cert.cert_chain_pems)
        )
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.ssl_target_name_override", "plane.local"),
        ]
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options)

    async def open(self, channel: Any, node_id: str) -> Any:
        call = channel.stream_stream(METHOD)()
        node = base_pb2.Node(id=node_id, cluster="shop")
        first = discovery_pb2.DeltaDiscoveryRequest(node=node, type_url=CDS)
        await call.write(first.SerializeToString())
        return call


def write_server(folder: Path, authority: trustme.CA, parts: str = "cert key") -> None:
    issued = authority.issue_cert("plane.local")
    if "cert" in parts:
        issued.cert_chain_pems[0].write_to_path(folder / "server.pem")
    if "key" in parts:
        issued.private_key_pem.write_to_path(folder / "server.key")


@asynccontextmanager
async def secured(
    folder: Path, authority: trustme.CA, *, bind_node_id: bool = False
) -> AsyncIterator[World]:
    clients = trustme.CA()
    clients.cert_pem.write_to_path(folder / "clients.pem")
    write_server(folder, authority)
    files = (str(folder / name) for name in ("server.pem", "server.key", "clients.pem"))
    settings = ServerSettings(
        xds=Address("127.0.0.1", free_port()), xds_tls=TlsSettings(*files, bind_node_id)
    )
    resource = Resource(CDS, "a", "1", b"a")
    source, seen, clock = Fixed(Snapshot({CDS: type_snapshot([resource])})), Recorder(), Calendar()
    services = DiscoveryServices(source, seen, clock, bind_node_id=bind_node_id)
    async with serving(settings, [services.handler()]):
        yield World(services, seen, clock, folder, settings.xds.port, clients)


async def test_case_82_a_stream_whose_certificate_has_expired_is_ended(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca = authority.cert_pem.bytes()
    tomorrow = datetime.fromtimestamp(Calendar().wall_s(), UTC) + timedelta(days=1)
    async with secured(tmp_path, authority) as world:
        async with (
            world.channel("short", ca, not_after=tomorrow) as short,
            world.channel("long", ca, not_after=tomorrow + timedelta(days=9)) as long,
        ):
            calls = [await world.open(short, "short"), await world.open(long, "long")]
            for call in calls:
                assert await call.read()
            world.services.recheck()
            world.clock.later_s = 2 * 86400.0
            with structlog.testing.capture_logs() as logs:
                world.services.recheck()
            assert [e["node_id"] for e in logs if e["event"] == "xds.certificate_expired"] == [
                "short"
            ]
            assert await calls[0].code() is grpc.StatusCode.UNAUTHENTICATED
            assert world.seen.reasons == ["expired"]
            assert [s.node.node_id for s in world.services.streams if s.node] == ["long"]
            world.services.recheck()
        await eventually("nothing is left", lambda: not world.services._identities)


async def test_case_82_a_node_needs_a_certificate_that_names_it(tmp_path: Path) -> None:
    authority = trustme.CA()
    async with (
        secured(tmp_path, authority, bind_node_id=True) as world,
        world.channel("checkout-1", authority.cert_pem.bytes()) as channel,
    ):
        own = await world.open(channel, "checkout-1")
        assert await own.read()
        with structlog.testing.capture_logs() as logs:
            other = await world.open(channel, "checkout-2")
            assert await other.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "checkout-2" in await other.details()
        (line,) = [e for e in logs if e["event"] == "xds.node_not_bound"]
        assert (line["node_id"], line["certificate_names"]) == ("checkout-2", ["checkout-1"])
        assert world.seen.refusals == {"node_id": 1}
        assert world.seen.open == 1


async def test_certificates_that_change_on_disk_are_shown_without_a_restart(
    tmp_path: Path,
) -> None:
    before, after = trustme.CA(), trustme.CA()
    async with secured(tmp_path, before) as world:

        async def served(ca: trustme.CA) -> bool:
            async with world.channel("n", ca.cert_pem.bytes()) as channel:
                try:
                    async with asyncio.timeout(2.0):
                        call = await world.open(channel, "n")
                        return bool(await call.read())
                except (grpc.aio.AioRpcError, TimeoutError):
                    return False

        async with world.channel("n", before.cert_pem.bytes()) as channel:
            lasting = await world.open(channel, "lasting")
            assert await lasting.read()
            write_server(tmp_path, after, "cert")  # its key is not there yet
            assert await served(before)
            (tmp_path / "server.key").unlink()
            assert await served(before)
            start_s = time.monotonic()
            write_server(tmp_path, after)
            assert await served(after)
            assert time.monotonic() - start_s < 3.0
            assert not await served(before)
            assert lasting.done() is False  # who is there stays


@pytest.mark.parametrize("broken", ["key", "cert"])
async def test_files_that_do_not_fit_together_are_named(tmp_path: Path, broken: str) -> None:
    write_server(tmp_path, trustme.CA())
    (tmp_path / f"server.{'pem' if broken == 'cert' else 'key'}").write_text("nothing\n")
    tls = TlsSettings(str(tmp_path / "server.pem"), str(tmp_path / "server.key"))
    with pytest.raises(ConfigError, match=r"server\.xds\.tls\.cert: is no certificate with the"):
        credentials(tls)
