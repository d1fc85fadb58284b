"""Cumulative counters to increments.

Envoy counts from its start. An increment is the difference to the message before; a value
below the one before means that Envoy restarted and counts anew, so the value itself is the
increment. Bases are kept per node, not per stream: a stream that breaks loses nothing, since
what happened meanwhile is in the next value.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import Floats
from xds_server.telemetry.turns import Caller, Turns
from xds_server.telemetry.values import ABSURD, MOST_PER_S, RAW

NODES_KEPT: Final = 10_000
"""Nodes whose last values are remembered; the least recently heard is forgotten, and would
start from a new base."""
CLOCK_STEP_MS: Final = 5_000
"""A message this much older than the one before is not late: a clock was set back."""
GAP_STEPS: Final = 5
"""A step of this many times the one before is a gap."""
DOUBTS_MAX: Final = 3
"""Messages in a row with increments that cannot be true, after which their values are where
counting starts anew."""
SEEN_MAX: Final = 64
"""Messages of one flush that are told apart; more are not looked at for being repeated."""
DUPLICATE: Final = "duplicate"
LATE: Final = "out of order"
TWICE: Final = "node twice"
ABSURD_RATE: Final = "absurd rate"
GAP, RESET, CLOCK = "gap", "reset", "clock"


@dataclass(slots=True)
class Base:
    """The last values of one node; axis 0 (K) is the provider."""

    at_s: float
    names: tuple[ProviderName, ...]
    values: Floats  # (K, counters)
    absent: dict[ProviderName, Floats] = field(default_factory=dict)  # not in the last message
    interval_s: float = math.inf  # between the last two messages
    sent_ms: int = 0  # the newest time stamp
    step_ms: int = 0  # between the last two time stamps
    seen: set[bytes] = field(default_factory=set)  # what was sent at that time
    doubts: int = 0
    absurd: int = 0  # increments of the last message that are not believed
    events: list[str] = field(default_factory=list)  # in the last message
    starting: bool = False  # in the flush that began it, which may come in several messages

    def admit(self, sent_ms: int, first: bytes) -> str:
        """Return why a message is not to be counted, "" if it is.

        ``sent_ms`` is its time stamp, 0 without; ``first`` tells it from others of its flush.
        An older message would look like an Envoy that started anew, and a repeated one has
        its histograms twice.
        """
        self.events = []
        if not sent_ms:
            self.starting = False
            return ""
        step_ms = sent_ms - self.sent_ms
        if step_ms == 0:
            if first in self.seen:
                return DUPLICATE
            if len(self.seen) < SEEN_MAX:
                self.seen.add(first)
            return ""
        if -CLOCK_STEP_MS <= step_ms < 0:
            return LATE
        self.starting = self.starting and not self.sent_ms
        if step_ms < 0:
            self.events.append(CLOCK)
        elif self.step_ms and step_ms > GAP_STEPS * self.step_ms:
            self.events.append(GAP)
        self.step_ms = max(step_ms, 0) if self.sent_ms else 0
        self.sent_ms, self.seen = sent_ms, {first}
        return ""

    def advance(
        self, names: tuple[ProviderName, ...], current: Floats, now_s: float
    ) -> tuple[Floats, float]:
        """Replace the values; return the increments and the seconds that they cover.

        ``current`` is (provider, counter). NaN is a counter that the message does not have:
        it keeps its value. One that was unknown counts from 0: it appears with what it counts
        first; but in the flush that began the base everything is base. When Envoy restarted,
        the time that it was away is not covered. Increments that no Envoy can count in that
        time are 0, and the values before stay, until they come ``DOUBTS_MAX`` times.
        """
        before = self.values if names is self.names else self._realign(names, current.shape[1])
        now = np.where(np.isnan(current), before, current)
        if self.starting:
            self.names, self.values = names, now
            return np.zeros_like(now), max(now_s - self.at_s, 1e-6)
        restarted = now < before
        again = bool(restarted.any())
        elapsed_s = max(now_s - self.at_s, 1e-6)
        covered_s = min(elapsed_s, self.interval_s) if again else elapsed_s
        more = np.where(restarted, now, now - before) if again else now - before
        if again:
            self.events.append(RESET)
        absurd = more > MOST_PER_S * max(covered_s, 1.0)
        if absurd.any():
            more = np.where(absurd, 0.0, more)
            now = self._doubt(absurd, before, now)
        else:
            self.doubts = self.absurd = 0
        self.names, self.values = names, now
        self.at_s, self.interval_s = now_s, covered_s
        return more, covered_s

    def _doubt(self, absurd: NDArray[np.bool_], before: Floats, now: Floats) -> Floats:
        """The values to count on from."""
        self.absurd = int(absurd.sum())
        self.doubts += 1
        if self.doubts >= DOUBTS_MAX:
            self.doubts = 0
            return now
        return np.where(absurd, before, now)

    def _realign(self, names: tuple[ProviderName, ...], columns: int) -> Floats:
        """The last values in another order of providers."""
        known = self.absent | dict(zip(self.names, self.values, strict=True))
        unknown = np.zeros(columns)
        before = np.array([known.get(n, unknown) for n in names]).reshape(len(names), columns)
        self.absent = {n: v for n, v in known.items() if n not in set(names)}
        return before


class Bases:
    """The bases of all nodes, bounded."""

    def __init__(self) -> None:
        self._bases: OrderedDict[NodeId, Base] = OrderedDict()
        self._turns = Turns()

    def turn(self, node_id: NodeId, caller: Caller, agreed_s: float, now_s: float) -> bool:
        """Whether what a caller says is counted: of two Envoys with one id, one is.

        When the turn passes to the other, its next message is the base.
        """
        base = self._bases.get(node_id)
        interval_s = base.interval_s if base is not None and base.interval_s < math.inf else 0.0
        its, anew = self._turns.take(node_id, caller, interval_s, agreed_s, now_s)
        if anew:
            self._bases.pop(node_id, None)
        return its

    def leave(self, node_id: NodeId, caller: Caller) -> None:
        """Give the turn up, since the stream ended."""
        self._turns.leave(node_id, caller)

    def get(self, node_id: NodeId) -> Base | None:
        """Return a node's base, None if it was never heard."""
        base = self._bases.get(node_id)
        if base is not None:
            self._bases.move_to_end(node_id)
        return base

    def start(
        self, node_id: NodeId, names: tuple[ProviderName, ...], current: Floats, now_s: float
    ) -> Base:
        """Remember the first values of a node: what was before them is not ours."""
        base = Base(now_s, names, np.nan_to_num(current), starting=True)
        self.put(node_id, base)
        return base

    def put(self, node_id: NodeId, base: Base) -> None:
        """Count on from a base."""
        self._bases[node_id] = base
        while len(self._bases) > NODES_KEPT:
            self._bases.popitem(last=False)

    def saved(self, now_s: float, heard_within_s: float) -> list[dict[str, Any]]:
        """Return what another process needs to count on, in plain types; ages are in s.

        Of a node that is there twice nothing: who of the two is first there is not known.
        """
        return [
            {
                "node_id": node_id,
                "age_s": now_s - base.at_s,
                "interval_s": base.interval_s if math.isfinite(base.interval_s) else None,
                "sent_ms": base.sent_ms,
                "providers": list(base.names),
                "values": base.values.tolist(),
            }
            for node_id, base in self._bases.items()
            if now_s - base.at_s <= heard_within_s and not self._turns.twice(node_id, now_s)
        ]

    def restore(self, saved: list[dict[str, Any]], now_s: float) -> None:
        """Take over what another process saved. Raises ValueError, KeyError, TypeError."""
        found: dict[NodeId, Base] = {}
        for entry in saved[-NODES_KEPT:]:
            names = tuple(str(name) for name in entry["providers"])
            values = np.array(entry["values"], dtype=np.float64).reshape(len(names), len(RAW))
            if not np.all((values >= 0.0) & (values <= ABSURD)):
                raise ValueError("values that cannot be true")
            interval_s = math.inf if entry["interval_s"] is None else float(entry["interval_s"])
            base = Base(now_s - float(entry["age_s"]), names, values, interval_s=interval_s)
            base.sent_ms = int(entry["sent_ms"])
            found[str(entry["node_id"])] = base
        self._bases.update(found)
