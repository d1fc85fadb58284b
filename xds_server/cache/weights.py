"""Weights as bytes: for all groups of an application at once, and for single nodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

import numpy as np

from xds_server.core.tables import Ints
from xds_server.model.ids import RDS, RTDS, GroupKey, ProviderName, ServiceName
from xds_server.model.snapshot import GroupWeights, Resource, TypeSnapshot
from xds_server.model.versions import content_version, make_resource, type_snapshot
from xds_server.resources.mesh import ApplicationResources, GrpcResources
from xds_server.resources.runtime import LAYER
from xds_server.resources.weights import WEIGHT_MAX, validate_weights

Table = list[list[int]]  # by route, and by provider in the route's order
Asked = Mapping[ServiceName, Mapping[ProviderName, int]]
Flags = Mapping[str, bool]
NO_FLAGS: Flags = {}
"""Every feature is at its default."""


@dataclass(slots=True)
class Encoded:
    """One group's weights: as a runtime layer, and in routes for who does not take that.

    Most nodes take the layer, so routes are made when somebody asks for them.
    """

    runtime: TypeSnapshot
    parts: ApplicationResources
    numbers: Ints  # (W,) in the order of ``parts.runtime.keys``
    _routes: TypeSnapshot | None = None

    @property
    def routes(self) -> TypeSnapshot:
        """RouteConfigurations with these weights inside."""
        if self._routes is None:
            rest = iter(self.numbers.tolist())
            table = [[next(rest) for _ in route.providers] for route in self.parts.routes]
            self._routes = type_snapshot(_routes(self.parts, [table])[0])
        return self._routes

    def same_as(self, other: "Encoded") -> bool:
        """Whether a client that has one has the other."""
        return self.runtime == other.runtime and self.parts.routes == other.parts.routes


def encode(
    parts: ApplicationResources,
    asked: Mapping[GroupKey, Asked],
    ttl_s: float,
    epoch: int,
    flags: Flags = NO_FLAGS,
) -> list[Encoded]:
    """Encode the weights of groups that share ``parts``, in order, beside their features.

    Raises InvalidWeightsError.
    """
    keys, known, rows = parts.runtime.keys, None, []
    for wanted in asked.values():
        if not isinstance(wanted, GroupWeights):
            break
        # Groups share their layout, and two of them take long to compare.
        if wanted.layout is not known:
            if wanted.layout != keys:
                break
            known = wanted.layout
        rows.append(wanted.numbers)
    if rows and len(rows) == len(asked):
        numbers = np.array(rows)
        if _sound(parts, numbers):
            return _encoded(parts, numbers, ttl_s, epoch, flags)
    tables = [_table(parts, wanted) for wanted in asked.values()]
    for group, table in zip(asked, tables, strict=True):
        _validate(parts, str(group), table)
    return encode_tables(parts, tables, ttl_s, epoch, flags)


def encode_masked(
    parts: ApplicationResources,
    asked: Asked,
    masked: frozenset[ProviderName],
    ttl_s: float,
    epoch: int,
    flags: Flags = NO_FLAGS,
) -> Encoded:
    """Encode weights for a node that may not use some of the providers yet."""
    table = _table(parts, asked)
    _validate(parts, "a node's weights", table)
    return encode_tables(parts, [_mask(parts, table, masked)], ttl_s, epoch, flags)[0]


def baseline_masked(parts: ApplicationResources, masked: frozenset[ProviderName]) -> TypeSnapshot:
    """Routes with the operator's weights, but for a node that may not use some providers yet."""
    table = [list(r.baseline) for r in parts.routes]
    return type_snapshot(_routes(parts, [_mask(parts, table, masked)])[0])


def encode_routes(parts: GrpcResources, asked: Asked) -> TypeSnapshot:
    """Encode one group's weights for clients that take them in routes alone.

    Raises InvalidWeightsError.
    """
    table = _table(parts, asked)
    _validate(parts, "weights", table)
    return type_snapshot(_routes(parts, [table])[0])


def encode_tables(
    parts: ApplicationResources,
    tables: list[Table],
    ttl_s: float,
    epoch: int,
    flags: Flags = NO_FLAGS,
) -> list[Encoded]:
    """Encode one table per group."""
    rows = [list(chain.from_iterable(table)) for table in tables]
    numbers = np.array(rows, dtype=np.int64).reshape(len(tables), len(parts.runtime.keys))
    return _encoded(parts, numbers, ttl_s, epoch, flags)


def _encoded(
    parts: ApplicationResources, rows: Ints, ttl_s: float, epoch: int, flags: Flags
) -> list[Encoded]:
    """Encode (G, W) weights; the keys of a layer follow the routes and their providers."""
    template = parts.runtime.switched(flags)
    bodies = template.fill(rows.astype(np.float64))
    # A body is its template and its numbers, and those are a tenth of the bytes.
    frame = content_version(template.body).encode()
    little = rows.astype("<i4").tobytes()
    width = len(little) // max(len(rows), 1)
    encoded = []
    for g, (body, numbers) in enumerate(zip(bodies, rows, strict=True)):
        digest = content_version(frame + little[g * width : (g + 1) * width])
        # A client may have dropped what expired, so an epoch counts as part of the content.
        version = f"{digest}-{epoch}"
        layer = Resource(RTDS, LAYER, version, body, ttl_s)
        # There is nothing else in it: its version is that of the snapshot as well.
        snapshot = TypeSnapshot(version, MappingProxyType({LAYER: layer}))
        encoded.append(Encoded(snapshot, parts, numbers))
    return encoded


def _mask(
    parts: ApplicationResources | GrpcResources, table: Table, masked: frozenset[ProviderName]
) -> Table:
    """Without the masked; where nothing would be left, as it was."""
    out = []
    for route, weights in zip(parts.routes, table, strict=True):
        named = zip(route.providers, weights, strict=True)
        kept = [0 if p in masked else w for p, w in named]
        out.append(kept if any(kept) else weights)
    return out


def _table(parts: ApplicationResources | GrpcResources, asked: Asked) -> Table:
    """Weights of every route of a group: as asked for, else the baseline's.

    After a reload the last plan may lack new providers and name ones that are gone: new
    ones wait at 0, and a route that only had gone ones is back at its baseline.
    """
    table = []
    for route in parts.routes:
        wanted = asked.get(route.service)
        if wanted is None:
            weights = list(route.baseline)
        elif tuple(wanted) == route.providers:
            weights = list(wanted.values())
        else:
            weights = [wanted.get(p, 0) for p in route.providers]
            if not any(weights) and wanted.keys() != set(route.providers):
                weights = list(route.baseline)
        table.append(weights)
    return table


def _sound(parts: ApplicationResources, numbers: Ints) -> bool:
    """Whether all weights of all groups are in range, each route's with a sum above 0.

    The same question that ``_validate`` answers route by route, for (G, W) numbers at once.
    """
    if numbers.size == 0:
        return False
    starts = np.cumsum([0, *(len(route.providers) for route in parts.routes)])[:-1]
    sums = np.add.reduceat(numbers, starts, axis=1)
    return bool(numbers.min() >= 0 and numbers.max() <= WEIGHT_MAX and sums.min() > 0)


def _validate(parts: ApplicationResources | GrpcResources, what: str, table: Table) -> None:
    for route, weights in zip(parts.routes, table, strict=True):
        named = dict(zip(route.providers, weights, strict=True))
        validate_weights(f"{what} {route.service}", named, route.providers)


def _routes(
    parts: ApplicationResources | GrpcResources, tables: list[Table]
) -> list[list[Resource]]:
    """RouteConfigurations of every group, with the weights inside."""
    per_group: list[list[Resource]] = [[] for _ in tables]
    for i, route in enumerate(parts.routes):
        rows = np.array([table[i] for table in tables], dtype=np.int64)
        bodies = route.bytes_but_weights.fill(rows.reshape(len(tables), len(route.providers)))
        for resources, body in zip(per_group, bodies, strict=True):
            resources.append(make_resource(RDS, route.name, body))
    return per_group
