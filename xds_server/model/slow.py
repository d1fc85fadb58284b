"""What the slow tick decides: who substitutes, and which features are on."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class SlowKind(StrEnum):
    """What a slow decision is about."""

    SUBSTITUTE = "substitute"  # a provider on standby
    FLAG = "flag"  # a feature of an application


SLOW_ACTIONS: Final = {
    SlowKind.SUBSTITUTE: ("enter", "leave"),
    SlowKind.FLAG: ("off", "on"),
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
    state: str  # standby, in; on, off
    recommended: str  # what would be done if it were ours to do; "" if nothing
    pending: str  # what waits for another slow tick, or for the end of a hold; "" if nothing
    because: str
    since_s: float  # how long it has been so; 0: never changed
