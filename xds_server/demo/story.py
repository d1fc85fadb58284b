"""What happens when: the events, the load, and the arrival times that both runs share."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from xds_server.model.telemetry import Floats

OUTAGE_MARGIN_S: Final = 5.0
"""The controller stays away this much longer than weights live, to see the baseline's split."""
RESUME_S: Final = 7.0
"""Left after the controller's return, to see the engine take over again."""
SETTLE_S: Final = 4.0
"""Between the last provider's fault and the controller's, so that each has its own failures."""
LOW_RATIO: Final = 0.45
"""The load before the peak, of the peak's."""
RAMP_S: Final = 2.0


class Kind(StrEnum):
    """What an event does."""

    LOAD = "load"
    SLOWER = "slower"
    DEARER = "dearer"
    PROVIDER_KILLED = "provider_killed"
    CONTROLLER_KILLED = "controller_killed"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that begins at ``at_s`` and is undone at ``until_s``, from the story's start."""

    name: str
    kind: Kind
    at_s: float
    until_s: float
    provider: str = ""
    factor: float = 1.0

    @property
    def is_provider_fault(self) -> bool:
        """Whether requests may fail without anybody but the provider being to blame."""
        return self.kind in (Kind.SLOWER, Kind.PROVIDER_KILLED)


@dataclass(frozen=True, slots=True)
class Story:
    """One story; both runs play the same one."""

    duration_s: float
    events: tuple[Event, ...]

    def of(self, kind: Kind) -> Event:
        """Return the event of that kind; each occurs once."""
        return next(e for e in self.events if e.kind is kind)

    def current(self, at_s: float) -> Event | None:
        """Return the event that began last and is not over."""
        running = [e for e in self.events if e.at_s <= at_s < e.until_s]
        return running[-1] if running else None

    def upcoming(self, at_s: float) -> Event | None:
        """Return the event that begins next."""
        return next((e for e in self.events if e.at_s > at_s), None)

    def load_ratio(self, at_s: float) -> float:
        """Return the load at that time, of the peak's."""
        done = (at_s - self.of(Kind.LOAD).at_s) / RAMP_S
        return LOW_RATIO + (1.0 - LOW_RATIO) * min(1.0, max(0.0, done))


# Times in a story of the default duration; those of the controller are real time, since
# the weights' life is.
_EVENTS: Final = (
    Event("peak load", Kind.LOAD, 7.0, 14.0),
    Event("search-east browns out", Kind.SLOWER, 14.0, 25.0, "search-east", 6.0),
    Event("search-west gets dearer", Kind.DEARER, 42.0, 52.0, "search-west", 8.0),
    Event("payments-main dies", Kind.PROVIDER_KILLED, 54.0, 61.0, "payments-main"),
)


def tell(duration_s: float, weights_ttl_s: float) -> Story:
    """Return the story for a duration; all but the controller's outage scales with it."""
    outage_s = weights_ttl_s + OUTAGE_MARGIN_S
    killed_at_s = duration_s - outage_s - RESUME_S
    scale = (killed_at_s - SETTLE_S) / _EVENTS[-1].until_s
    scaled = tuple(
        Event(e.name, e.kind, e.at_s * scale, e.until_s * scale, e.provider, e.factor)
        for e in _EVENTS
    )
    back_at_s = killed_at_s + outage_s
    killed = Event("controller dies", Kind.CONTROLLER_KILLED, killed_at_s, back_at_s)
    return Story(duration_s, (*scaled, killed))


def arrivals_s(
    rng: np.random.Generator,
    peak_rps: float,
    load_ratio: Callable[[float], float],
    duration_s: float,
) -> Floats:
    """(N,) Poisson arrivals whose rate follows the story, in order (Lewis' thinning)."""
    expected = peak_rps * duration_s
    count = int(expected + 8.0 * np.sqrt(expected) + 16.0)
    candidates = np.cumsum(rng.exponential(1.0 / peak_rps, count))
    candidates = candidates[candidates < duration_s]
    keep = rng.random(len(candidates)) < [load_ratio(float(t)) for t in candidates]
    return np.asarray(candidates[keep], dtype=np.float64)
