"""What every (node, provider) pair did lately: a ring of slots over struct-of-arrays."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np

from xds_server.model.history import SlotTables
from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import (
    COUNTERS,
    LATENCY_BUCKETS_MS,
    Ints,
    PairWindow,
    SampleBatch,
)
from xds_server.registry.pairs import PairRows, padded

_HIST: Final = len(LATENCY_BUCKETS_MS) + 1
# Columns of the slot table: COUNTERS first, in their order.
_LATENCY, _ACTIVE, _MESSAGES, _COVERED = range(len(COUNTERS), len(COUNTERS) + 4)
_COLUMNS: Final = len(COUNTERS) + 4
_NO_ROWS: Final = np.empty(0, dtype=np.int64)


class PairWindows:
    """Ring of ``slots`` periods for at most ``max_pairs`` pairs.

    Beyond the bound new pairs are refused and counted. Reports go straight into arrays, so
    there is no queue to lose anything from.
    """

    def __init__(self, *, slot_s: float, slots: int, max_pairs: int) -> None:
        self.slot_s, self._slots = slot_s, slots
        self.refused: Counter[str] = Counter()
        self._pairs = PairRows(max_pairs)
        # A node's rows in the order of its last batch: messages repeat their providers.
        self._last: dict[NodeId, tuple[tuple[ProviderName, ...], Ints]] = {}
        self._now = 0  # slot that is being filled
        self._table = np.zeros((slots, 0, _COLUMNS))
        self._hist = np.zeros((slots, 0, _HIST), dtype=np.float32)
        self._seen_at_s = np.zeros(0)

    @property
    def pairs(self) -> int:
        """Rows in use."""
        return self._pairs.pairs

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
        self._last.pop(node_id, None)
        self._clear(self._pairs.forget(node_id))

    def keep_providers(self, providers: Iterable[ProviderName]) -> None:
        """Free the rows of all other providers."""
        self._last.clear()
        self._clear(self._pairs.keep_providers(providers))

    def window(self, now_s: float, slots: int) -> PairWindow:
        """Sum the newest ``slots`` completed slots; the pairs of a node are neighbours."""
        index = self._pairs.index()
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
        index = self._pairs.index()
        slot = (self._now - 1) % self._slots
        return SlotTables(
            nodes=index.nodes,
            providers=index.providers,
            node_row=index.node_row,
            provider_row=index.provider_row,
            rows=index.rows,
            table=self._table[slot, : self._pairs.used].copy(),
            hist=self._hist[slot, : self._pairs.used].copy(),
        )

    def _rows_of(self, node_id: NodeId, providers: tuple[ProviderName, ...]) -> Ints:
        names, rows = self._last.get(node_id, ((), _NO_ROWS))
        if names is providers:
            return rows
        rows = self._pairs.allot(node_id, providers)
        if more := self._pairs.missing(self._table.shape[1]):
            self._table, self._hist = padded(self._table, more), padded(self._hist, more)
            self._seen_at_s = np.append(self._seen_at_s, np.zeros(more))
        if beyond := int((rows < 0).sum()):
            self.refused["too many pairs"] += beyond
        elif len(rows):
            self._last[node_id] = (providers, rows)
        return rows

    def _clear(self, rows: list[int]) -> None:
        self._table[:, rows] = 0.0
        self._hist[:, rows] = 0.0
