"""Finding the culprit of a refused response.

A client refuses a response as a whole and says why in words that no program should read. So
what was new in it is offered again in halves, one at a time, and a half that is refused in
halves of its own, until a single resource is refused: that is the culprit. Of ``n`` new
resources with one culprit this takes about ``2 log2 n`` responses, and all others arrive.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from xds_server.model.ids import Nonce, ResourceName, Version
from xds_server.model.snapshot import Resource


def mentions(error: str, name: ResourceName) -> bool:
    """Whether a client's words name a resource. A hint: what they mean is not for programs."""
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", error) is not None


Offer: TypeAlias = dict[ResourceName, Version]
"""Resources that are offered together."""


@dataclass(slots=True)
class Recovery:
    """One type's halves that still wait to be offered."""

    waiting: list[Offer] = field(default_factory=list)
    nonce: Nonce = ""  # of the response that carries the half on offer
    since_s: float = 0.0  # when that was sent
    withheld: dict[ResourceName, Resource] = field(default_factory=dict)
    """What was taken back from a client that is silent, until it answers."""

    def split(self, suspects: Iterable[Resource], error: str) -> None:
        """Let the suspects wait, in two parts, before all that wait already.

        What the client's words name is suspected before what they do not, and what is
        somebody's own before what is generated: the rest is offered first, whole.
        """
        ordered = sorted(suspects, key=lambda r: r.name)
        rest: list[Resource] = []
        for pick in (lambda r: mentions(error, r.name), lambda r: r.own):
            picked = [r for r in ordered if pick(r)]
            if picked and len(picked) < len(ordered):
                rest = [r for r in ordered if not pick(r)]
                ordered = picked
                break
        middle = (len(ordered) + 1) // 2
        parts = (rest, ordered) if rest else (ordered[:middle], ordered[middle:])
        self.waiting[:0] = [{r.name: r.version for r in part} for part in parts]

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
        if self.withheld.get(resource.name) == resource:
            return True
        return any(offer.get(resource.name) == resource.version for offer in self.waiting)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to find out."""
        return not self.waiting and not self.nonce and not self.withheld
