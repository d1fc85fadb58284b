"""Which row of a window's tables belongs to which (node, provider) pair."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import Ints

_F = TypeVar("_F", np.float32, np.float64)


@dataclass(frozen=True, slots=True)
class Index:
    """All pairs (P), node by node."""

    nodes: tuple[NodeId, ...]
    providers: tuple[ProviderName, ...]
    node_row: Ints  # (P,)
    provider_row: Ints  # (P,)
    rows: Ints  # (P,)

    @classmethod
    def of(cls, rows: Mapping[NodeId, Mapping[ProviderName, int]]) -> "Index":
        """Number nodes as they come and providers by name."""
        nodes = tuple(rows)
        providers = tuple(sorted({p for mine in rows.values() for p in mine}))
        provider_row = {name: i for i, name in enumerate(providers)}
        flat = [
            (i, provider_row[p], row)
            for i, node in enumerate(nodes)
            for p, row in rows[node].items()
        ]
        columns = np.array(flat, dtype=np.int64).reshape(len(flat), 3).T.copy()
        columns.flags.writeable = False  # shared by windows
        return cls(nodes, providers, *columns)


class PairRows:
    """At most ``max_pairs`` rows.

    One is allotted when its pair is first heard, and freed when its node or its provider
    leaves; who frees it clears it. Beyond the bound none is, and those that have one keep it.
    """

    def __init__(self, max_pairs: int) -> None:
        self._max_pairs = max_pairs
        self._of: dict[NodeId, dict[ProviderName, int]] = {}
        self._free: list[int] = []
        self._index: Index | None = None  # of ``_of``, until it changes
        self.used = 0  # rows that ever were, from 0 on

    @property
    def pairs(self) -> int:
        """Rows in use."""
        return self.used - len(self._free)

    def of(self, node_id: NodeId) -> Mapping[ProviderName, int]:
        """Return a node's rows."""
        return self._of.get(node_id, {})

    def allot(self, node_id: NodeId, providers: tuple[ProviderName, ...]) -> Ints:
        """Return the row of each pair, -1 beyond the bound; providers are each named once."""
        mine = self._of.setdefault(node_id, {})
        rows = np.array([mine.get(p, -1) for p in providers], dtype=np.int64)
        for k in np.flatnonzero(rows < 0):
            self._index = None
            rows[k] = self._next()
            if rows[k] >= 0:
                mine[providers[k]] = int(rows[k])
        return rows

    def missing(self, allotted: int) -> int:
        """Return how many rows tables with so many lack; they grow by doubling."""
        if self.used <= allotted:
            return 0
        more = max(64, allotted, self.used - allotted)
        return min(more, self._max_pairs - allotted)

    def forget(self, node_id: NodeId) -> list[int]:
        """Free a node's rows, and return them."""
        return self._freed(list(self._of.pop(node_id, {}).values()))

    def keep_providers(self, providers: Iterable[ProviderName]) -> list[int]:
        """Free the rows of all other providers, and return them."""
        known = set(providers)
        return self._freed(
            [mine.pop(gone) for mine in self._of.values() for gone in mine.keys() - known]
        )

    def index(self) -> Index:
        """Return all pairs."""
        if self._index is None:
            self._index = Index.of(self._of)
        return self._index

    def _next(self) -> int:
        if self._free:
            return self._free.pop()
        if self.used >= self._max_pairs:
            return -1
        self.used += 1
        return self.used - 1

    def _freed(self, rows: list[int]) -> list[int]:
        self._index = None
        self._free += rows
        return rows


def padded(array: NDArray[_F], more: int) -> NDArray[_F]:
    """Return a table (slots, rows, columns) with more rows of zeros."""
    zeros = np.zeros((array.shape[0], more, array.shape[2]), dtype=array.dtype)
    return np.concatenate([array, zeros], axis=1)
