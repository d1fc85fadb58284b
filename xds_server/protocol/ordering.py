"""Make before break, for one stream.

Additions go out in the order in which Envoy can use them, removals in the opposite one:
a route never points at a cluster that the client does not have, and a cluster is not taken
away before the client has applied routes without it. EDS is never held back: a client
acknowledges CDS only after it got the endpoints.
"""

from dataclasses import dataclass, field
from typing import Final

from xds_server.model.ids import CDS, EDS, LDS, RDS, RTDS, ResourceName

ORDER: Final = (RTDS, CDS, EDS, LDS, RDS)
POINTERS: Final = frozenset({LDS, RDS})
"""Types that name clusters; held while the clusters are on their way."""
TARGETS: Final = frozenset({CDS, EDS})
"""Types that are named; their removals wait until nothing names them."""
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
    """Clusters sent whose endpoints this client has not acknowledged since."""

    def deadlines(self, now_s: float) -> list[float]:
        """When a hold will lapse, of those that have not."""
        found = (self.pointers.deadline_s(), self.removals.deadline_s())
        return [d for d in found if d is not None and d > now_s]
