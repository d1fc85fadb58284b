"""People's own resources, per node: those of every set that the node matches."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import structlog

from xds_server.model.extra import ResourceSet
from xds_server.model.ids import SHORT, ResourceName, TypeUrl
from xds_server.model.snapshot import EMPTY, Node, Resource, TypeSnapshot
from xds_server.model.versions import type_snapshot

log = structlog.get_logger()

CACHE_MAX: Final = 1024
"""Combinations of sets that are kept; beyond that all are forgotten and built again."""
LOGGED_MAX: Final = 1024
"""Names of which a collision is logged, once each; beyond that they are not."""


class Extras:
    """All sets of one configuration."""

    def __init__(self, sets: Sequence[ResourceSet]) -> None:
        self._sets = tuple(sets)
        self._by_match: dict[tuple[int, ...], Mapping[TypeUrl, tuple[Resource, ...]]] = {}
        self._merged: dict[
            tuple[TypeUrl, str, tuple[int, ...]], tuple[TypeSnapshot, TypeSnapshot]
        ] = {}
        self._logged: set[tuple[TypeUrl, ResourceName]] = set()

    def of(self, node: Node) -> Mapping[TypeUrl, tuple[Resource, ...]]:
        """Return what a node gets beside what is generated; names are unique per type.

        Where two sets that a node matches have one name, the first in the file counts.
        """
        return self.combine(self.matching(node))

    def matching(self, node: Node) -> tuple[int, ...]:
        """Return the places in the file of the sets that a node matches."""
        return tuple(i for i, s in enumerate(self._sets) if s.selector.matches(node))

    def combine(self, matching: tuple[int, ...]) -> Mapping[TypeUrl, tuple[Resource, ...]]:
        """Return the resources of those sets together."""
        found = self._by_match.get(matching)
        if found is None:
            if len(self._by_match) >= CACHE_MAX:
                self._by_match.clear()
            found = self._by_match[matching] = self._combine(matching)
        return found

    def add_to(
        self, generated: Mapping[TypeUrl, TypeSnapshot], node: Node
    ) -> Mapping[TypeUrl, TypeSnapshot]:
        """Return the generated resources together with the node's own.

        Nodes with the same generated resources and the same sets share objects. Of a
        generated and an own resource with one name the generated one counts; the
        configuration is refused where that can be foreseen.
        """
        matching = self.matching(node)
        own = self.combine(matching)
        merged = {
            url: self._merge(url, generated.get(url, EMPTY), resources, matching)
            for url, resources in own.items()
        }
        return {**generated, **merged}

    def _merge(
        self,
        type_url: TypeUrl,
        base: TypeSnapshot,
        own: tuple[Resource, ...],
        matching: tuple[int, ...],
    ) -> TypeSnapshot:
        key = (type_url, base.version, matching)
        before, merged = self._merged.get(key, (EMPTY, EMPTY))
        if before != base or merged is EMPTY:  # a TTL is not part of the version
            if len(self._merged) >= CACHE_MAX:
                self._merged.clear()
            kept = self._first_of_each(type_url, (*base.resources.values(), *own))
            merged = type_snapshot(kept)
            self._merged[key] = (base, merged)
        return merged

    def _combine(self, matching: tuple[int, ...]) -> Mapping[TypeUrl, tuple[Resource, ...]]:
        sets = [self._sets[i] for i in matching]
        urls = {url: None for s in sets for url in s.resources}
        return MappingProxyType(
            {
                url: self._first_of_each(url, (r for s in sets for r in s.resources.get(url, ())))
                for url in urls
            }
        )

    def _first_of_each(
        self, type_url: TypeUrl, resources: Iterable[Resource]
    ) -> tuple[Resource, ...]:
        kept: dict[ResourceName, Resource] = {}
        for resource in resources:
            first = kept.setdefault(resource.name, resource)
            if first is not resource:
                self._say(type_url, resource.name)
        return tuple(kept.values())

    def _say(self, type_url: TypeUrl, name: ResourceName) -> None:
        key = (type_url, name)
        if key not in self._logged and len(self._logged) < LOGGED_MAX:
            self._logged.add(key)
            log.warning("config.name_twice", type=SHORT[type_url], name=name)
