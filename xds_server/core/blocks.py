"""Pairs by connected component: no route of one block can use a provider of another.

A provider belongs to one service and a route to one service, so the pairs of a mesh fall apart
into blocks, and inside of one nearly every route may use nearly every provider. Blocks of about
the same shape are laid out as one dense (K, B, N) array: K providers by B blocks by N routes, the
routes side by side in memory. On that, what is sparse elsewhere is a sum along an axis. What is
not dense (a provider shared by routes that have little else in common) is left as pairs.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from xds_server.core.tables import Bools, Ints, Pairs

PROVIDERS_MAX = 64
"""More providers than this make no dense block: the cost of its Hessian grows with the square."""
FILLED_RATIO = 0.25
"""A block is dense where at least this part of routes times providers are pairs."""
CELLS = 1 << 16
"""Cells of one array, as long as one block has no more: what is worked on stays in the cache."""
WASTE_RATIO = 0.25
"""Cells that may be empty because blocks differ in shape, beyond ``WASTE_CELLS``."""
WASTE_CELLS = 1 << 12


@dataclass(frozen=True, slots=True)
class Dense:
    """Blocks of about the same shape. A cell without a pair has that of another, and no mark."""

    pair: Ints  # (K, B, N)
    present: Bools  # (K, B, N)
    route: Ints  # (B, N) 0 where there is none
    routed: Bools  # (B, N)
    provider: Ints  # (K, B) 0 where there is none
    provided: Bools  # (K, B)
    own_pair: Ints  # (M,) pairs of these blocks, and
    own_cell: Ints  # (M,) where each lies in the flattened array


@dataclass(frozen=True, slots=True)
class Sparse:
    """All blocks that are not dense, as pairs of their own; rows count from 0 there."""

    pairs: Pairs
    own_pair: Ints  # (M,) row of each in the pairs of the mesh
    route: Ints  # (R',) likewise
    provider: Ints  # (J',)


@dataclass(frozen=True, slots=True)
class Blocks:
    """All pairs, each in exactly one of these."""

    dense: tuple[Dense, ...]
    sparse: Sparse | None


def blocks_of(pairs: Pairs) -> Blocks:
    """Return the blocks; found once for every ``Pairs`` and kept with it."""
    found = pairs.kept.get(Blocks)
    if not isinstance(found, Blocks):
        # Two threads that ask at once find the same.
        found = pairs.kept[Blocks] = _find(pairs)
    return found


@dataclass(frozen=True, slots=True)
class _Members:
    """Rows of one kind by block."""

    order: Ints  # rows, block by block
    ends: Ints  # (C + 1,) where each block's begin
    rank: Ints  # of every row, its place in its block

    def of(self, blocks: Ints) -> tuple[Ints, Ints]:
        """Return the rows of some blocks, and for each of them which of ``blocks`` it is in."""
        spans = [self.order[self.ends[c] : self.ends[c + 1]] for c in blocks.tolist()]
        return np.concatenate(spans), np.repeat(np.arange(len(blocks)), self.counts[blocks])

    @property
    def counts(self) -> Ints:
        """(C,) rows of each block."""
        return np.diff(self.ends)


def _members(block: Ints, blocks: int) -> _Members:
    """Sort rows by their block; those of block -1 belong to none."""
    order = np.argsort(block, kind="stable").astype(np.int64)
    ends = np.searchsorted(block[order], np.arange(blocks + 1)).astype(np.int64)
    rank = np.zeros(len(block), dtype=np.int64)
    of = block[order[ends[0] :]]
    rank[order[ends[0] :]] = np.arange(ends[0], len(block)) - ends[of]
    return _Members(order, ends, rank)


@dataclass(frozen=True, slots=True)
class _Map:
    """Which rows belong to which block."""

    routes: _Members
    providers: _Members
    pairs: _Members


def _find(pairs: Pairs) -> Blocks:
    if pairs.routes == 0:
        return Blocks((), None)
    found = _map(pairs)
    providers, cells = found.providers.counts, found.providers.counts * found.routes.counts
    dense = (providers <= PROVIDERS_MAX) & (found.pairs.counts >= FILLED_RATIO * cells)
    rest = np.flatnonzero(~dense)
    return Blocks(
        tuple(_lay_out(pairs, found, chosen) for chosen in _alike(found, dense)),
        _sparse(pairs, found, rest) if len(rest) else None,
    )


def _map(pairs: Pairs) -> _Map:
    size = pairs.routes + pairs.providers
    edges = csr_array(
        (np.ones(len(pairs.route)), (pairs.route, pairs.routes + pairs.provider)),
        shape=(size, size),
    )
    _, label = connected_components(edges, directed=False)
    kept, of_route = np.unique(label[: pairs.routes], return_inverse=True)
    number = np.full(size, -1, dtype=np.int64)  # no route may use the provider
    number[kept] = np.arange(len(kept))
    blocks = len(kept)
    return _Map(
        _members(of_route, blocks),
        _members(number[label[pairs.routes :]], blocks),
        _members(of_route[pairs.route], blocks),
    )


def _alike(found: _Map, dense: Bools) -> list[Ints]:
    """Put dense blocks together that fill one array well and do not make it too large."""
    providers, routes = found.providers.counts, found.routes.counts
    order = np.lexsort((-routes, -providers))
    groups: list[list[int]] = []
    k = n = filled = 0
    for block in order[dense[order]].tolist():
        mine = int(providers[block]), int(routes[block])
        filled += mine[0] * mine[1]
        wide, long = max(k, mine[0]), max(n, mine[1])
        cells = wide * long * (len(groups[-1]) + 1 if groups else 1)
        wasted = cells - filled > max(WASTE_CELLS, WASTE_RATIO * cells)
        if not groups or cells > CELLS or wasted:
            groups.append([])
            wide, long = mine
            filled = wide * long
        groups[-1].append(block)
        k, n = wide, long
    return [np.array(group, dtype=np.int64) for group in groups]


def _lay_out(pairs: Pairs, found: _Map, chosen: Ints) -> Dense:
    """One array for the ``chosen`` blocks."""
    providers, block_p = found.providers.of(chosen)
    routes, block_r = found.routes.of(chosen)
    mine, block = found.pairs.of(chosen)
    row_p, row_r = found.providers.rank, found.routes.rank
    shape = k, b, n = int(row_p[providers].max()) + 1, len(chosen), int(row_r[routes].max()) + 1
    provider, provided = np.zeros((k, b), dtype=np.int64), np.zeros((k, b), dtype=bool)
    provider[row_p[providers], block_p], provided[row_p[providers], block_p] = providers, True
    route, routed = np.zeros((b, n), dtype=np.int64), np.zeros((b, n), dtype=bool)
    route[block_r, row_r[routes]], routed[block_r, row_r[routes]] = routes, True
    cell = np.ravel_multi_index(
        (row_p[pairs.provider[mine]], block, row_r[pairs.route[mine]]), shape
    )
    pair, present = np.full(k * b * n, mine[0]), np.zeros(k * b * n, dtype=bool)
    pair[cell], present[cell] = mine, True
    return Dense(
        pair.reshape(shape), present.reshape(shape), route, routed, provider, provided, mine, cell
    )


def _sparse(pairs: Pairs, found: _Map, chosen: Ints) -> Sparse:
    """Pairs of the ``chosen`` blocks, in the order of the mesh."""
    mine = np.sort(found.pairs.of(chosen)[0])
    routes, row_r = np.unique(pairs.route[mine], return_inverse=True)
    providers, row_p = np.unique(pairs.provider[mine], return_inverse=True)
    return Sparse(Pairs(row_r, row_p, len(routes), len(providers)), mine, routes, providers)


@dataclass(frozen=True, slots=True)
class Kin:
    """Providers of the same block: the same routes may use them, so they do the same work."""

    block: Ints  # (J,) number of the provider's block; -1 where no route may use it


def kin_of(pairs: Pairs) -> Kin:
    """Return it; found once for every ``Pairs`` and kept with it."""
    found = pairs.kept.get(Kin)
    if not isinstance(found, Kin):
        block = np.full(pairs.providers, -1, dtype=np.int64)
        if pairs.routes:
            members = _map(pairs).providers
            block[members.order[members.ends[0] :]] = np.repeat(
                np.arange(len(members.counts)), members.counts
            )
        found = pairs.kept[Kin] = Kin(block)
    return found
