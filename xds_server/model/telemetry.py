"""What sidecars reported, as arrays."""

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xds_server.model.ids import NodeId, ProviderName

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

LATENCY_BUCKETS_MS: Final = (
    1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0, 80.0, 110.0, 160.0,
    220.0, 320.0, 450.0, 640.0, 900.0, 1300.0, 1800.0, 2500.0, 3600.0, 5000.0, 10000.0,
)  # fmt: skip
"""Upper bounds of the ``upstream_rq_time`` histogram that bootstraps configure, ms.

Each is about 1.4 times the one before, so a quantile interpolated inside a bucket is
within 20 % of the truth above 5 ms. Slower requests are counted above the last bound.
"""


@dataclass(frozen=True, slots=True)
class PairWindow:
    """What every (node, provider) pair did over one window; axis 0 (P) is the pair.

    Sums over the window, except where stated. ``latency_hist`` holds counts per bucket
    of ``LATENCY_BUCKETS_MS`` plus one for everything above, not cumulative.
    """

    window_s: float
    nodes: tuple[NodeId, ...]  # (N,)
    providers: tuple[ProviderName, ...]  # (J,)
    node_row: Ints  # (P,) index into nodes
    provider_row: Ints  # (P,) index into providers
    covered_s: Floats  # (P,) seconds that the summed reports cover; more after a gap
    requests: Floats  # (P,) attempts sent upstream
    errors: Floats  # (P,) attempts that failed: 5xx, reset, timeout, no connection
    latency_sum_s: Floats  # (P,) sum of response times
    latency_count: Floats  # (P,) responses that sum covers
    latency_hist: Floats  # (P, B + 1)
    active: Floats  # (P,) mean requests in flight
    rx_bytes: Floats  # (P,)
    tx_bytes: Floats  # (P,)
    age_s: Floats  # (P,) since the newest sample; inf if there was none
    # Of the newest slot alone, which is where demand is first seen to change; None: not told apart.
    recent_requests: Floats | None = None  # (P,)
    recent_covered_s: Floats | None = None  # (P,) 0 where nothing has been reported yet


@dataclass(frozen=True, slots=True)
class ProviderLoad:
    """What providers say of themselves through ORCA, by LRS; axis 0 (J) is the provider.

    NaN where a provider said nothing within the time that reports stay valid.
    """

    providers: tuple[ProviderName, ...]
    utilisation_ratio: Floats  # (J,) the application's own, else CPU
    memory_ratio: Floats  # (J,)
    price_per_million_usd: Floats  # (J,) named metric ``price_per_million_requests_usd``
    age_s: Floats  # (J,) of the utilisation; of the price where only that is said
    # Over the time that the utilisation is of, all nodes together; None: nobody counts them so.
    succeeded_rps: Floats | None = None  # (J,) NaN: not counted
    failed_rps: Floats | None = None  # (J,)
    ended_count: Floats | None = None  # (J,) requests behind both


@dataclass(frozen=True, slots=True)
class InstanceSignals:
    """One running instance as its sidecar reports it; what phases are decided on."""

    node_id: NodeId
    age_s: float  # since its ADS stream opened
    rps: float
    error_ratio: float
    latency_p95_s: float
    rps_by_service: dict[str, float]
    response_bytes_by_service: dict[str, float]
    telemetry_age_s: float
    cpu_ratio: float = math.nan  # these two: NaN while no source of usage says
    memory_bytes: float = math.nan
    read_ratio: float = math.nan  # GET, HEAD and OPTIONS by all; NaN while no call is sampled


COUNTERS: Final = ("requests", "errors", "rx_bytes", "tx_bytes")
"""Columns of ``SampleBatch.counts``."""


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """One node's providers over ``covered_s``; axis 0 (K) is the provider."""

    node_id: NodeId
    providers: tuple[ProviderName, ...]
    covered_s: float  # since the node's message before
    counts: Floats  # (K, len(COUNTERS)) increments
    latency_sum_s: Floats  # (K,)
    latency_hist: Floats  # (K, B + 1)
    active: Floats  # (K,) requests in flight when it was sent


@dataclass(frozen=True, slots=True)
class HostsSeen:
    """What one node said last of one provider's hosts (``membership_healthy``)."""

    healthy: float
    at_s: float


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What one provider's endpoints said of themselves, mean over requests; NaN: nothing."""

    provider: ProviderName
    utilisation_ratio: float
    memory_ratio: float
    price_per_million_usd: float
    succeeded_rps: float = math.nan  # as the node counted over the report's interval
    failed_rps: float = math.nan
    interval_s: float = math.nan

    @property
    def says_anything(self) -> bool:
        """Whether the endpoints said something, beside what the node counted."""
        said = (self.utilisation_ratio, self.memory_ratio, self.price_per_million_usd)
        return any(math.isfinite(value) for value in said)
