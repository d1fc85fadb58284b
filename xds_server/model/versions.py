"""Versions that are a property of content."""

from collections.abc import Iterable
from hashlib import blake2b
from types import MappingProxyType

from xds_server.model.ids import ResourceName, TypeUrl, Version
from xds_server.model.snapshot import Resource, TypeSnapshot


def content_version(body: bytes) -> Version:
    """Hash of the bytes: equal on every replica, different whenever the content is."""
    return blake2b(body, digest_size=8).hexdigest()


def make_resource(
    type_url: TypeUrl, name: ResourceName, body: bytes, ttl_s: float | None = None
) -> Resource:
    """Name and version serialised content."""
    return Resource(type_url, name, content_version(body), body, ttl_s)


def type_snapshot(resources: Iterable[Resource]) -> TypeSnapshot:
    """Collect resources of one type, sorted by name; two of one name are a bug here."""
    ordered = list(resources)
    if len(ordered) == 1:  # as a group's weights are, of which there are many
        (r,) = ordered
        if not r.aliases and not r.on_demand:
            line = f"{r.name} {r.version}".encode()
            return TypeSnapshot(content_version(line), MappingProxyType({r.name: r}))
    ordered.sort(key=lambda r: r.name)
    by_name = {r.name: r for r in ordered}
    if len(by_name) != len(ordered):
        raise ValueError(f"duplicate names among {[r.name for r in ordered]}")
    lines = (f"{r.name} {r.version}{' on demand' if r.on_demand else ''}" for r in ordered)
    digest = content_version("\n".join(lines).encode())
    return TypeSnapshot(
        digest,
        MappingProxyType(by_name),
        MappingProxyType({alias: r.name for r in ordered for alias in r.aliases}),
        frozenset(r.name for r in ordered if r.on_demand),
    )
