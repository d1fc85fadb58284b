"""What is handed to history once per tick, and what the engine starts from after a restart.

Axes: T rows of the registry's table, S pairs of node and provider, P pairs of group and
provider, R routes, J providers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xds_server.model.ids import (
    ApplicationName,
    GroupKey,
    NodeId,
    PhaseName,
    ProviderName,
    RouteKey,
    ServiceName,
)
from xds_server.model.telemetry import Floats, Ints

RESOLUTION_S: Final = {"1s": 1.0, "1m": 60.0, "1h": 3600.0}
"""Resolutions of history, finest first; "1s" is one row per tick, whatever its length."""

MOVES_EXPLAINED: Final = 100
"""Moves of one tick whose gain is told term by term."""

Float32s = NDArray[np.float32]

SLOT_COLUMNS: Final = (
    "requests", "errors", "rx_bytes", "tx_bytes", "latency_sum_s", "active", "messages",
    "covered_s",
)  # fmt: skip
"""Columns of ``SlotTables.table``, sums over one slot."""

PROVIDER_GAUGES: Final = (
    "utilisation_ratio",
    "capacity_rps",
    "price_per_million_usd",
    "service_s",  # of the model: mean service time
    "service_sigma",  # standard deviation of its logarithm
    "capacity_factor",  # measured capacity over servers / service_s
    "tail_ratio",  # p95 of the service time over its mean
    "error_ratio",
    "response_cv2",  # squared coefficient of variation of one response time
)
"""Columns of ``TickRecord.provider_gauges``; NaN: not known."""
PAIR_GAUGES: Final = ("share",)
"""Columns of ``TickRecord.pair_gauges``: the share that is asked for."""
ROUTE_GAUGES: Final = (
    "demand_rps",
    "predicted_s",
    "predicted_p95_s",
    "slo_p95_s",
    "usd_per_million",
    "calibration_ratio",
    "budget_pressure",
)
"""Columns of ``TickRecord.route_gauges``, of the plan that is in force; NaN: there is none."""
OUTCOME_SUMS: Final = (
    "outcomes",  # forecasts that could be compared: 0 or 1
    "forecast_s",
    "observed_s",
    "z",
    "z_squared",
    "surprises",  # outside of the forecast's 90 % interval
)
"""Columns of ``TickRecord.outcomes``: forecasts beside what happened."""


@dataclass(frozen=True, slots=True)
class SlotTables:
    """What every (node, provider) pair reported in one completed slot.

    The tables are copied whole, which costs least: rows are picked where there is time.
    """

    nodes: tuple[NodeId, ...]
    providers: tuple[ProviderName, ...]
    node_row: Ints  # (S,) index into nodes
    provider_row: Ints  # (S,) index into providers
    rows: Ints  # (S,) index into the tables
    table: Floats  # (T, len(SLOT_COLUMNS))
    hist: Float32s  # (T, B + 1) responses per bucket of LATENCY_BUCKETS_MS, and above

    @property
    def nbytes(self) -> int:
        """Memory that the tables hold."""
        return int(self.table.nbytes + self.hist.nbytes)


@dataclass(frozen=True, slots=True)
class Frame:
    """What the rows of records are; one object for as long as they stay the same."""

    routes: tuple[RouteKey, ...]  # (R,)
    providers: tuple[ProviderName, ...]  # (J,)
    services: tuple[ServiceName, ...]  # (J,)
    pair_route: Ints  # (P,)
    pair_provider: Ints  # (P,)
    groups: tuple[GroupKey, ...]
    group_of_node: Mapping[NodeId, int]  # row in groups


@dataclass(frozen=True, slots=True)
class Breach:
    """One instance outside of one declared expectation."""

    node_id: NodeId
    application: ApplicationName
    phase: PhaseName
    band: str  # e.g. call_rate_rps
    service: ServiceName  # "" where it is about the whole instance
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TickRecord:
    """One tick, as history takes it."""

    at_s: float  # when it ended, since the epoch
    span_s: float  # how long it was
    frame: Frame
    slot: SlotTables
    provider_gauges: Floats  # (J, len(PROVIDER_GAUGES))
    pair_gauges: Floats  # (P, len(PAIR_GAUGES))
    route_gauges: Floats  # (R, len(ROUTE_GAUGES))
    outcomes: Floats  # (R, len(OUTCOME_SUMS))
    moves: tuple[str, ...]  # (R,)
    hold_reasons: tuple[str, ...]  # (R,) "" where it moved
    gain_ms: Floats  # (R,) of the best plan, per request, less what the move costs
    explained: Ints  # (K,) routes that moved, ascending; at most MOVES_EXPLAINED, of most traffic
    gain_terms: Mapping[str, Floats]  # (K,) each: what their gains add up from, by GAIN_TERMS
    hold_predicted_s: Floats  # (R,) forecast latency of holding
    hold_usd_per_million: Floats  # (R,) and its cost
    weights: Ints  # (P,) as published, or as they would be
    breaches: tuple[Breach, ...] = ()


@dataclass(frozen=True, slots=True)
class ProviderSeed:
    """What was known of one provider when it was last written down."""

    age_s: float
    service_s: float
    service_sigma: float
    capacity_factor: float
    tail_ratio: float
    response_cv2: float  # NaN: nobody wrote it down
    error_ratio: float
    attempts: float  # that the error ratio is of, lately


@dataclass(frozen=True, slots=True)
class RouteSeed:
    """What was known of one route when it was last written down."""

    age_s: float
    demand_rps: float
    calibration_ratio: float
    budget_pressure: float
    shares: Mapping[ProviderName, float]  # asked for; empty when that was not written


@dataclass(frozen=True, slots=True)
class Seeds:
    """What models start from; ages are those at the time of reading."""

    read_at_s: float = 0.0  # monotonic
    providers: Mapping[ProviderName, ProviderSeed] = field(default_factory=dict)
    routes: Mapping[RouteKey, RouteSeed] = field(default_factory=dict)
