"""How many requests a second every provider ended, as load reports count them.

A report counts over the very interval in which its endpoints said how busy they were; a rate of
any other time would make another capacity of it.
"""

import math
from collections.abc import Iterable

from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import LoadReport

_Ended = tuple[float, float, float]  # succeeded, failed, 1/s; requests behind both
_NONE: _Ended = (math.nan,) * 3


class EndedRates:
    """The newest report of each node, and its sums by provider.

    Bounded by the pairs of connected nodes and the providers of mesh.yaml.
    """

    def __init__(self) -> None:
        self._of: dict[NodeId, tuple[float, dict[ProviderName, _Ended]]] = {}
        self._sum: dict[ProviderName, tuple[int, _Ended]] = {}  # nodes, and their sums

    def take(self, node_id: NodeId, reports: Iterable[LoadReport], now_s: float) -> None:
        """Replace what a node said before, whole: a provider it is silent about ended nothing."""
        self.forget(node_id)
        mine = {
            r.provider: (
                r.succeeded_rps,
                r.failed_rps,
                r.interval_s * (r.succeeded_rps + r.failed_rps),
            )
            for r in reports
            if math.isfinite(r.succeeded_rps + r.failed_rps + r.interval_s)
        }
        self._of[node_id] = (now_s, mine)
        self._add(mine, 1)

    def forget(self, node_id: NodeId) -> None:
        """It has gone."""
        _, mine = self._of.pop(node_id, (0.0, {}))
        self._add(mine, -1)

    def expire(self, before_s: float) -> None:
        """Forget the nodes whose newest report is older."""
        for node_id in [n for n, (at_s, _) in self._of.items() if at_s < before_s]:
            self.forget(node_id)

    def of(self, provider: ProviderName) -> _Ended:
        """Return rates and count over all nodes; NaN where none counts them."""
        found = self._sum.get(provider)
        if found is None:
            return _NONE
        succeeded, failed, count = found[1]
        return max(succeeded, 0.0), max(failed, 0.0), max(count, 0.0)

    def _add(self, ended: dict[ProviderName, _Ended], sign: int) -> None:
        for provider, new in ended.items():
            nodes, sums = self._sum.get(provider, (0, (0.0, 0.0, 0.0)))
            if nodes + sign == 0:  # sums begin anew, so that rounding errors do not add up
                del self._sum[provider]
            else:
                (a, b, c), (x, y, z) = sums, new
                self._sum[provider] = nodes + sign, (a + sign * x, b + sign * y, c + sign * z)
