"""Responses written around resources that are already serialised.

A response is a few header fields and the resources' own bytes, so it is joined, not built:
a resource's frame is made once and shared by every stream that gets it. Field numbers are
those of envoy/service/discovery/v3/discovery.proto.
"""

from collections.abc import Iterable
from functools import lru_cache

from xds_server.model.snapshot import Resource

FRAMES_KEPT = 2_048
"""Frames kept for sharing, the least recently used dropped first; a miss costs one copy."""
SHARED_MAX_BYTES = 1 << 16
"""A larger resource is framed anew for each stream, so what is kept stays below 128 MiB."""


def varint(value: int) -> bytes:
    """Encode a non-negative integer in base 128, least significant group first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, body: bytes) -> bytes:
    """One length-delimited field."""
    size = len(body)
    if number < 16 and size < 0x80:
        return bytes((number << 3 | 2, size)) + body
    return varint(number << 3 | 2) + varint(len(body)) + body


def text(number: int, value: str) -> bytes:
    """A string field; an empty string is not written."""
    return field(number, value.encode()) if value else b""


_shared = lru_cache(maxsize=FRAMES_KEPT)(text)
"""``text`` for what many responses have in common."""


def _any(type_url: str, body: bytes) -> bytes:
    return text(1, type_url) + field(2, body)


def _duration(duration_s: float) -> bytes:
    seconds, nanos = divmod(round(duration_s * 1e9), 1_000_000_000)
    return (b"\x08" + varint(seconds) if seconds else b"") + (
        b"\x10" + varint(nanos) if nanos else b""
    )


def wrapped(resource: Resource) -> bytes:
    """``envoy.service.discovery.v3.Resource`` with its body."""
    return (
        text(1, resource.version)
        + field(2, _any(resource.type_url, resource.body))
        + text(3, resource.name)
        + _aliases(resource.aliases)
        + _ttl(resource)
    )


def unresolved(alias: str) -> bytes:
    """``Resource`` without a body: there is nothing behind that alias."""
    return text(3, alias) + _aliases((alias,))


def _aliases(aliases: Iterable[str]) -> bytes:
    return b"".join(field(4, alias.encode()) for alias in aliases)


@lru_cache(maxsize=FRAMES_KEPT)
def heartbeat(resource: Resource) -> bytes:
    """``Resource`` with name, version and TTL, and no body: what extends a TTL."""
    return text(1, resource.version) + text(3, resource.name) + _ttl(resource)


def _ttl(resource: Resource) -> bytes:
    return b"" if resource.ttl_s is None else field(6, _duration(resource.ttl_s))


_RESOURCE_URL = "type.googleapis.com/envoy.service.discovery.v3.Resource"


def _sotw_frame(resource: Resource) -> bytes:
    """A resource with a TTL travels inside a Resource, any other inside an Any alone."""
    if resource.ttl_s is not None:
        return field(2, _any(_RESOURCE_URL, wrapped(resource)))
    return field(2, _any(resource.type_url, resource.body))


def _delta_frame(resource: Resource) -> bytes:
    return field(2, wrapped(resource))


_sotw_shared = lru_cache(maxsize=FRAMES_KEPT)(_sotw_frame)
_delta_shared = lru_cache(maxsize=FRAMES_KEPT)(_delta_frame)


def _sotw(resource: Resource) -> bytes:
    small = len(resource.body) <= SHARED_MAX_BYTES
    return _sotw_shared(resource) if small else _sotw_frame(resource)


def _delta(resource: Resource) -> bytes:
    small = len(resource.body) <= SHARED_MAX_BYTES
    return _delta_shared(resource) if small else _delta_frame(resource)


def sotw_response(
    type_url: str, version_info: str, nonce: str, resources: Iterable[Resource]
) -> bytes:
    """Encode a DiscoveryResponse."""
    return b"".join(
        (
            _shared(1, version_info),
            *map(_sotw, resources),
            _shared(4, type_url),
            text(5, nonce),
        )
    )


def delta_response(
    type_url: str,
    version_info: str,
    nonce: str,
    resources: Iterable[Resource],
    removed: Iterable[str] = (),
    unresolvable: Iterable[str] = (),
) -> bytes:
    """Encode a DeltaDiscoveryResponse; ``unresolvable`` are aliases of nothing."""
    parts = [_shared(1, version_info), *map(_delta, resources)]
    if unresolvable:
        parts += [field(2, unresolved(alias)) for alias in unresolvable]
    parts += (_shared(4, type_url), text(5, nonce))
    if removed:
        parts += [field(6, name.encode()) for name in removed]
    return b"".join(parts)


def delta_heartbeat(
    type_url: str, version_info: str, nonce: str, resources: Iterable[Resource]
) -> bytes:
    """Encode a DeltaDiscoveryResponse that extends TTLs and changes nothing."""
    frames = (field(2, heartbeat(r)) for r in resources)
    return b"".join((text(1, version_info), *frames, text(4, type_url), text(5, nonce)))
