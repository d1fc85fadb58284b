"""The registry's API over a real gRPC server on loopback."""

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e.envoy import eventually
from tests.e2e.plane import WallClock
from xds_server.errors import RemoteProtocolError
from xds_server.generated import xds_server_registry_pb2 as pb
from xds_server.model.ids import Locality
from xds_server.model.topology import (
    Address,
    DiscoverySource,
    EngineSettings,
    Mesh,
    Mode,
    Provider,
    ServerSettings,
    Service,
    TelemetrySettings,
)
from xds_server.registry.announcements import Announcements
from xds_server.registry.leases import Announcement, LeaseRefusedError, Leases
from xds_server.registry.services import Directory
from xds_server.wire import registry_service
from xds_server.wire.hold import Hold
from xds_server.wire.registry_service import MESSAGE_MAX_BYTES, SERVICE, RegistryService

CODE = grpc.StatusCode
REGISTRY = DiscoverySource("registry")
PROVIDERS = (
    Provider("a", "search", Locality("us-east-1"), discovery=REGISTRY),
    Provider("b", "mail", discovery=REGISTRY),
    Provider("fixed", "search", endpoints=(Address("10.9.9.9", 9),)),
)
MESH = Mesh(
    "test",
    Mode.OBSERVE,
    EngineSettings(),
    TelemetrySettings(),
    {
        "search": Service("search", (PROVIDERS[0], PROVIDERS[2])),
        "mail": Service("mail", (PROVIDERS[1],)),
    },
    {},
    {},
    ServerSettings(),
)
ANSWERS = {
    "Register": pb.RegisterResponse,
    "Heartbeat": pb.HeartbeatResponse,
    "Deregister": pb.DeregisterResponse,
    "List": pb.ListResponse,
}


class Tally:
    def __init__(self) -> None:
        self.results: Counter[tuple[str, str]] = Counter()
        self.watching = 0

    def called(self, method: str, result: str) -> None:
        self.results[method, result] += 1

    def watchers(self, count: int) -> None:
        self.watching = count


class World:
    def __init__(self, **options: Any) -> None:
        self.clock, self.tally = WallClock(), Tally()
        self.leases = Leases(per_provider_max=50)
        self.leases.set_providers(MESH.providers)
        self.announcements = Announcements(self.clock, self.leases, come_back_s=0.0)
        self.service = RegistryService(self.announcements, self.directory, self.tally, **options)

    def directory(self) -> Directory:
        found = {"fixed": PROVIDERS[2].endpoints}
        found |= {name: self.leases.endpoints(name) for name in "ab"}
        return Directory(MESH, found, self.leases, self.clock.now_s())

    async def call(self, method: str, request: Any) -> Any:
        body = request if isinstance(request, bytes) else request.SerializeToString()
        answer = await self.channel.unary_unary(f"/{SERVICE}/{method}")(body)
        return ANSWERS[method].FromString(answer)

    async def refused(self, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.call(method, request)
        return raised.value.code(), str(raised.value.details())

    async def register(self, port: int, provider: str = "a", **more: Any) -> pb.RegisterResponse:
        request = pb.RegisterRequest(provider=provider, address="10.0.0.1", port=port, **more)
        answer = await self.call("Register", request)
        assert isinstance(answer, pb.RegisterResponse)
        return answer

    def watch(self, **wanted: str) -> Any:
        body = pb.WatchRequest(**wanted).SerializeToString()
        return self.channel.unary_stream(f"/{SERVICE}/Watch")(body)


@asynccontextmanager
async def serving(world: World, *more: grpc.GenericRpcHandler) -> AsyncIterator[World]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2**25)])
    server.add_generic_rpc_handlers((world.service.handler(), *more))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            world.channel = channel
            yield world
    finally:
        await server.stop(grace=None)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with serving(World()) as running:
        yield running


def keys(message: Any) -> list[tuple[str, int]]:
    return [(e.key.provider, e.key.port) for e in message.endpoints]


async def told(watch: Any) -> pb.WatchResponse:
    async with asyncio.timeout(10.0):
        return pb.WatchResponse.FromString(await watch.read())


async def test_who_registers_is_listed_with_what_it_said_until_it_leaves(world: World) -> None:
    load = pb.Load(utilisation_ratio=0.25, price_per_million_requests_usd=1.5)
    where = pb.Locality(region="us-east-1", zone="b")
    lease = await world.register(1, locality=where, capabilities=["geo"], load=load, ttl_s=30.0)
    assert (lease.ttl_s, lease.heartbeat_s) == (30.0, 3.0)
    answer = await world.call("List", pb.ListRequest(provider="a"))
    (endpoint,) = answer.endpoints
    assert (endpoint.service, endpoint.source) == ("search", "registry")
    assert (endpoint.locality, list(endpoint.capabilities)) == (where, ["geo"])
    assert endpoint.load == load
    assert 29.0 < endpoint.expires_in_s <= 30.0
    assert not endpoint.HasField("capacity_rps")
    assert lease.lease_id.encode() not in answer.SerializeToString()
    await world.call("Heartbeat", pb.HeartbeatRequest(lease_id=lease.lease_id))
    await world.call("Deregister", pb.DeregisterRequest(lease_id=lease.lease_id))
    assert keys(await world.call("List", pb.ListRequest(provider="a"))) == []
    code, why = await world.refused("Heartbeat", pb.HeartbeatRequest(lease_id=lease.lease_id))
    assert (code, why) == (CODE.NOT_FOUND, "no such lease; register again")


async def test_all_endpoints_are_listed_wherever_they_were_found(world: World) -> None:
    await world.register(1)
    await world.register(2, "b")
    assert keys(await world.call("List", pb.ListRequest())) == [("a", 1), ("fixed", 9), ("b", 2)]
    assert keys(await world.call("List", pb.ListRequest(service="search"))) == [
        ("a", 1),
        ("fixed", 9),
    ]
    assert keys(await world.call("List", pb.ListRequest(service="nothing"))) == []


async def test_nobody_can_announce_what_nobody_configured(world: World) -> None:
    for name in ("fixed", "nobody"):
        request = pb.RegisterRequest(provider=name, address="10.0.0.1", port=1)
        code, why = await world.refused("Register", request)
        assert code is CODE.NOT_FOUND
        assert why.endswith("these do: a, b")
    west = pb.Locality(region="us-west-2")
    request = pb.RegisterRequest(provider="a", address="10.0.0.1", port=1, locality=west)
    assert (await world.refused("Register", request))[0] is CODE.FAILED_PRECONDITION
    assert len(world.leases) == 0


GOOD: dict[str, Any] = {"provider": "a", "address": "10.0.0.1", "port": 1}


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"address": "search.example"}, "address"),
        ({"address": "0.0.0.0"}, "address"),
        ({"address": "::"}, "address"),
        ({"address": "224.0.0.1"}, "address"),
        ({"address": "fe80::1%eth0"}, "address"),
        ({"address": "unix:/run/x"}, "address"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"ttl_s": 0.5}, "ttl_s"),
        ({"ttl_s": 1e9}, "ttl_s"),
        ({"ttl_s": float("nan")}, "ttl_s"),
        ({"ttl_s": -1.0}, "ttl_s"),
        ({"capacity_rps": 0.0}, "capacity_rps"),
        ({"capacity_rps": float("inf")}, "capacity_rps"),
        ({"load": pb.Load(utilisation_ratio=float("nan"))}, "utilisation_ratio"),
        ({"load": pb.Load(price_per_million_requests_usd=-1.0)}, "price"),
        ({"capabilities": ["x"] * 65}, "capabilities"),
        ({"capabilities": ["x" * 129]}, "capabilities"),
        ({"provider": "a\n"}, "provider"),
        ({"locality": pb.Locality(region="\x1b[2J")}, "region"),
    ],
)
async def test_a_wrong_field_is_named_and_changes_nothing(
    world: World, wrong: dict[str, Any], names: str
) -> None:
    code, why = await world.refused("Register", pb.RegisterRequest(**(GOOD | wrong)))
    assert code is CODE.INVALID_ARGUMENT
    assert names in why
    assert len(world.leases) == 0


async def test_a_load_that_is_wrong_does_not_renew(world: World) -> None:
    lease = await world.register(1, ttl_s=60.0)
    before = world.leases.of("a")[Address("10.0.0.1", 1)]
    bad = pb.HeartbeatRequest(lease_id=lease.lease_id, load=pb.Load(utilisation_ratio=-1.0))
    assert (await world.refused("Heartbeat", bad))[0] is CODE.INVALID_ARGUMENT
    assert world.leases.of("a")[Address("10.0.0.1", 1)] == before


async def test_what_does_not_parse_or_is_too_large_is_refused_on_every_method(
    world: World,
) -> None:
    huge = pb.RegisterRequest(**(GOOD | {"provider": "x" * MESSAGE_MAX_BYTES})).SerializeToString()
    for method in ANSWERS:
        assert (await world.refused(method, b"\xff"))[0] is CODE.INVALID_ARGUMENT
        assert (await world.refused(method, huge))[0] is CODE.INVALID_ARGUMENT
    for body in (b"\xff", huge):
        watch = world.channel.unary_stream(f"/{SERVICE}/Watch")(body)
        assert await watch.code() is CODE.INVALID_ARGUMENT
    assert world.tally.results["Register", "malformed"] == 2


async def test_beyond_its_bound_a_provider_is_full(world: World) -> None:
    for port in range(1, 51):
        await world.register(port)
    request = pb.RegisterRequest(**(GOOD | {"port": 51}))
    assert (await world.refused("Register", request))[0] is CODE.RESOURCE_EXHAUSTED


async def test_a_watcher_is_told_all_first_and_then_what_changes(world: World) -> None:
    first = await world.register(1)
    watch = world.watch(provider="a")
    message = await told(watch)
    assert (message.full, keys(message)) == (True, [("a", 1)])
    await world.register(2)
    message = await told(watch)
    assert (message.full, keys(message), len(message.gone)) == (False, [("a", 2)], 0)
    await world.call("Deregister", pb.DeregisterRequest(lease_id=first.lease_id))
    message = await told(watch)
    assert (keys(message), [k.port for k in message.gone]) == ([], [1])
    await world.register(2, capacity_rps=7.0)
    (endpoint,) = (await told(watch)).endpoints
    assert endpoint.capacity_rps == 7.0
    watch.cancel()
    await eventually("nobody watches", lambda: world.tally.watching == 0)
    assert not world.announcements._followers


async def test_heartbeats_and_other_providers_are_no_news(world: World) -> None:
    lease = await world.register(1)
    watch = world.watch(provider="a")
    await told(watch)
    load = pb.Load(utilisation_ratio=0.9)
    await world.call("Heartbeat", pb.HeartbeatRequest(lease_id=lease.lease_id, load=load))
    await world.register(5, "b")
    await world.register(2)  # whatever was news before would have come with this, or earlier
    assert keys(await told(watch)) == [("a", 2)]
    watch.cancel()


async def test_watchers_are_bounded() -> None:
    async with serving(World(watchers_max=1)) as world:
        one = world.watch()
        await told(one)
        assert await world.watch().code() is CODE.RESOURCE_EXHAUSTED
        one.cancel()
        await eventually("the place is free", lambda: world.tally.watching == 0)
        two = world.watch()
        assert (await told(two)).full
        two.cancel()


async def test_a_watcher_that_does_not_read_misses_states_and_costs_others_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_service, "GATHER_S", 0.0)
    stalled, good = world.watch(provider="a"), world.watch(provider="a")
    await told(good)
    words = ["x" * 120 + f"{n:03d}" for n in range(60)]
    turns = 80
    for turn in range(1, turns + 1):
        for port in range(1, 31):
            world.announcements.register(
                f"{turn}/{port}",
                Announcement(
                    "a", Address("10.0.0.1", port), Locality(), frozenset(words), float(turn)
                ),
                300.0,
            )
        seen: set[float] = set()
        while float(turn) not in seen:
            seen |= {e.capacity_rps for e in (await told(good)).endpoints}
    messages, last = 0, 0.0
    while last < turns:  # some are on their way; then comes what is true now
        message = await told(stalled)
        messages += 1
        last = max([e.capacity_rps for e in message.endpoints], default=0.0)
    assert messages < turns / 2
    good.cancel()
    stalled.cancel()
    await eventually("nobody watches", lambda: world.tally.watching == 0)


def _mutations() -> st.SearchStrategy[bytes]:
    valid = pb.RegisterRequest(
        **GOOD, locality=pb.Locality(region="us-east-1"), capabilities=["x"], ttl_s=5.0
    ).SerializeToString()

    def flip(body: bytes, at: int, to: int) -> bytes:
        at %= max(len(body), 1)
        return body[:at] + bytes([to]) + body[at + 1 :]

    flipped = st.builds(flip, st.just(valid), st.integers(0, 500), st.integers(0, 255))
    cut = st.integers(0, len(valid)).map(lambda n: valid[:n])
    doubles = st.binary(min_size=8, max_size=8).map(
        lambda b: valid + struct.pack("<B", 0x41) + b  # field 8, ttl_s
    )
    return st.one_of(st.binary(max_size=200), flipped, cut, doubles)


@given(_mutations())
def test_no_bytes_can_crash_a_method_or_put_in_what_is_not_valid(body: bytes) -> None:
    world = World()
    methods = (
        world.service._register,
        world.service._heartbeat,
        world.service._deregister,
        world.service._list,
    )
    for method in methods:
        with suppress(RemoteProtocolError, LeaseRefusedError):
            method(body)
    for address, lease in world.leases.of("a").items():
        assert 1 <= address.port <= 65535
        assert 1.0 <= lease.ttl_s <= 300.0


async def test_discovery_waits_while_it_is_held_and_the_registry_does_not() -> None:
    async def echo(requests: Any, context: Any) -> None:
        await context.write(await context.read())

    streams = grpc.method_handlers_generic_handler(
        "test.Ads", {"Stream": grpc.stream_stream_rpc_method_handler(echo)}
    )
    hold = Hold(streams, waiting_max=1)
    async with serving(World(), hold) as world:
        call = world.channel.stream_stream("/test.Ads/Stream")()
        await call.write(b"hello")
        await eventually("it waits", lambda: hold.waiting == 1)
        assert await world.channel.stream_stream("/test.Ads/Stream")().code() is CODE.UNAVAILABLE
        await world.register(1)
        assert await world.channel.stream_stream("/test.Ads/No")().code() is CODE.UNIMPLEMENTED
        gone = asyncio.ensure_future(call.read())
        hold.open()
        assert await gone == b"hello"
        assert hold.waiting == 0
        late = world.channel.stream_stream("/test.Ads/Stream")()
        await late.write(b"late")
        assert await late.read() == b"late"


async def test_who_leaves_while_it_is_held_leaves_nothing() -> None:
    hold = Hold(grpc.method_handlers_generic_handler("x", {"S": _never()}), waiting_max=1)
    async with serving(World(), hold) as world:
        call = world.channel.stream_stream("/x/S")()
        await eventually("it waits", lambda: hold.waiting == 1)
        call.cancel()
        await eventually("it is gone", lambda: hold.waiting == 0)


def _never() -> Any:
    async def never(requests: Any, context: Any) -> None:
        raise AssertionError("held")

    return grpc.stream_stream_rpc_method_handler(never)
