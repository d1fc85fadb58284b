"""What one client asks for of one type.

The rules are those of Envoy's xDS protocol page ("How the client specifies what resources
to return"): an empty first list is the wildcard for the types that have one; "*" is the
wildcard anywhere; once a name was sent on the stream, an empty list means nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from xds_server.model.ids import CDS, LDS, SRDS, ResourceName, TypeUrl
from xds_server.model.snapshot import Resource, TypeSnapshot

WILDCARD: Final = "*"
LEGACY_WILDCARD_TYPES: Final = frozenset({CDS, LDS, SRDS})


@dataclass(slots=True)
class Subscription:
    """Wildcard, names, or both; a name may be an alias."""

    type_url: TypeUrl
    wildcard: bool = False
    names: set[ResourceName] = field(default_factory=set)
    _named: bool = False  # a name or "*" was sent on this stream
    ordered: tuple[ResourceName, ...] = ()  # the names, sorted

    def replace(self, names: Iterable[ResourceName]) -> set[ResourceName]:
        """SotW: the request's list is the subscription. Returns the names that are new."""
        asked = set(names)
        if asked:
            self._named = True
        legacy = not asked and not self._named and self.type_url in LEGACY_WILDCARD_TYPES
        self.wildcard = legacy or WILDCARD in asked
        asked.discard(WILDCARD)
        new = asked - self.names
        self._set(asked)
        return new

    def change(
        self, subscribe: Iterable[ResourceName], unsubscribe: Iterable[ResourceName], *, first: bool
    ) -> tuple[set[ResourceName], set[ResourceName]]:
        """Delta: add, then take away. Returns what was added and what was taken away.

        A name in both lists ends unsubscribed. Unknown names in ``unsubscribe`` are
        ignored.
        """
        add, drop = set(subscribe), set(unsubscribe)
        if first and not add and self.type_url in LEGACY_WILDCARD_TYPES:
            self.wildcard = True
        if WILDCARD in add:
            self.wildcard = True
        if WILDCARD in drop:
            self.wildcard = False
        add.discard(WILDCARD)
        drop.discard(WILDCARD)
        dropped = drop & (self.names | add)
        self._set((self.names | add) - drop)
        return add - drop, dropped

    def pick(self, part: TypeSnapshot) -> Mapping[ResourceName, Resource]:
        """Those of ``part`` that are asked for, by their own names, in the order of names."""
        if self.wildcard and not part.on_demand:
            return part.resources
        if self.wildcard:
            named = {part.aliases.get(n, n) for n in self.names}
            return {
                name: r
                for name, r in part.resources.items()
                if name in named or name not in part.on_demand
            }
        have = part.resources
        if part.aliases:
            own = sorted({part.aliases.get(n, n) for n in self.ordered})
            return {name: have[name] for name in own if name in have}
        return {name: have[name] for name in self.ordered if name in have}

    def covers(self, name: ResourceName) -> bool:
        """Whether that name is asked for."""
        return self.wildcard or name in self.names

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for."""
        return not self.wildcard and not self.names

    def _set(self, names: set[ResourceName]) -> None:
        if names != self.names:
            self.names = names
            # Responses are to be the same in every process, which a set's order is not.
            self.ordered = tuple(sorted(names))
