"""From what every (node, provider) pair reported to providers and to groups' pairs."""

from dataclasses import dataclass

import numpy as np

from xds_server.core.tables import Floats, Ints
from xds_server.model.history import SLOT_COLUMNS, Frame, SlotTables

_REQUESTS, _ERRORS, _LATENCY, _ACTIVE, _MESSAGES = (
    SLOT_COLUMNS.index(name)
    for name in ("requests", "errors", "latency_sum_s", "active", "messages")
)


@dataclass(frozen=True, slots=True)
class Counted:
    """One slot, aggregated; axis 0 is the provider or the pair."""

    sums: Floats  # (N, 4) as schema.COUNT_SUMS
    in_flight: Floats  # (N,)
    hist: Floats  # (N, B + 1)


class Joins:
    """Finds which pair and provider each row of a slot belongs to.

    Remembers the last answer: names of rows change far less often than numbers.
    """

    def __init__(self) -> None:
        self._frame: Frame | None = None
        self._rows: Ints | None = None
        self._found: tuple[Ints, Ints] = (np.empty(0, np.int64), np.empty(0, np.int64))

    def find(self, frame: Frame, slot: SlotTables) -> tuple[Ints, Ints]:
        """(S,) row of the pair and (S,) of the provider; -1 where there is none."""
        if frame is not self._frame or slot.rows is not self._rows:
            self._frame, self._rows = frame, slot.rows
            self._found = _join(frame, slot)
        return self._found


def _join(frame: Frame, slot: SlotTables) -> tuple[Ints, Ints]:
    row_of = {name: j for j, name in enumerate(frame.providers)}
    by_name = np.array([row_of.get(name, -1) for name in slot.providers], dtype=np.int64)
    by_node = np.array([frame.group_of_node.get(n, -1) for n in slot.nodes], dtype=np.int64)
    if len(slot.rows) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    provider, group = by_name[slot.provider_row], by_node[slot.node_row]
    group_row = {key: i for i, key in enumerate(frame.groups)}
    group_of_route = np.array([group_row[r.group] for r in frame.routes], dtype=np.int64)
    width = len(frame.providers)
    pair_at = np.full(len(frame.groups) * width + 1, -1, dtype=np.int64)
    if len(frame.routes):
        pair_at[group_of_route[frame.pair_route] * width + frame.pair_provider] = np.arange(
            len(frame.pair_route)
        )
    known = (provider >= 0) & (group >= 0)
    return np.where(known, pair_at[np.where(known, group * width + provider, 0)], -1), provider


def count(slot: SlotTables, rows: Ints, size: int) -> Counted:
    """Add up a slot's rows by the row of the provider or pair that they belong to.

    Parameters
    ----------
    rows : (S,) index below ``size``, -1: count it nowhere
    """
    chosen = rows >= 0
    at, rows = slot.rows[chosen], rows[chosen]
    table, hist = slot.table[at], slot.hist[at]
    active = table[:, _ACTIVE] / np.maximum(table[:, _MESSAGES], 1.0)

    def total(values: np.ndarray) -> Floats:
        summed: Floats = np.bincount(rows, values, size)[:size].astype(np.float64, copy=False)
        return summed

    merged = np.column_stack([total(column) for column in hist.T])
    return Counted(
        sums=np.column_stack(
            [
                total(table[:, _REQUESTS]),
                total(table[:, _ERRORS]),
                total(table[:, _LATENCY]),
                merged.sum(axis=1),
            ]
        ),
        in_flight=total(active),
        hist=merged,
    )
