"""Weights as bytes: for all groups of an application at once, and for single nodes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from xds_server.model.ids import RDS, RTDS, GroupKey, ProviderName, ServiceName
from xds_server.model.snapshot import Resource, TypeSnapshot
from xds_server.model.versions import content_version, make_resource, type_snapshot
from xds_server.resources.mesh import ApplicationResources, GrpcResources
from xds_server.resources.route import RouteTemplate
from xds_server.resources.runtime import LAYER
from xds_server.resources.weights import validate_weights

Table = dict[ServiceName, dict[ProviderName, int]]
Asked = Mapping[ServiceName, Mapping[ProviderName, int]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One group's weights in both forms."""

    runtime: TypeSnapshot
    routes: TypeSnapshot


def encode(
    parts: ApplicationResources, asked: Mapping[GroupKey, Asked], ttl_s: float, epoch: int
) -> dict[GroupKey, Encoded]:
    """Encode the weights of groups that share ``parts``. Raises InvalidWeightsError."""
    tables = [_table(parts, str(group), wanted) for group, wanted in asked.items()]
    return dict(zip(asked, encode_tables(parts, tables, ttl_s, epoch), strict=True))


def encode_masked(
    parts: ApplicationResources,
    asked: Asked,
    masked: frozenset[ProviderName],
    ttl_s: float,
    epoch: int,
) -> Encoded:
    """Encode weights for a node that may not use some of the providers yet."""
    table = _table(parts, "a node's weights", asked)
    return encode_tables(parts, [_mask(table, masked)], ttl_s, epoch)[0]


def baseline_masked(parts: ApplicationResources, masked: frozenset[ProviderName]) -> TypeSnapshot:
    """Routes with the operator's weights, but for a node that may not use some providers yet."""
    table = {r.service: _baseline(r) for r in parts.routes}
    return type_snapshot(_routes(parts, [_mask(table, masked)])[0])


def encode_routes(parts: GrpcResources, asked: Asked) -> TypeSnapshot:
    """Encode one group's weights for clients that take them in routes alone.

    Raises InvalidWeightsError.
    """
    return type_snapshot(_routes(parts, [_table(parts, "weights", asked)])[0])


def encode_tables(
    parts: ApplicationResources, tables: list[Table], ttl_s: float, epoch: int
) -> list[Encoded]:
    """Encode one table per group, in both forms."""
    runtimes, routes = _runtimes(parts, tables, ttl_s, epoch), _routes(parts, tables)
    return [
        Encoded(type_snapshot((runtime,)), type_snapshot(per_group))
        for runtime, per_group in zip(runtimes, routes, strict=True)
    ]


def _mask(table: Table, masked: frozenset[ProviderName]) -> Table:
    """Without the masked; where nothing would be left, as it was."""
    out = {}
    for service, weights in table.items():
        kept = {p: 0 if p in masked else w for p, w in weights.items()}
        out[service] = kept if any(kept.values()) else weights
    return out


def _table(parts: ApplicationResources | GrpcResources, what: str, asked: Asked) -> Table:
    """Weights of every route of a group: as asked for, else the baseline's.

    After a reload the last plan may lack new providers and name ones that are gone: new
    ones wait at 0, and a route that only had gone ones is back at its baseline.
    """
    table = {}
    for route in parts.routes:
        wanted = asked.get(route.service, {})
        weights = {p: wanted.get(p, 0) for p in route.providers}
        if not any(weights.values()):
            if wanted and wanted.keys() == weights.keys():
                validate_weights(f"{what} {route.service}", wanted, route.providers)
            weights = _baseline(route)
        validate_weights(f"{what} {route.service}", weights, route.providers)
        table[route.service] = weights
    return table


def _baseline(route: RouteTemplate) -> dict[ProviderName, int]:
    return dict(zip(route.providers, route.baseline, strict=True))


def _runtimes(
    parts: ApplicationResources, tables: list[Table], ttl_s: float, epoch: int
) -> Iterable[Resource]:
    keys = parts.runtime.keys
    numbers = np.array([[t[s][p] for s, p in keys] for t in tables], dtype=np.float64)
    bodies = parts.runtime.bytes_but_weights.fill(numbers.reshape(len(tables), len(keys)))
    # A client may have dropped what expired, so an epoch counts as part of the content.
    return [
        Resource(RTDS, LAYER, f"{content_version(body)}-{epoch}", body, ttl_s) for body in bodies
    ]


def _routes(
    parts: ApplicationResources | GrpcResources, tables: list[Table]
) -> list[list[Resource]]:
    """RouteConfigurations of every group, with the weights inside."""
    per_group: list[list[Resource]] = [[] for _ in tables]
    for route in parts.routes:
        rows = [[t[route.service][p] for p in route.providers] for t in tables]
        bodies = route.bytes_but_weights.fill(np.array(rows, dtype=np.int64))
        for resources, body in zip(per_group, bodies, strict=True):
            resources.append(make_resource(RDS, route.name, body))
    return per_group
