"""Cumulative counters to increments.

Envoy counts from its start. An increment is the difference to the message before; a value
below the one before means that Envoy restarted and counts anew, so the value itself is the
increment. Bases are kept per node, not per stream: a stream that breaks loses nothing, since
what happened meanwhile is in the next value.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import Floats

NODES_KEPT: Final = 10_000
"""Nodes whose last values are remembered; the least recently heard is forgotten, and would
start from a new base."""


@dataclass(slots=True)
class Base:
    """The last values of one node; axis 0 (K) is the provider."""

    at_s: float
    names: tuple[ProviderName, ...]
    values: Floats  # (K, counters)
    absent: dict[ProviderName, Floats] = field(default_factory=dict)  # not in the last message
    interval_s: float = math.inf  # between the last two messages

    def advance(
        self, names: tuple[ProviderName, ...], current: Floats, now_s: float
    ) -> tuple[Floats, float]:
        """Replace the values; return the increments and the seconds that they cover.

        ``current`` is (provider, counter). NaN is a counter that the message does not have:
        it keeps its value. One that was unknown counts from 0: it appears with what it counts
        first. When Envoy restarted, the time that it was away is not covered.
        """
        before = self.values if names is self.names else self._realign(names, current.shape[1])
        now = np.where(np.isnan(current), before, current)
        restarted = now < before
        again = bool(restarted.any())
        elapsed_s = max(now_s - self.at_s, 1e-6)
        covered_s = min(elapsed_s, self.interval_s) if again else elapsed_s
        self.names, self.values = names, now
        self.at_s, self.interval_s = now_s, covered_s
        return np.where(restarted, now, now - before) if again else now - before, covered_s

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

    def get(self, node_id: NodeId) -> Base | None:
        """Return a node's base, None if it was never heard."""
        base = self._bases.get(node_id)
        if base is not None:
            self._bases.move_to_end(node_id)
        return base

    def start(
        self, node_id: NodeId, names: tuple[ProviderName, ...], current: Floats, now_s: float
    ) -> None:
        """Remember the first values of a node: what was before them is not ours."""
        self._bases[node_id] = Base(now_s, names, np.nan_to_num(current))
        while len(self._bases) > NODES_KEPT:
            self._bases.popitem(last=False)
