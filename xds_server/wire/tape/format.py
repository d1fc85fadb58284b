"""How a recording is written down.

::

    DIR/
      <seq>-<node id>.jsonl   one stream: a header, then one line per call of its state machine
      parts/<digest>          one type of a snapshot: its version and its resources
      resources/<digest>      the body of a resource

A stream's lines say ``got`` (a request, without its node), ``part`` (from here on the snapshot
has this of a type), ``poll`` (that it was asked what to send, and what came), ``closed`` or
``ended``. ``n`` counts the calls of all streams of a run: streams of one node share what it
refused, so their calls are replayed in this order. A part has a number per object, since a
machine that is shown the same object again need not look at it.

Bodies of secrets are never written. In their place stand bytes of the same length, made from a
hash keyed with random bytes that are forgotten, in the resources as well as in the responses.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, TypeAlias

from xds_server.model.ids import SDS, Nonce, ResourceName, TypeUrl, Version
from xds_server.model.snapshot import Resource, TypeSnapshot
from xds_server.protocol.messages import Response
from xds_server.protocol.quarantine import Quarantine, Refusal

FORMAT: Final = 1
SUFFIX: Final = ".jsonl"
PARTS: Final = "parts"
RESOURCES: Final = "resources"
Json: TypeAlias = dict[str, Any]
BodyOf: TypeAlias = Callable[[str], bytes]
Refusals: TypeAlias = Mapping[tuple[TypeUrl, ResourceName], Refusal]
_RESOURCE_URL: Final = "type.googleapis.com/envoy.service.discovery.v3.Resource"


def digest(body: bytes) -> str:
    """Name of content; a recording has no two contents of one name."""
    return blake2b(body, digest_size=20).hexdigest()


def _short(body: bytes | memoryview) -> str:
    return blake2b(body, digest_size=8).hexdigest()


def dumps(data: Json) -> bytes:
    """One line of JSON, with its end."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


# -- responses -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sent:
    """A response as it is compared: all of it but the bytes, and digests of these."""

    type_url: TypeUrl
    nonce: Nonce
    version: Version
    names: tuple[ResourceName, ...]
    removed: tuple[ResourceName, ...]
    heartbeat: bool
    frames: tuple[str, ...]  # digest per resource, in the order of names; then those of aliases
    digest: str  # of the whole message


def sent(response: Response, seal: "Seal | None" = None) -> Sent:
    """Take a response down; ``seal`` replaces what is secret in it."""
    payload = response.payload
    if seal is not None and response.type_url == SDS:
        payload = seal.payload(payload)
    return Sent(
        response.type_url,
        response.nonce,
        response.version_info,
        response.names,
        response.removed,
        response.heartbeat,
        frames(payload),
        digest(payload),
    )


def frames(payload: bytes) -> tuple[str, ...]:
    """Return the digest of each resource in a response, SotW or delta."""
    view = memoryview(payload)
    found = fields(payload, 0, len(payload))
    return tuple(_short(view[a:b]) for number, a, b in found if number == 2)


def sent_to_json(it: Sent) -> Json:
    """Translate; empty and false is left out."""
    data: Json = {"type": it.type_url, "nonce": it.nonce, "version": it.version}
    data |= {"names": it.names} if it.names else {}
    data |= {"removed": it.removed} if it.removed else {}
    data |= {"heartbeat": True} if it.heartbeat else {}
    data |= {"frames": it.frames} if it.frames else {}
    return data | {"digest": it.digest}


def sent_from_json(data: Json) -> Sent:
    """Translate back. Raises KeyError and TypeError for what is none."""
    return Sent(
        data["type"],
        data["nonce"],
        data["version"],
        tuple(data.get("names", ())),
        tuple(data.get("removed", ())),
        bool(data.get("heartbeat", False)),
        tuple(data.get("frames", ())),
        data["digest"],
    )


# -- resources -------------------------------------------------------------------------


def resource_to_json(resource: Resource, seal: "Seal") -> Json:
    """Translate all but the body; that is named by its digest, or sealed."""
    data: Json = {"name": resource.name, "version": resource.version}
    if resource.type_url == SDS:
        data |= {"sealed": seal.mark(resource.body), "length": len(resource.body)}
    else:
        data["body"] = digest(resource.body)
    data |= {} if resource.ttl_s is None else {"ttl_s": resource.ttl_s}
    data |= {"aliases": resource.aliases} if resource.aliases else {}
    data |= {"on_demand": True} if resource.on_demand else {}
    return data | ({"needs": resource.needs} if resource.needs else {})


def resource_from_json(type_url: TypeUrl, data: Json, body_of: BodyOf) -> Resource:
    """Translate back; ``body_of`` a digest. Raises KeyError and TypeError for what is none."""
    sealed = data.get("sealed")
    body = filler(sealed, data["length"]) if sealed else body_of(data["body"])
    return Resource(
        type_url,
        data["name"],
        data["version"],
        body,
        data.get("ttl_s"),
        tuple(data.get("aliases", ())),
        bool(data.get("on_demand", False)),
        tuple(data.get("needs", ())),
    )


def part_to_json(type_url: TypeUrl, part: TypeSnapshot, seal: "Seal") -> Json:
    """Translate one type of a snapshot; the order of its resources counts."""
    return {
        "type": type_url,
        "version": part.version,
        "resources": [resource_to_json(r, seal) for r in part.resources.values()],
        "aliases": dict(part.aliases),
        "on_demand": sorted(part.on_demand),
    }


def part_from_json(data: Json, body_of: BodyOf) -> TypeSnapshot:
    """Translate back. Raises KeyError and TypeError for what is none."""
    resources = (resource_from_json(data["type"], r, body_of) for r in data["resources"])
    return TypeSnapshot(
        data["version"],
        {r.name: r for r in resources},
        data["aliases"],
        frozenset(data["on_demand"]),
    )


def refusals_to_json(refusals: Refusals, seal: "Seal") -> list[Json]:
    """Translate what a node refused, the oldest first."""
    return [
        {
            "type": type_url,
            "name": name,
            "version": refusal.version,
            "error": refusal.error,
            "good": None if refusal.good is None else resource_to_json(refusal.good, seal),
        }
        for (type_url, name), refusal in refusals.items()
    ]


def load_refusals(quarantine: Quarantine, data: list[Json], body_of: BodyOf) -> None:
    """Make it hold that and nothing else."""
    for type_url in {type_url for type_url, _ in quarantine.refusals}:
        quarantine.forget(type_url)
    for refused in data:
        type_url, good = refused["type"], refused["good"]
        quarantine.add(
            Resource(type_url, refused["name"], refused["version"], b""),
            refused["error"],
            None if good is None else resource_from_json(type_url, good, body_of),
        )


# -- secrets ---------------------------------------------------------------------------


class Seal:
    """Replaces secret bytes by others that tell equal from different, and nothing else."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def mark(self, body: bytes) -> str:
        """Name that body; nobody who lacks the key learns anything of it."""
        return blake2b(body, digest_size=16, key=self._key).hexdigest()

    def payload(self, payload: bytes) -> bytes:
        """Replace the bodies of all secrets in a response; its length stays."""
        sealed = bytearray(payload)
        for a, b in _secrets(payload):
            sealed[a:b] = filler(self.mark(payload[a:b]), b - a)
        return bytes(sealed)


def filler(mark: str, length: int) -> bytes:
    """Return the bytes that stand for a sealed body."""
    pattern = bytes.fromhex(mark)
    return (pattern * (length // len(pattern) + 1))[:length]


def _secrets(payload: bytes) -> Iterator[tuple[int, int]]:
    """Where bodies of secrets are: Any in SotW, Resource in delta, Any of Resource with a TTL."""
    for number, a, b in fields(payload, 0, len(payload)):
        if number == 2:
            found = tuple(_secret_in_any(payload, a, b))
            yield from found or _secret_in_resource(payload, a, b)


def _secret_in_any(payload: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    parts = {number: (a, b) for number, a, b in fields(payload, start, end)}
    if 1 not in parts or 2 not in parts:
        return
    type_url = payload[slice(*parts[1])]
    if type_url == SDS.encode():
        yield parts[2]
    elif type_url == _RESOURCE_URL.encode():
        yield from _secret_in_resource(payload, *parts[2])


def _secret_in_resource(payload: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    for number, a, b in fields(payload, start, end):
        if number == 2 and payload[a : a + 1] == b"\x0a":
            yield from _secret_in_any(payload, a, b)


def without_node(body: bytes, *, delta: bool) -> bytes:
    """Return a request without its node, which the header has: 60 kB from an Envoy."""
    node = 1 if delta else 2
    kept, at = [], 0
    for number, first, _, end in _fields(body, 0, len(body)):
        if number == node:
            kept.append(body[at:first])
            at = end
    return b"".join((*kept, body[at:]))


def fields(payload: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each length-delimited field; ends at what is no message."""
    return ((number, a, b) for number, _, a, b in _fields(payload, start, end))


def _fields(payload: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield also where a field begins, before its key."""
    at = start
    while at < end:
        first = at
        key, at = _varint(payload, at, end)
        if key & 7 == 0:
            _, at = _varint(payload, at, end)
            continue
        if key & 7 != 2:
            return
        length, at = _varint(payload, at, end)
        if at + length > end:
            return
        yield key >> 3, first, at, at + length
        at += length


def _varint(payload: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = payload[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return value, end
