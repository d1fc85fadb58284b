"""Samples count only for the node that the stream's own Envoy announced."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
import trustme
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.load_stats.v3 import lrs_pb2

from tests.e2e.envoy import eventually, free_port
from tests.e2e.fixed import Fixed
from tests.e2e.plane import Recorder, WallClock
from tests.e2e.telemetry import Sums, Tally
from tests.unit.telemetry_messages import Message
from xds_server.model.ids import CDS
from xds_server.model.snapshot import Node, Resource, Snapshot
from xds_server.model.topology import Address, ServerSettings, TlsSettings
from xds_server.model.versions import type_snapshot
from xds_server.registry.registry import Registry
from xds_server.wire.ads import AGGREGATED, DiscoveryServices
from xds_server.wire.identity import Identity
from xds_server.wire.load_stats import LoadReportingService
from xds_server.wire.metrics_service import MetricsService
from xds_server.wire.server import serving
from xds_server.wire.speaker import (
    GRACE_S,
    KEPT_S,
    PLACES_KEPT,
    Place,
    Speaker,
    SpeakerRefusedError,
    Speakers,
)

METRICS = "/envoy.service.metrics.v3.MetricsService/StreamMetrics"
LOAD = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
A, B = "ipv4:10.0.0.1:1001", "ipv4:10.0.0.2:1002"


@dataclass
class Stopped:
    """A clock that tests move."""

    at_s: float = 100.0

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return self.at_s

    async def sleep_s(self, duration_s: float) -> None:
        self.at_s += duration_s


@dataclass
class Call:
    """The context of a call, as far as it is read."""

    address: str

    def peer(self) -> str:
        return self.address

    def auth_context(self) -> dict[str, Any]:
        return {}


@dataclass
class World:
    """Open ADS streams, by number."""

    clock: Stopped = field(default_factory=Stopped)

    def __post_init__(self) -> None:
        self.speakers = Speakers(self.clock)

    def ads(self, stream_id: int, node_id: str, peer: str, *names: str) -> None:
        identity = Identity(frozenset(names), 1e12) if names else None
        self.speakers.opened(stream_id, node_id, peer, identity)

    def speaker(self, node_id: str, peer: str, *names: str) -> Speaker:
        place = replace(Place.of(peer, None), names=frozenset(names))
        return Speaker(self.speakers, self.clock, place, node_id, GRACE_S)

    def refused(self, speaker: Speaker) -> str:
        """Let the grace pass, and return why."""
        assert not speaker.may()
        self.clock.at_s += GRACE_S
        with pytest.raises(SpeakerRefusedError) as error:
            speaker.may()
        return str(error.value)


def test_an_envoy_speaks_for_itself_over_any_of_its_connections() -> None:
    world = World()
    world.ads(1, "a", A)
    assert world.speaker("a", A).may()
    assert world.speaker("a", "ipv4:10.0.0.1:7777").may()
    assert world.speakers.of(Call("ipv4:10.0.0.1:7777"), "a").may()
    assert world.speaker("a", "ipv6:[::ffff:10.0.0.1]:7777").may()


def test_who_announced_another_node_on_the_connection_is_refused_at_once() -> None:
    world = World()
    world.ads(1, "a", A)
    world.ads(2, "b", "ipv4:10.0.0.1:1002")
    with pytest.raises(SpeakerRefusedError, match=r"for 'b': .* announced node 'a'"):
        world.speaker("b", A).may()


def test_an_unknown_node_waits_and_counts_once_its_ads_stream_is_there() -> None:
    world = World()
    speaker = world.speaker("a", A)
    for _ in range(3):
        assert not speaker.may()
        world.clock.at_s += GRACE_S
    world.ads(1, "a", A)
    assert speaker.may()


def test_another_address_is_refused_when_it_stays_one() -> None:
    world = World()
    world.ads(1, "a", A)
    world.ads(2, "b", B)
    why = world.refused(world.speaker("b", "ipv4:10.0.0.1:7777"))
    assert "'b'" in why
    assert "10.0.0.1, where the ADS stream of node 'a' is from" in why
    assert "10.0.0.2" in why
    assert "10.0.0.9" in world.refused(world.speaker("b", "ipv4:10.0.0.9:7777"))


def test_a_stream_is_not_refused_while_the_nodes_ads_stream_moves() -> None:
    world = World()
    world.ads(1, "a", A)
    speaker = world.speaker("a", B)
    assert not speaker.may()
    world.clock.at_s += 0.9 * GRACE_S
    assert not speaker.may()
    world.ads(2, "a", B)
    world.speakers.closed(1)
    assert speaker.may()
    old = world.speaker("a", "ipv4:10.0.0.1:7777")
    world.clock.at_s += 2 * KEPT_S
    assert old.may()  # where it was, it may still have streams


def test_a_node_that_left_is_forgotten() -> None:
    world = World()
    world.ads(1, "a", A)
    speaker = world.speaker("a", A)
    world.speakers.closed(1)
    world.speakers.closed(1)
    assert speaker.may()
    world.clock.at_s += KEPT_S
    assert not speaker.may()
    world.ads(2, "b", A)
    with pytest.raises(SpeakerRefusedError):
        speaker.may()


def test_a_proxy_that_carries_several_nodes_is_none_of_them() -> None:
    world = World()
    world.ads(1, "a", A)
    world.ads(2, "b", A)
    world.ads(3, "c", "ipv4:10.0.0.1:1003")
    assert all(world.speaker(node_id, A).may() for node_id in "abc")


def test_with_certificates_identities_are_compared_and_addresses_are_not() -> None:
    world = World()
    world.ads(1, "a", A, "a.shop")
    world.ads(2, "b", B, "b.shop")
    assert world.speaker("a", "ipv4:10.0.0.9:1", "a.shop").may()
    assert world.speaker("a", "ipv4:10.0.0.9:1", "a", "other").may()  # it names the node
    why = world.refused(world.speaker("b", "ipv4:10.0.0.2:7", "a.shop"))
    assert "certificate of a.shop" in why
    assert "certificate of b.shop" in why
    assert "node 'a'" in why


def test_clients_of_a_unix_socket_cannot_be_told_apart() -> None:
    world = World()
    world.ads(1, "a", "unix:")
    world.ads(2, "b", "unix:")
    assert world.speaker("a", "unix:").may()
    assert world.speaker("b", "unix:").may()


def test_what_is_kept_of_a_node_is_bounded() -> None:
    world = World()
    for i in range(3 * PLACES_KEPT):
        world.ads(i, "a", f"ipv4:10.0.1.{i}:1")
        world.speakers.closed(i)
    known = world.speakers._nodes["a"]
    assert len(known.places) == PLACES_KEPT
    world.clock.at_s += KEPT_S
    world.speakers.expire(world.clock.at_s)
    assert (world.speakers._nodes, world.speakers._streams, world.speakers._on) == ({}, {}, {})


# -- over real connections ---------------------------------------------------------------


@dataclass
class Served:
    """A control plane with the registry and what was refused, over real channels."""

    sums: Sums
    tally: Tally
    services: DiscoveryServices
    channel: Callable[..., Any]

    async def announce(self, channel: Any, node_id: str) -> Any:
        call = channel.stream_stream(f"/{AGGREGATED}/DeltaAggregatedResources")()
        node = base_pb2.Node(id=node_id, cluster="shop")
        first = discovery_pb2.DeltaDiscoveryRequest(node=node, type_url=CDS)
        await call.write(first.SerializeToString())
        assert await call.read()
        return call

    def counted(self, provider: str = "p") -> int:
        return self.sums.of(provider, "requests")


@asynccontextmanager
async def served(folder: Path | None = None) -> AsyncIterator[Served]:
    """Serve nodes ``a`` and ``b``; with a folder, over mutual TLS."""
    tls, ca, clients = None, trustme.CA(), trustme.CA()
    if folder is not None:
        issued = ca.issue_cert("plane.local")
        issued.cert_chain_pems[0].write_to_path(folder / "server.pem")
        issued.private_key_pem.write_to_path(folder / "server.key")
        clients.cert_pem.write_to_path(folder / "clients.pem")
        tls = TlsSettings(*(str(folder / n) for n in ("server.pem", "server.key", "clients.pem")))
    settings = ServerSettings(xds=Address("127.0.0.1", free_port()), xds_tls=tls)

    def channel(name: str = "") -> Any:
        options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
        target = f"127.0.0.1:{settings.xds.port}"
        if not name:
            return grpc.aio.insecure_channel(target, options)
        cert = clients.issue_cert(name)
        chain = b"".join(c.bytes() for c in cert.cert_chain_pems)
        secret = grpc.ssl_channel_credentials(
            ca.cert_pem.bytes(), cert.private_key_pem.bytes(), chain
        )
        options.append(("grpc.ssl_target_name_override", "plane.local"))
        return grpc.aio.secure_channel(target, secret, options)

    clock = WallClock()
    registry = Registry({"p": "s"}, slot_s=1.0, load_valid_s=30.0)
    for node_id in "ab":
        registry.node_connected(Node(node_id, "shop"), clock.now_s())
    sums, tally = Sums(registry), Tally()
    source = Fixed(Snapshot({CDS: type_snapshot([Resource(CDS, "x", "1", b"x")])}))
    services = DiscoveryServices(source, Recorder(), clock)
    handlers = [
        services.handler(),
        MetricsService(sums, tally, clock, services.speakers).handler(),
        LoadReportingService(sums, tally, clock, services.speakers, lambda: 1.0).handler(),
    ]
    async with serving(settings, handlers):
        yield Served(sums, tally, services, channel)


def total(node_id: str, count: int) -> bytes:
    return Message(node_id).counts("p", total=count).body


def load_of(node_id: str) -> bytes:
    request = lrs_pb2.LoadStatsRequest()
    request.node.id = node_id
    locality = request.cluster_stats.add(cluster_name="p").upstream_locality_stats.add()
    locality.cpu_utilization.num_requests_finished_with_metric = 1
    locality.cpu_utilization.total_metric_value = 0.9
    return request.SerializeToString()


async def refused(call: Any) -> str:
    assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
    return str(await call.details())


@pytest.mark.parametrize("secure", [False, True])
async def test_a_node_that_speaks_for_another_is_refused_and_named_and_nobody_else(
    secure: bool, tmp_path: Path
) -> None:
    async with served(tmp_path if secure else None) as plane:
        names = ("a", "b") if secure else ("", "")
        async with plane.channel(names[0]) as of_a, plane.channel(names[1]) as of_b:
            ads = [await plane.announce(of_a, "a"), await plane.announce(of_b, "b")]
            own = [of_a.stream_unary(METRICS)(), of_b.stream_unary(METRICS)()]
            for call, node_id in zip(own, "ab", strict=True):
                await call.write(total(node_id, 1000))
                await call.write(total(node_id, 1010))
            await eventually("both count", lambda: plane.counted() == 20)
            with structlog.testing.capture_logs() as logs:
                lie = of_a.stream_unary(METRICS)()
                await lie.write(total("b", 5))
                said = await refused(lie)
                other = of_a.stream_stream(LOAD)()
                await other.write(load_of("b"))
                assert "'a'" in await refused(other)
            assert "'b'" in said
            assert "'a'" in said
            lines = [e for e in logs if e["event"] == "telemetry.wrong_node"]
            assert [e["source"] for e in lines] == ["metrics_service", "load_stats"]
            assert plane.tally.refused == {
                "metrics_service wrong node": 1, "load_stats wrong node": 1,
            }  # fmt: skip
            for call, node_id in zip(own, "ab", strict=True):
                await call.write(total(node_id, 1020))
            await eventually("both go on", lambda: plane.counted() == 40)
            assert plane.tally.events == {}  # no counter of b's fell
            assert not any(call.done() for call in (*own, *ads))


async def test_with_certificates_a_connection_without_ads_may_not_lie_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Speakers.of, "__kwdefaults__", {"grace_s": 0.0})
    async with (
        served(tmp_path) as plane,
        plane.channel("b") as of_b,
        plane.channel("b") as more_of_b,
        plane.channel("a") as of_a,
    ):
        await plane.announce(of_b, "b")
        fine = more_of_b.stream_unary(METRICS)()
        await fine.write(total("b", 1))
        await fine.write(total("b", 3))
        await eventually("another connection of b counts", lambda: plane.counted() == 2)
        lie = of_a.stream_unary(METRICS)()
        await lie.write(total("b", 100))
        said = await refused(lie)
        assert "certificate of a" in said
        assert "certificate of b" in said
        assert plane.counted() == 2


async def test_samples_that_come_before_the_ads_stream_wait_and_no_count_is_lost() -> None:
    async with served() as plane, plane.channel() as channel:
        ads = await plane.announce(channel, "a")
        call = channel.stream_unary(METRICS)()
        await call.write(total("a", 100))
        await call.write(total("a", 110))
        await eventually("it counts", lambda: plane.counted() == 10)
        ads.cancel()
        await eventually("it is gone", lambda: not plane.services.streams)

        async def waits() -> bool:
            await call.write(total("a", 150))
            return plane.tally.refused["metrics_service no ADS stream"] > 0

        await eventually("it waits", waits)
        counted = plane.counted()
        await call.write(total("a", 170))
        await plane.announce(channel, "a")
        await call.write(total("a", 175))
        await eventually("all is there", lambda: plane.counted() == 75)
        assert counted in (10, 50)
        assert plane.tally.events == {}
