"""Cumulative counters to increments.

Envoy counts from its start. An increment is the difference to the message before; a value
below the one before means that Envoy restarted and counts anew, so the value itself is the
increment. Bases are kept per node, not per stream: a stream that breaks loses nothing, since
what happened meanwhile is in the next value.
"""

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

    def advance(
        self, current: dict[ProviderName, Floats], now_s: float
    ) -> dict[ProviderName, Floats]:
        """Replace the values; return the increments of what was known before.

        A provider that was unknown counts from 0: its statistics appear with its first
        request.
        """
        increments = {}
        for provider, values in current.items():
            before = self.values.get(provider)
            if before is None:
                increments[provider] = values
            else:
                increments[provider] = np.where(values >= before, values - before, values)
        self.values.update(current)
        self.at_s = now_s
        return increments


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
        self._bases[node_id] = Base(now_s, dict(values))
        while len(self._bases) > NODES_KEPT:
            self._bases.popitem(last=False)
