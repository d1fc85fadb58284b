"""Finding the culprit of a refused response.

A client refuses a response as a whole and says why in words that no program should read. So
what was new in it is offered again in halves, one at a time, and a half that is refused in
halves of its own, until a single resource is refused: that is the culprit. Of ``n`` new
resources with one culprit this takes about ``2 log2 n`` responses, and all others arrive.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from xds_server.model.ids import Nonce, ResourceName, Version
from xds_server.model.snapshot import Resource

Offer: TypeAlias = dict[ResourceName, Version]
"""Resources that are offered together."""


@dataclass(slots=True)
class Recovery:
    """One type's halves that still wait to be offered."""

    waiting: list[Offer] = field(default_factory=list)
    nonce: Nonce = ""  # of the response that carries the half on offer
    since_s: float = 0.0  # when that was sent

    def split(self, suspects: Iterable[Resource]) -> None:
        """Let the suspects wait, in two halves, before all that wait already."""
        ordered = sorted(suspects, key=lambda r: r.name)
        middle = (len(ordered) + 1) // 2
        halves = (ordered[:middle], ordered[middle:])
        self.waiting[:0] = [{r.name: r.version for r in half} for half in halves]

    def offer(self) -> None:
        """Stop holding the next half back."""
        self.waiting.pop(0)

    def holds(self, wanted: Mapping[ResourceName, Resource]) -> set[ResourceName]:
        """Names of ``wanted`` that wait; other content of the same name does not."""
        return {
            name
            for offer in self.waiting
            for name, version in offer.items()
            if (r := wanted.get(name)) is not None and r.version == version
        }

    def suspects(self, resource: Resource) -> bool:
        """Whether that content waits already."""
        return any(offer.get(resource.name) == resource.version for offer in self.waiting)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to find out."""
        return not self.waiting and not self.nonce
