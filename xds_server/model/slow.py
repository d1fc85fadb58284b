"""What the slow tick decides: who substitutes, which features are on, how many endpoints."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class SlowKind(StrEnum):
    """What a slow decision is about."""

    SUBSTITUTE = "substitute"  # a provider on standby
    FLAG = "flag"  # a feature of an application
    SCALE = "scale"  # a provider's endpoints


SLOW_ACTIONS: Final = {
    SlowKind.SUBSTITUTE: ("enter", "leave"),
    SlowKind.FLAG: ("off", "on"),
    SlowKind.SCALE: ("out", "in"),
}
"""What can be done, by kind; also the labels of metrics."""


@dataclass(frozen=True, slots=True)
class SlowDecision:
    """One change that a slow tick decided on."""

    kind: SlowKind
    target: str  # provider; ``application/flag`` for a feature
    action: str  # one of SLOW_ACTIONS
    because: str
    enforced: bool  # False: recommended, nothing was changed


@dataclass(frozen=True, slots=True)
class SlowStatus:
    """One thing that slow ticks decide about, as it stands."""

    kind: str
    target: str
    state: str  # standby, in; on, off; a number of endpoints
    recommended: str  # what would be done if it were ours to do; a number; "" if nothing
    pending: str  # what waits for another slow tick, or for the end of a hold; "" if nothing
    because: str
    since_s: float  # how long it has been so; 0: never changed
