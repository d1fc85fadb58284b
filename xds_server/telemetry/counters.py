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
    """The last values of one node."""

    at_s: float
    values: dict[ProviderName, Floats] = field(default_factory=dict)
    interval_s: float = math.inf  # between the last two messages

    def advance(
        self, current: dict[ProviderName, Floats], now_s: float
    ) -> tuple[dict[ProviderName, Floats], float]:
        """Replace the values; return the increments and the seconds that they cover.

        NaN in ``current`` is a counter that the message does not have: it keeps its value.
        One that was unknown counts from 0: it appears with what it counts first. When Envoy
        restarted, the time that it was away is not covered.
        """
        increments, restarted = {}, False
        for provider, values in current.items():
            before = self.values.get(provider)
            if before is None:
                before = np.zeros_like(values)
            now = np.where(np.isnan(values), before, values)
            restarted = restarted or bool(np.any(now < before))
            increments[provider] = np.where(now >= before, now - before, now)
            self.values[provider] = now
        elapsed_s = max(now_s - self.at_s, 1e-6)
        covered_s = min(elapsed_s, self.interval_s) if restarted else elapsed_s
        self.at_s, self.interval_s = now_s, covered_s
        return increments, covered_s


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

    def start(self, node_id: NodeId, values: dict[ProviderName, Floats], now_s: float) -> None:
        """Remember the first values of a node: what was before them is not ours."""
        known = {p: np.nan_to_num(v) for p, v in values.items()}
        self._bases[node_id] = Base(now_s, known)
        while len(self._bases) > NODES_KEPT:
            self._bases.popitem(last=False)
