"""Make before break, for one stream.

Additions go out in the order in which Envoy can use them, removals in the opposite one:
a route never points at a cluster that the client does not have, and a cluster is not taken
away before the client has applied routes without it. EDS is never held back: a client
acknowledges CDS only after it got the endpoints.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from xds_server.model.ids import (
    CDS,
    ECDS,
    EDS,
    LDS,
    RDS,
    RTDS,
    SDS,
    SRDS,
    VHDS,
    ResourceName,
    TypeUrl,
)

ORDER: Final = (RTDS, SDS, CDS, EDS, ECDS, LDS, SRDS, RDS, VHDS)
"""What is named goes before what names it."""
POINTERS: Final = frozenset({LDS, ECDS, SRDS, RDS, VHDS})
"""Types that may name clusters; held while the clusters are on their way."""
TARGETS: Final = (CDS, EDS)
"""Types that are named; their removals wait until nothing names them."""
Names: TypeAlias = Mapping[TypeUrl, Set[ResourceName]]
HOLD_MAX_S: Final = 5.0
"""Longest that anything is held: then it goes, since a client may never answer."""


@dataclass(slots=True)
class Hold:
    """Why something waits, and since when."""

    since_s: float | None = None

    def blocks(self, wanted: bool, now_s: float) -> bool:
        """Whether to wait now; forgets its age when nothing is ``wanted`` any more."""
        if not wanted:
            self.release()
            return False
        if self.since_s is None:
            self.since_s = now_s
        return now_s - self.since_s < HOLD_MAX_S

    def release(self) -> None:
        """Forget the age: the next wait is another one."""
        self.since_s = None

    def deadline_s(self) -> float | None:
        """When waiting ends by itself; None when nothing waits."""
        return None if self.since_s is None else self.since_s + HOLD_MAX_S


@dataclass(slots=True)
class Gate:
    """The holds of one stream."""

    pointers: Hold = field(default_factory=Hold)
    removals: Hold = field(default_factory=Hold)
    endpoints_due: set[ResourceName] = field(default_factory=set)
    """Assignments whose cluster was sent, and which this client has not acknowledged since."""
    leaving: dict[tuple[TypeUrl, ResourceName], float] = field(default_factory=dict)
    """Since when nothing names them any more: they drain."""

    @property
    def open(self) -> bool:
        """Whether nothing waits here."""
        return self.pointers.since_s is None and self.removals.since_s is None and not self.leaving

    def draining(self, gone: Names, drain_s: float, now_s: float) -> Names:
        """Those of ``gone``, which nothing names, that are not drained yet."""
        keys = {(url, name) for url, names in gone.items() for name in names}
        for key in self.leaving.keys() - keys:
            del self.leaving[key]
        if drain_s <= 0.0:
            return {}
        for key in keys:
            self.leaving.setdefault(key, now_s)
        return {
            url: {n for n in names if now_s - self.leaving[url, n] < drain_s}
            for url, names in gone.items()
        }

    def deadlines(self, drain_s: float, now_s: float) -> list[float]:
        """When a hold will lapse, or a drain be over, of those that have not."""
        found = [self.pointers.deadline_s(), self.removals.deadline_s()]
        found += [since_s + drain_s for since_s in self.leaving.values()]
        return [d for d in found if d is not None and d > now_s]
