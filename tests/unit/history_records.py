"""Records as the tick hands them over, of a mesh of any size."""

import numpy as np

from xds_server.model.history import (
    OUTCOME_SUMS,
    PROVIDER_GAUGES,
    ROUTE_GAUGES,
    SLOT_COLUMNS,
    Breach,
    Frame,
    SlotTables,
    TickRecord,
)
from xds_server.model.ids import GroupKey, Locality, RouteKey
from xds_server.model.telemetry import LATENCY_BUCKETS_MS

BUCKETS = len(LATENCY_BUCKETS_MS) + 1
NOON_S = 1_699_963_200.0  # 2023-11-14, UTC


def frame(*, routes: int = 1, providers: int = 2, service: str = "search") -> Frame:
    """Every route may use every provider; route ``r`` is application ``app-r``'s own node."""
    groups = tuple(GroupKey(f"app-{r}", "steady", Locality("here")) for r in range(routes))
    return Frame(
        routes=tuple(RouteKey(g, service) for g in groups),
        providers=tuple(f"p{j}" for j in range(providers)),
        services=(service,) * providers,
        pair_route=np.repeat(np.arange(routes), providers),
        pair_provider=np.tile(np.arange(providers), routes),
        groups=groups,
        group_of_node={f"n{r}": r for r in range(routes)},
    )


def slot(of: Frame, requests: np.ndarray | None = None, hist: np.ndarray | None = None):
    """``requests`` (P,) and ``hist`` (P, B + 1) of each node and provider; 1 s each."""
    pairs = len(of.pair_route)
    table = np.zeros((pairs, len(SLOT_COLUMNS)))
    if hist is None:
        hist = np.zeros((pairs, BUCKETS))
        if requests is not None:
            hist[:, 9] = requests
    table[:, 0] = hist.sum(axis=1) if requests is None else requests
    table[:, 4] = 0.02 * table[:, 0]
    table[:, 5:8] = [2.0, 1.0, 1.0]
    return SlotTables(
        nodes=tuple(of.group_of_node),
        providers=of.providers,
        node_row=of.pair_route,
        provider_row=of.pair_provider,
        rows=np.arange(pairs),
        table=table,
        hist=hist.astype(np.float32),
    )


def record(
    of: Frame,
    at_s: float,
    *,
    requests: float | np.ndarray = 10.0,
    hist: np.ndarray | None = None,
    span_s: float = 1.0,
    share: float | np.ndarray | None = None,
    move: str = "hold",
    reason: str = "deadband",
    breaches: tuple[Breach, ...] = (),
    tables: SlotTables | None = None,
    **gauges: float,
) -> TickRecord:
    """One tick; ``gauges`` are those of every provider and every route, by name."""
    routes, providers, pairs = len(of.routes), len(of.providers), len(of.pair_route)
    each = np.broadcast_to(np.asarray(requests, dtype=float), (pairs,))
    values = {
        "utilisation_ratio": 0.5,
        "capacity_rps": 400.0,
        "price_per_million_usd": 1.0,
        "service_s": 0.02,
        "service_sigma": 0.1,
        "capacity_factor": 1.0,
        "tail_ratio": 2.0,
        "error_ratio": 0.0,
        "response_cv2": 0.25,
        "demand_rps": 20.0,
        "predicted_s": 0.02,
        "predicted_p95_s": 0.04,
        "slo_p95_s": np.nan,
        "usd_per_million": 1.0,
        "calibration_ratio": 1.0,
        "budget_pressure": 1.0,
        **gauges,
    }
    equal = 1.0 / max(providers, 1) if share is None else share
    return TickRecord(
        at_s=at_s,
        span_s=span_s,
        frame=of,
        slot=tables or slot(of, None if hist is not None else each, hist),
        provider_gauges=np.tile([values[g] for g in PROVIDER_GAUGES], (providers, 1)),
        pair_gauges=np.broadcast_to(np.asarray(equal, dtype=float), (pairs,))[:, None].copy(),
        route_gauges=np.tile([values[g] for g in ROUTE_GAUGES], (routes, 1)),
        outcomes=np.zeros((routes, len(OUTCOME_SUMS))),
        moves=(move,) * routes,
        hold_reasons=(reason if move == "hold" else "",) * routes,
        gain_ms=np.full(routes, 1.5),
        explained=np.arange(routes if move != "hold" else 0),
        gain_terms={
            name: np.full(routes if move != "hold" else 0, gain_ms)
            for name, gain_ms in (("rent", 2.0), ("price", -0.5), ("slo", 0.0))
        },
        hold_predicted_s=np.full(routes, 0.03),
        hold_usd_per_million=np.full(routes, 1.2),
        weights=np.full(pairs, 5000),
        breaches=breaches,
    )
