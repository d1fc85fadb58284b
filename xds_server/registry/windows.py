"""What every (node, provider) pair did lately: a ring of slots over struct-of-arrays."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from xds_server.model.history import SlotTables
from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import (
    COUNTERS,
    LATENCY_BUCKETS_MS,
    Ints,
    PairWindow,
    SampleBatch,
)

_F = TypeVar("_F", np.float32, np.float64)
_HIST: Final = len(LATENCY_BUCKETS_MS) + 1
# Columns of the slot table: COUNTERS first, in their order.
_LATENCY, _ACTIVE, _MESSAGES, _COVERED = range(len(COUNTERS), len(COUNTERS) + 4)
_COLUMNS: Final = len(COUNTERS) + 4
_NO_ROWS: Final = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Index:
    """Which row of the tables belongs to which pair, node by node."""

    nodes: tuple[NodeId, ...]
    providers: tuple[ProviderName, ...]
    node_row: Ints  # (P,)
    provider_row: Ints  # (P,)
    rows: Ints  # (P,)

    @classmethod
    def of(cls, rows: Mapping[NodeId, Mapping[ProviderName, int]]) -> "_Index":
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


class PairWindows:
    """Ring of ``slots`` periods for at most ``max_pairs`` pairs.

    Rows are allotted when a pair is first heard and freed when its node leaves; beyond the
    bound new pairs are refused and counted, those that have a row are not touched. Reports
    go straight into arrays, so there is no queue to lose anything from.
    """

    def __init__(self, *, slot_s: float, slots: int, max_pairs: int) -> None:
        self.slot_s, self._slots, self._max_pairs = slot_s, slots, max_pairs
        self.refused: Counter[str] = Counter()
        self._rows: dict[NodeId, dict[ProviderName, int]] = {}
        self._index: _Index | None = None  # of ``_rows``, until they change
        # A node's rows in the order of its last batch: messages repeat their providers.
        self._last: dict[NodeId, tuple[tuple[ProviderName, ...], Ints]] = {}
        self._free: list[int] = []
        self._used = 0
        self._now = 0  # slot that is being filled
        self._table = np.zeros((slots, 0, _COLUMNS))
        self._hist = np.zeros((slots, 0, _HIST), dtype=np.float32)
        self._seen_at_s = np.zeros(0)

    @property
    def pairs(self) -> int:
        """Rows in use."""
        return self._used - len(self._free)

    def restart(self, slot_s: float) -> None:
        """Begin anew with slots of another length."""
        self.slot_s = slot_s
        self._table[:] = 0.0
        self._hist[:] = 0.0

    def roll(self) -> None:
        """Complete the slot that is being filled and begin the next, dropping the oldest."""
        self._now = (self._now + 1) % self._slots
        self._table[self._now] = 0.0
        self._hist[self._now] = 0.0

    def observe(self, batch: SampleBatch, now_s: float) -> None:
        """Add one batch to the slot that is being filled."""
        rows = self._rows_of(batch.node_id, batch.providers)
        more = np.empty((len(rows), _COLUMNS))
        more[:, : len(COUNTERS)] = batch.counts
        more[:, _LATENCY] = batch.latency_sum_s
        more[:, _ACTIVE] = batch.active
        more[:, _MESSAGES] = 1.0
        more[:, _COVERED] = batch.covered_s
        hist = batch.latency_hist
        if len(rows) and rows.min() < 0:
            kept = rows >= 0
            rows, more, hist = rows[kept], more[kept], hist[kept]
        self._table[self._now, rows] += more
        self._hist[self._now, rows] += hist
        self._seen_at_s[rows] = now_s

    def forget(self, node_id: NodeId) -> None:
        """Free a node's rows."""
        self._index = None
        self._last.pop(node_id, None)
        rows = self._rows.pop(node_id, {})
        for row in rows.values():
            self._table[:, row] = 0.0
            self._hist[:, row] = 0.0
            self._free.append(row)

    def keep_providers(self, providers: Iterable[ProviderName]) -> None:
        """Free the rows of all other providers."""
        self._index = None
        self._last.clear()
        known = set(providers)
        for rows in self._rows.values():
            for provider in rows.keys() - known:
                row = rows.pop(provider)
                self._table[:, row] = 0.0
                self._hist[:, row] = 0.0
                self._free.append(row)

    def window(self, now_s: float, slots: int) -> PairWindow:
        """Sum the newest ``slots`` completed slots; the pairs of a node are neighbours."""
        index = self._index = self._index or _Index.of(self._rows)
        rows = index.rows
        chosen = [(self._now - 1 - k) % self._slots for k in range(min(slots, self._slots - 1))]
        table = np.zeros((len(rows), _COLUMNS))
        hist = np.zeros((len(rows), _HIST))
        for slot in chosen:
            table += self._table[slot, rows]
            hist += self._hist[slot, rows]
        return PairWindow(
            window_s=len(chosen) * self.slot_s,
            nodes=index.nodes,
            providers=index.providers,
            node_row=index.node_row,
            provider_row=index.provider_row,
            covered_s=table[:, _COVERED],
            requests=table[:, 0],
            errors=table[:, 1],
            latency_sum_s=table[:, _LATENCY],
            latency_count=hist.sum(axis=1),
            latency_hist=hist,
            active=table[:, _ACTIVE] / np.maximum(table[:, _MESSAGES], 1.0),
            rx_bytes=table[:, 2],
            tx_bytes=table[:, 3],
            age_s=now_s - self._seen_at_s[rows],
            recent_requests=self._table[chosen[0], rows, 0],
            recent_covered_s=self._table[chosen[0], rows, _COVERED],
        )

    def newest(self) -> SlotTables:
        """Copy the newest completed slot, rows that are not in use included."""
        index = self._index = self._index or _Index.of(self._rows)
        slot = (self._now - 1) % self._slots
        return SlotTables(
            nodes=index.nodes,
            providers=index.providers,
            node_row=index.node_row,
            provider_row=index.provider_row,
            rows=index.rows,
            table=self._table[slot, : self._used].copy(),
            hist=self._hist[slot, : self._used].copy(),
        )

    def _rows_of(self, node_id: NodeId, providers: tuple[ProviderName, ...]) -> Ints:
        names, rows = self._last.get(node_id, ((), _NO_ROWS))
        if names is providers:
            return rows
        mine = self._rows.setdefault(node_id, {})
        rows = np.array([mine.get(p, -1) for p in providers], dtype=np.int64)
        for k in np.flatnonzero(rows < 0):
            self._index = None
            rows[k] = self._allot()
            if rows[k] >= 0:
                mine[providers[k]] = int(rows[k])
            else:
                self.refused["too many pairs"] += 1
        if len(rows) and rows.min() >= 0:
            self._last[node_id] = (providers, rows)
        return rows

    def _allot(self) -> int:
        if self._free:
            return self._free.pop()
        if self._used >= self._max_pairs:
            return -1
        if self._used == self._table.shape[1]:
            self._grow()
        self._used += 1
        return self._used - 1

    def _grow(self) -> None:
        more = min(max(64, self._used), self._max_pairs - self._used)
        self._table = _padded(self._table, more)
        self._hist = _padded(self._hist, more)
        self._seen_at_s = np.append(self._seen_at_s, np.zeros(more))


def _padded(array: NDArray[_F], more: int) -> NDArray[_F]:
    zeros = np.zeros((array.shape[0], more, array.shape[2]), dtype=array.dtype)
    return np.concatenate([array, zeros], axis=1)
