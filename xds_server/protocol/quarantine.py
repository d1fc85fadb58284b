"""What one node refused, and what it keeps instead.

A resource that a node refused is not sent to it again while its content is the same: it
would be refused again. In its place the node keeps the last version that it accepted, or
nothing if there was none. Streams of one node share a quarantine, so that a reconnect does
not offer it the same content once more.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from xds_server.model.ids import ResourceName, TypeUrl, Version
from xds_server.model.snapshot import Resource, TypeSnapshot

REFUSALS_MAX = 1024
"""Refusals kept per node; the oldest is dropped, and that content is then tried again."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Content that a node refused."""

    version: Version
    error: str  # the node's words
    good: Resource | None  # what it accepted last; None: nothing of that name


class Quarantine:
    """The refusals of one node."""

    def __init__(self) -> None:
        self._refusals: dict[tuple[TypeUrl, ResourceName], Refusal] = {}
        self.refusals: Mapping[tuple[TypeUrl, ResourceName], Refusal] = self._refusals
        """All of them, the oldest first."""

    def __len__(self) -> int:
        return len(self._refusals)

    def add(self, resource: Resource, error: str, good: Resource | None) -> None:
        """Keep ``resource`` from the node until its content changes."""
        key = (resource.type_url, resource.name)
        self._refusals.pop(key, None)
        self._refusals[key] = Refusal(resource.version, error, good)
        if len(self._refusals) > REFUSALS_MAX:
            del self._refusals[next(iter(self._refusals))]

    def accepted(self, type_url: TypeUrl, name: ResourceName, version: Version) -> None:
        """Forget a refusal once other content of that name was accepted.

        The last good version does not count: it is what the node keeps meanwhile.
        """
        refusal = self._refusals.get((type_url, name))
        if refusal is None:
            return
        if refusal.good is None or refusal.good.version != version:
            del self._refusals[type_url, name]

    def forget(self, type_url: TypeUrl) -> None:
        """Forget all refusals of one type: the node started anew, and may judge otherwise."""
        for key in [key for key in self._refusals if key[0] == type_url]:
            del self._refusals[key]

    def of(self, resource: Resource) -> Refusal | None:
        """Return the refusal of exactly this content."""
        refusal = self._refusals.get((resource.type_url, resource.name))
        return refusal if refusal is not None and refusal.version == resource.version else None

    def replace(
        self, type_url: TypeUrl, wanted: Mapping[ResourceName, Resource], part: TypeSnapshot
    ) -> Mapping[ResourceName, Resource]:
        """Put the last good versions in the place of what was refused.

        Refusals of what ``part`` no longer has are forgotten.
        """
        if not self._refusals:
            return wanted
        for key in [k for k in self._refusals if k[0] == type_url and k[1] not in part.resources]:
            del self._refusals[key]
        changed: dict[ResourceName, Resource] | None = None
        for (url, name), refusal in self._refusals.items():
            offered = wanted.get(name) if url == type_url else None
            if offered is None or offered.version != refusal.version:
                continue
            if changed is None:
                changed = dict(wanted)
            if refusal.good is None:
                del changed[name]
            else:
                changed[name] = refusal.good
        return wanted if changed is None else changed
