"""Routes and providers as one sparse matrix in CSR form."""

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which provider may serve which route: one row per pair, sorted by route.

    Every route has at least one pair. Takes ownership of the arrays it is given.
    """

    route: Ints  # (P,) row of the route, ascending, 0..R-1 without gaps
    provider: Ints  # (P,) row of the provider, 0..J-1
    routes: int  # R
    providers: int  # J
    starts: Ints = field(init=False, repr=False, compare=False)  # (R,) first pair of each route
    kept: dict[type, object] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What others found out about these pairs once and for all, by its type."""

    def __post_init__(self) -> None:
        if self.route.shape != self.provider.shape or self.route.ndim != 1:
            raise ValueError(f"shapes differ: {self.route.shape}, {self.provider.shape}")
        steps = np.diff(self.route, prepend=-1, append=self.routes)
        if np.any(steps[:-1] < 0) or np.any(steps > 1):
            raise ValueError("pairs must be sorted by route, and every route needs one")
        starts = np.flatnonzero(steps[:-1]).astype(np.int64)
        object.__setattr__(self, "starts", starts)
        for column in (self.route, self.provider, starts):
            column.flags.writeable = False

    def sum_by_route(self, values: Floats | Ints) -> Floats:
        """(P,) -> (R,)."""
        if self.routes == 0:
            return np.empty(0)
        # Rows are sorted by route, so no row number has to be read.
        total: Floats = np.add.reduceat(values, self.starts)
        return total

    def sums_by_route(self, weights: Floats, *by_provider: Floats) -> list[Floats]:
        """For each (J,) column the (R,) sums of ``weights`` (P,) times it: products by a matrix.

        That is as dear as one sum by route, and the column is not spread over the pairs.
        """
        if self.routes == 0:
            return [np.empty(0) for _ in by_provider]
        matrix = self.matrix(weights)
        return [matrix @ column for column in by_provider]

    def matrix(self, values: Floats) -> csr_array:
        """(P,) -> (R, J), sparse: pairs are in its order already."""
        rows = self._rows()
        shape = (self.routes, self.providers)
        return csr_array((values, rows.provider, rows.ends), shape=shape, copy=False)

    def _rows(self) -> "_Rows":
        """Return what matrices of these pairs have in common."""
        found = self.kept.get(_Rows)
        if not isinstance(found, _Rows):
            count = len(self.route)
            ends = np.append(self.starts, count).astype(np.int32)
            itself = np.arange(count, dtype=np.int32)
            found = self.kept[_Rows] = _Rows(self.provider.astype(np.int32), itself, ends)
        return found

    def weigh_by_route(self, weights: Floats, *columns: Floats) -> list[Floats]:
        """For each (P,) column the (R,) sums of ``weights`` (P,) times it, in one pass each."""
        if self.routes == 0:
            return [np.empty(0) for _ in columns]
        pairs = len(self.route)
        rows = self._rows()
        matrix = csr_array((weights, rows.itself, rows.ends), shape=(self.routes, pairs))
        return [matrix @ column for column in columns]

    def loads(self, shares: Floats, demand_rps: Floats) -> Floats:
        """(J,) what providers get of the demand (R,) of routes with these shares (P,)."""
        if self.routes == 0:
            return np.zeros(self.providers)
        total: Floats = self.matrix(shares).T @ demand_rps
        return total

    def sum_by_provider(self, values: Floats) -> Floats:
        """(P,) -> (J,)."""
        total: Floats = np.bincount(self.provider, values, self.providers).astype(
            np.float64, copy=False
        )
        return total

    def any_by_route(self, flags: Bools) -> Bools:
        """(P,) -> (R,)."""
        if self.routes == 0:
            return np.empty(0, dtype=bool)
        some: Bools = np.logical_or.reduceat(flags, self.starts)
        return some

    def max_by_route(self, values: Floats) -> Floats:
        """(P,) -> (R,)."""
        if self.routes == 0:
            return np.empty(0)
        highest: Floats = np.maximum.reduceat(values, self.starts)
        return highest


@dataclass(frozen=True, slots=True)
class _Rows:
    """Pairs as rows of a matrix, in the type that products want, or else each would convert it."""

    provider: NDArray[np.int32]  # (P,)
    itself: NDArray[np.int32]  # (P,) each pair's own row
    ends: NDArray[np.int32]  # (R + 1,)
