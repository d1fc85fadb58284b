"""What sampled calls say of every (node, provider) pair lately: a ring of slots."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np

from xds_server.model.calls import CALL_BOUNDS_MS, CALL_COLUMNS, CallBatch, CallWindow
from xds_server.model.ids import NodeId, ProviderName
from xds_server.registry.pairs import PairRows, padded

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

    Beyond the bound new pairs are refused and counted in ``refused``. Nothing queues.
    """

    def __init__(self, refused: Counter[str], *, slot_s: float, max_pairs: int = MAX_PAIRS) -> None:
        """Start empty; ``slot_s`` is a tick."""
        self._refused, self._slot_s = refused, slot_s
        self._pairs = PairRows(max_pairs)
        self._now = self._turns = 0
        self._counts = np.zeros((SLOTS, 0, len(CALL_COLUMNS)))
        self._hist = np.zeros((SLOTS, 0, _HIST), dtype=np.float32)
        self._heard_at_s = np.zeros(0)

    def observe(self, batch: CallBatch, now_s: float) -> None:
        """Add one batch to the slot that is being filled."""
        rows = self._pairs.allot(batch.node_id, batch.providers)
        if more := self._pairs.missing(self._counts.shape[1]):
            self._counts, self._hist = padded(self._counts, more), padded(self._hist, more)
            self._heard_at_s = np.append(self._heard_at_s, np.zeros(more))
        kept = rows >= 0
        if beyond := int((~kept).sum()):
            self._refused[TOO_MANY] += beyond
        self._counts[self._now, rows[kept]] += batch.counts[kept]
        self._hist[self._now, rows[kept]] += batch.latency_hist[kept]
        self._heard_at_s[rows[kept]] = now_s

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
        self._clear(self._pairs.forget(node_id))

    def keep_providers(self, providers: Iterable[ProviderName]) -> None:
        """Free the rows of all other providers."""
        self._clear(self._pairs.keep_providers(providers))

    def window(self, now_s: float) -> CallWindow:
        """Sum all slots; the pairs of a node are neighbours, and each has calls."""
        index = self._pairs.index()
        rows = index.rows
        counts = self._counts[:, rows].sum(axis=0)
        heard = counts[:, _CALLS] > 0.0
        rows = rows[heard]
        return CallWindow(
            window_s=SLOTS * TURNS * self._slot_s,
            nodes=index.nodes,
            providers=index.providers,
            node_row=index.node_row[heard],
            provider_row=index.provider_row[heard],
            counts=counts[heard],
            latency_hist=self._hist[:, rows].sum(axis=0, dtype=np.float64),
            age_s=now_s - self._heard_at_s[rows],
        )

    def by_provider(self, node_id: NodeId) -> dict[ProviderName, float]:
        """Return how many of a node's calls were sampled, of providers with any."""
        rows = self._pairs.of(node_id)
        sums = {name: self._counts[:, row, _CALLS].sum() for name, row in rows.items()}
        return {name: float(calls) for name, calls in sums.items() if calls}

    def read_ratios(self) -> dict[NodeId, float]:
        """Return the reads by all sampled calls, of the nodes with any."""
        index = self._pairs.index()
        calls, reads = (
            np.bincount(
                index.node_row,
                self._counts[:, index.rows, column].sum(axis=0),
                len(index.nodes),
            ).tolist()
            for column in (_CALLS, _READS)
        )
        known = zip(index.nodes, calls, reads, strict=True)
        return {name: read / called for name, called, read in known if called}

    def _clear(self, rows: list[int]) -> None:
        self._counts[:, rows] = 0.0
        self._hist[:, rows] = 0.0
