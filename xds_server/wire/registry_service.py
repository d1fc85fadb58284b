"""The registry's own gRPC API: endpoints announce themselves, and anyone may look."""

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from xds_server.errors import RemoteProtocolError
from xds_server.generated import xds_server_registry_pb2 as pb
from xds_server.model.ids import Locality
from xds_server.model.services import EndpointStatus
from xds_server.model.topology import Address, Mesh, Provider
from xds_server.registry.announcements import Announcements
from xds_server.registry.leases import (
    TTL_DEFAULT_S,
    TTL_MAX_S,
    TTL_MIN_S,
    Announcement,
    LeaseRefusedError,
    Refusal,
)

SERVICE: Final = "xds_server.registry.v1.Registry"
MESSAGE_MAX_BYTES: Final = 64 * 2**10
"""Of one request; the largest honest one is a tenth of that."""
WATCHERS_MAX: Final = 200
GATHER_S: Final = 0.5
"""Changes within this time are one message to a watcher: each costs a look at every endpoint."""
WORD_MAX: Final = 128
WORDS_MAX: Final = 64
NUMBER_MAX: Final = 1e12
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Unary: TypeAlias = Callable[[bytes], Message]

_CODES: Final = {
    Refusal.PROVIDER: grpc.StatusCode.NOT_FOUND,
    Refusal.LEASE: grpc.StatusCode.NOT_FOUND,
    Refusal.MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Refusal.FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class Tally(Protocol):
    """Who counts."""

    def called(self, method: str, result: str) -> None:
        """One call was answered: ``ok``, or why not."""
        ...

    def watchers(self, count: int) -> None:
        """So many watch now."""
        ...


class Directory(Protocol):
    """What Envoys are given now."""

    @property
    def mesh(self) -> Mesh:
        """The configuration in force."""
        ...

    def endpoints(self, provider: Provider) -> tuple[EndpointStatus, ...]:
        """Return a provider's endpoints."""
        ...


@dataclass(frozen=True, slots=True)
class _Filter:
    service: str
    provider: str

    def providers(self, mesh: Mesh) -> Iterable[Provider]:
        for provider in mesh.providers.values():
            if self.service in ("", provider.service) and self.provider in ("", provider.name):
                yield provider


class RegistryService:
    """Register, Heartbeat, Deregister, List and Watch, over bytes.

    ``directory`` gives what is served now. Loss policy of Watch: a watcher holds what it was
    told last and is sent the difference when it can be written to, so states in between are
    skipped and nothing queues. One that never reads keeps its place, and one message: gRPC can
    end no stream while it writes. Keepalive ends those whose connection is dead.
    """

    def __init__(
        self,
        announcements: Announcements,
        directory: Callable[[], Directory],
        tally: Tally,
        *,
        watchers_max: int = WATCHERS_MAX,
    ) -> None:
        self._announcements, self._directory, self._tally = announcements, directory, tally
        self._watchers_max = watchers_max
        self._watching = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        unary: dict[str, Unary] = {
            "Register": self._register,
            "Heartbeat": self._heartbeat,
            "Deregister": self._deregister,
            "List": self._list,
        }
        methods: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(self._answering(name, method))
            for name, method in unary.items()
        }
        methods["Watch"] = grpc.unary_stream_rpc_method_handler(self._watch)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _answering(self, name: str, method: Unary) -> Any:
        async def answer(body: bytes, context: Context) -> bytes:
            try:
                message = method(body)
            except RemoteProtocolError as error:
                self._tally.called(name, "malformed")
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])
            except LeaseRefusedError as error:
                self._tally.called(name, error.why.value)
                await context.abort(_CODES[error.why], str(error)[:1000])
            self._tally.called(name, "ok")
            return message.SerializeToString()

        return answer

    def _register(self, body: bytes) -> Message:
        request = _parse(pb.RegisterRequest(), body)
        busy, price = _read_load(request.load)
        announcement = _announcement(request)
        ttl_s = _ttl_s(request.ttl_s)
        lease = self._announcements.register(secrets.token_urlsafe(16), announcement, ttl_s)
        self._announcements.heartbeat(lease.lease_id, busy, price)
        return pb.RegisterResponse(
            lease_id=lease.lease_id, ttl_s=lease.ttl_s, heartbeat_s=lease.heartbeat_s
        )

    def _heartbeat(self, body: bytes) -> Message:
        request = _parse(pb.HeartbeatRequest(), body)
        lease = self._announcements.heartbeat(request.lease_id, *_read_load(request.load))
        return pb.HeartbeatResponse(ttl_s=lease.ttl_s, heartbeat_s=lease.heartbeat_s)

    def _deregister(self, body: bytes) -> Message:
        self._announcements.deregister(_parse(pb.DeregisterRequest(), body).lease_id)
        return pb.DeregisterResponse()

    def _list(self, body: bytes) -> Message:
        request = _parse(pb.ListRequest(), body)
        wanted = _Filter(request.service, request.provider)
        return pb.ListResponse(endpoints=self._endpoints(wanted).values())

    def _endpoints(self, wanted: _Filter) -> dict[tuple[str, Address], pb.Endpoint]:
        directory = self._directory()
        return {
            (provider.name, status.address): _endpoint(provider, status)
            for provider in wanted.providers(directory.mesh)
            for status in directory.endpoints(provider)
        }

    async def _watch(self, body: bytes, context: Context) -> None:
        try:
            request = _parse(pb.WatchRequest(), body)
        except RemoteProtocolError as error:
            self._tally.called("Watch", "malformed")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])
        if self._watching >= self._watchers_max:
            self._tally.called("Watch", Refusal.FULL.value)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watchers")
        self._tally.called("Watch", "ok")
        self._count(1)
        try:
            wanted = _Filter(request.service, request.provider)
            async with aclosing(self._changes(wanted)) as changes:
                async for message in changes:
                    await context.write(message.SerializeToString())
        finally:
            self._count(-1)

    async def _changes(self, wanted: _Filter) -> AsyncGenerator[pb.WatchResponse, None]:
        news = asyncio.Event()
        self._announcements.follow(news)
        try:
            told = self._endpoints(wanted)
            yield pb.WatchResponse(full=True, endpoints=told.values())
            facts = {key: _facts(endpoint) for key, endpoint in told.items()}
            while True:
                await news.wait()
                await asyncio.sleep(GATHER_S)
                news.clear()
                now = self._endpoints(wanted)
                fresh = {key: _facts(endpoint) for key, endpoint in now.items()}
                changed = [now[key] for key, fact in fresh.items() if facts.get(key) != fact]
                gone = [_key(*key) for key in facts if key not in fresh]
                facts = fresh
                if changed or gone:
                    yield pb.WatchResponse(endpoints=changed, gone=gone)
        finally:
            self._announcements.unfollow(news)

    def _count(self, more: int) -> None:
        self._watching += more
        self._tally.watchers(self._watching)


def _parse(message: Any, body: bytes) -> Any:
    if len(body) > MESSAGE_MAX_BYTES:
        raise RemoteProtocolError(f"a request has at most {MESSAGE_MAX_BYTES} bytes")
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise RemoteProtocolError(f"request does not parse: {error}") from None
    return message


def _announcement(request: pb.RegisterRequest) -> Announcement:
    capacity = request.capacity_rps if request.HasField("capacity_rps") else None
    if capacity is not None and not 0.0 < capacity <= NUMBER_MAX:
        raise RemoteProtocolError(f"capacity_rps {capacity!r} is not above 0")
    if len(request.capabilities) > WORDS_MAX:
        raise RemoteProtocolError(f"more than {WORDS_MAX} capabilities")
    where = request.locality
    return Announcement(
        provider=_word("provider", request.provider),
        address=_address(request.address, request.port),
        locality=Locality(
            _word("locality.region", where.region),
            _word("locality.zone", where.zone),
            _word("locality.sub_zone", where.sub_zone),
        ),
        capabilities=frozenset(_word("capabilities", c) for c in request.capabilities),
        capacity_rps=capacity,
    )


def _address(host: str, port: int) -> Address:
    """Read where an endpoint is; one that no Envoy could connect to is refused."""
    try:
        address = ip_address(host)
    except ValueError:
        raise RemoteProtocolError(f"address {host[:60]!r} is not an IP address") from None
    if address.is_unspecified or address.is_multicast or "%" in host:
        raise RemoteProtocolError(f"address {host} is not one that can be connected to")
    if not 1 <= port <= 65535:
        raise RemoteProtocolError(f"port {port} is not from 1 to 65535")
    return Address(str(address), port)


def _ttl_s(ttl_s: float) -> float:
    if ttl_s == 0.0:
        return TTL_DEFAULT_S
    if not TTL_MIN_S <= ttl_s <= TTL_MAX_S:
        raise RemoteProtocolError(f"ttl_s {ttl_s!r} is not from {TTL_MIN_S:g} to {TTL_MAX_S:g}")
    return ttl_s


def _read_load(load: pb.Load) -> tuple[float | None, float | None]:
    """Return utilisation and price; None for what is not said."""
    out: list[float | None] = []
    for name in ("utilisation_ratio", "price_per_million_requests_usd"):
        value: float | None = getattr(load, name) if load.HasField(name) else None
        if value is not None and not (math.isfinite(value) and 0.0 <= value <= NUMBER_MAX):
            raise RemoteProtocolError(f"load.{name} {value!r} is not 0 or more")
        out.append(value)
    return out[0], out[1]


def _word(field: str, text: str) -> str:
    if len(text) > WORD_MAX or not text.isprintable():
        raise RemoteProtocolError(f"{field}: at most {WORD_MAX} printable characters")
    return text


def _endpoint(provider: Provider, status: EndpointStatus) -> pb.Endpoint:
    where = status.locality
    return pb.Endpoint(
        service=provider.service,
        key=_key(provider.name, status.address),
        source=status.source,
        locality=pb.Locality(region=where.region, zone=where.zone, sub_zone=where.sub_zone),
        capabilities=status.capabilities,
        capacity_rps=status.capacity_rps.value,
        load=pb.Load(
            utilisation_ratio=status.utilisation_ratio.value,
            price_per_million_requests_usd=status.price_per_million_usd.value,
        ),
        registered_s=status.registered_s,
        heard_s=status.heard_s,
        expires_in_s=status.expires_in_s,
    )


def _key(provider: str, address: Address) -> pb.EndpointKey:
    return pb.EndpointKey(provider=provider, address=address.host, port=address.port)


def _facts(endpoint: pb.Endpoint) -> bytes:
    """Return what does not change by itself: without load and ages."""
    facts = pb.Endpoint()
    facts.CopyFrom(endpoint)
    for name in ("load", "registered_s", "heard_s", "expires_in_s"):
        facts.ClearField(name)
    body: bytes = facts.SerializeToString(deterministic=True)
    return body
