"""What sampled calls say of every (node, provider) pair lately: a ring of slots."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np

from xds_server.model.calls import CALL_BOUNDS_MS, CALL_COLUMNS, CallBatch, CallWindow
from xds_server.model.ids import NodeId, ProviderName

SLOTS: Final = 7
TURNS: Final = 5
"""Ticks of one slot. A sample is thin, so its window is longer than that of counters: the slot
that is being filled and those before it, 30 to 35 ticks."""
MAX_PAIRS: Final = 20_000
"""3.5 KB each."""
TOO_MANY: Final = "too many pairs with sampled calls"
_HIST: Final = len(CALL_BOUNDS_MS) + 1
_CALLS, _READS = CALL_COLUMNS.index("calls"), CALL_COLUMNS.index("reads")


class CallSamples:
    """Ring of ``SLOTS`` slots for at most ``max_pairs`` pairs.

    Rows are allotted when a pair's calls are first heard of and freed when its node leaves;
    beyond the bound new pairs are refused and counted in ``refused``. Nothing queues.
    """

    def __init__(self, refused: Counter[str], *, slot_s: float, max_pairs: int = MAX_PAIRS) -> None:
        """Start empty; ``slot_s`` is a tick."""
        self._refused, self._slot_s, self._max_pairs = refused, slot_s, max_pairs
        self._rows: dict[NodeId, dict[ProviderName, int]] = {}
        self._free: list[int] = []
        self._used = self._now = self._turns = 0
        self._counts = np.zeros((SLOTS, 0, len(CALL_COLUMNS)))
        self._hist = np.zeros((SLOTS, 0, _HIST), dtype=np.float32)
        self._heard_at_s = np.zeros(0)

    def observe(self, batch: CallBatch, now_s: float) -> None:
        """Add one batch to the slot that is being filled."""
        mine = self._rows.setdefault(batch.node_id, {})
        for k, provider in enumerate(batch.providers):
            row = mine.get(provider)
            if row is None:
                row = self._allot()
                if row is None:
                    self._refused[TOO_MANY] += 1
                    continue
                mine[provider] = row
            self._counts[self._now, row] += batch.counts[k]
            self._hist[self._now, row] += batch.latency_hist[k]
            self._heard_at_s[row] = now_s

    def roll(self) -> None:
        """Note that a tick passed."""
        self._turns += 1
        if self._turns % TURNS == 0:
            self._now = (self._now + 1) % SLOTS
            self._counts[self._now] = 0.0
            self._hist[self._now] = 0.0

    def restart(self, slot_s: float) -> None:
        """Forget all calls: ticks have another length."""
        self._slot_s = slot_s
        self._counts[:] = 0.0
        self._hist[:] = 0.0

    def forget(self, node_id: NodeId) -> None:
        """Free a node's rows."""
        for row in self._rows.pop(node_id, {}).values():
            self._release(row)

    def keep_providers(self, providers: Iterable[ProviderName]) -> None:
        """Free the rows of all other providers."""
        known = set(providers)
        for rows in self._rows.values():
            for provider in rows.keys() - known:
                self._release(rows.pop(provider))

    def window(self, now_s: float) -> CallWindow:
        """Sum all slots; the pairs of a node are neighbours, and each has calls."""
        nodes = tuple(self._rows)
        providers = tuple(sorted({p for mine in self._rows.values() for p in mine}))
        column = {name: j for j, name in enumerate(providers)}
        flat = [
            (i, column[p], row)
            for i, node in enumerate(nodes)
            for p, row in self._rows[node].items()
        ]
        node_row, provider_row, rows = np.array(flat, dtype=np.int64).reshape(len(flat), 3).T
        counts = self._counts[:, rows].sum(axis=0)
        heard = counts[:, _CALLS] > 0.0
        rows = rows[heard]
        return CallWindow(
            window_s=SLOTS * TURNS * self._slot_s,
            nodes=nodes,
            providers=providers,
            node_row=node_row[heard],
            provider_row=provider_row[heard],
            counts=counts[heard],
            latency_hist=self._hist[:, rows].sum(axis=0, dtype=np.float64),
            age_s=now_s - self._heard_at_s[rows],
        )

    def by_provider(self, node_id: NodeId) -> dict[ProviderName, float]:
        """Return how many of a node's calls were sampled, of providers with any."""
        rows = self._rows.get(node_id, {})
        sums = {name: self._counts[:, row, _CALLS].sum() for name, row in rows.items()}
        return {name: float(calls) for name, calls in sums.items() if calls}

    def read_ratios(self) -> dict[NodeId, float]:
        """Return the reads by all sampled calls, of the nodes with any."""
        nodes = list(self._rows)
        rows = [row for mine in self._rows.values() for row in mine.values()]
        node = np.repeat(np.arange(len(nodes)), [len(mine) for mine in self._rows.values()])
        calls, reads = (
            np.bincount(node, self._counts[:, rows, column].sum(axis=0), len(nodes)).tolist()
            for column in (_CALLS, _READS)
        )
        known = zip(nodes, calls, reads, strict=True)
        return {name: read / called for name, called, read in known if called}

    def _allot(self) -> int | None:
        if self._free:
            return self._free.pop()
        if self._used >= self._max_pairs:
            return None
        if self._used == self._counts.shape[1]:
            more = min(max(64, self._used), self._max_pairs - self._used)
            empty = np.zeros((SLOTS, more, len(CALL_COLUMNS)))
            self._counts = np.concatenate([self._counts, empty], axis=1)
            hist = np.zeros((SLOTS, more, _HIST), dtype=np.float32)
            self._hist = np.concatenate([self._hist, hist], axis=1)
            self._heard_at_s = np.append(self._heard_at_s, np.zeros(more))
        self._used += 1
        return self._used - 1

    def _release(self, row: int) -> None:
        self._counts[:, row] = 0.0
        self._hist[:, row] = 0.0
        self._free.append(row)
