"""Which providers a node may not use yet.

A provider that comes to a connected node (a reload added it, or it became a candidate) gets
weight there only when that node itself says that it has healthy hosts for it: Envoy's gauge
``membership_healthy``, which needs the cluster and its endpoints to have arrived. Until then
its weight at that node is 0. What a node starts with is exempt: before it has everything it
does not listen.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import HostsSeen

READY_WAIT_S = 10.0
"""A node that sends no telemetry cannot say what it sees: it is believed after this long."""


@dataclass(slots=True)
class _Node:
    usable: set[ProviderName]
    waiting: dict[ProviderName, float] = field(default_factory=dict)  # since when


class Readiness:
    """All connected nodes; bounded by them and the providers that they have clusters of."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, _Node] = {}

    @property
    def waiting(self) -> tuple[NodeId, ...]:
        """Nodes that wait for any provider."""
        return tuple(n for n, node in self._nodes.items() if node.waiting)

    def masked(self, node_id: NodeId) -> frozenset[ProviderName]:
        """Providers that this node waits for."""
        node = self._nodes.get(node_id)
        return frozenset(node.waiting) if node is not None else frozenset()

    def offer(self, node_id: NodeId, clusters: Iterable[ProviderName], now_s: float) -> None:
        """Say which providers' clusters a node is given now; the first time all are usable."""
        names = set(clusters)
        node = self._nodes.get(node_id)
        if node is None:
            self._nodes[node_id] = _Node(names)
            return
        node.usable &= names
        node.waiting = {p: since_s for p, since_s in node.waiting.items() if p in names}
        for name in names - node.usable - node.waiting.keys():
            node.waiting[name] = now_s

    def see(
        self,
        node_id: NodeId,
        seen: Mapping[ProviderName, HostsSeen],
        telemetry_age_s: float,
        now_s: float,
    ) -> bool:
        """Take in what a node reports; say whether it waits for fewer providers now.

        ``telemetry_age_s`` is inf for a node that never reported.
        """
        node = self._nodes.get(node_id)
        if node is None:
            return False
        mute = math.isinf(telemetry_age_s) or telemetry_age_s > READY_WAIT_S
        ready = [
            p
            for p, since_s in node.waiting.items()
            if (mute and now_s - since_s >= READY_WAIT_S)
            or ((s := seen.get(p)) is not None and s.at_s > since_s and s.healthy > 0.0)
        ]
        for name in ready:
            del node.waiting[name]
            node.usable.add(name)
        return bool(ready)

    def forget(self, node_id: NodeId) -> None:
        """The node is gone."""
        self._nodes.pop(node_id, None)
