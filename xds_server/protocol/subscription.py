"""What one client asks for of one type.

The rules are those of Envoy's xDS protocol page ("How the client specifies what resources
to return"): an empty first list is the wildcard for CDS and LDS; "*" is the wildcard
anywhere; once a name was sent on the stream, an empty list means nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from xds_server.model.ids import CDS, LDS, ResourceName, TypeUrl

WILDCARD: Final = "*"
LEGACY_WILDCARD_TYPES: Final = frozenset({CDS, LDS})
_T = TypeVar("_T")


@dataclass(slots=True)
class Subscription:
    """Wildcard, names, or both."""

    type_url: TypeUrl
    wildcard: bool = False
    names: set[ResourceName] = field(default_factory=set)
    _named: bool = False  # a name or "*" was sent on this stream

    def replace(self, names: Iterable[ResourceName]) -> set[ResourceName]:
        """SotW: the request's list is the subscription. Returns the names that are new."""
        asked = set(names)
        if asked:
            self._named = True
        legacy = not asked and not self._named and self.type_url in LEGACY_WILDCARD_TYPES
        self.wildcard = legacy or WILDCARD in asked
        asked.discard(WILDCARD)
        new, self.names = asked - self.names, asked
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
        self.names = (self.names | add) - drop
        return add - drop, dropped

    def pick(self, resources: Mapping[ResourceName, _T]) -> dict[ResourceName, _T]:
        """Those of ``resources`` that are asked for, in their order."""
        if self.wildcard:
            return dict(resources)
        return {name: r for name, r in resources.items() if name in self.names}

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for."""
        return not self.wildcard and not self.names
