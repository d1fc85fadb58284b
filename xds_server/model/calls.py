"""What the access log's sample of calls says, as arrays."""

from dataclasses import dataclass
from typing import Final

from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import Floats, Ints

CALL_BOUNDS_MS: Final = tuple(0.016 * 2.0 ** (k / 4.0) for k in range(89))
"""Upper bounds of the sampled response times, 16 us to 67 s, four per doubling: a quantile
interpolated inside a bucket is within 19 % of the truth, and mostly within 10 %."""
FLAGS: Final = (
    "no_healthy_upstream", "upstream_request_timeout", "upstream_remote_reset",
    "upstream_connection_failure", "upstream_connection_termination", "upstream_overflow",
    "upstream_retry_limit_exceeded", "upstream_protocol_error",
    "downstream_connection_termination",
)  # fmt: skip
"""Envoy's response flags that are counted; all but the last, the caller's own, are failures."""
CALL_COLUMNS: Final = (
    "calls", "reads", "failed", "request_bytes", "response_bytes", "timed", "latency_s",
    "duration_s", *FLAGS,
)  # fmt: skip
"""Columns of ``CallBatch.counts``: calls (``reads`` of them GET, HEAD or OPTIONS; ``failed`` with
a 5xx or a flag of failure), bytes of headers and bodies, calls that have a response time and
their sum, and the sum of all calls' durations."""


@dataclass(frozen=True, slots=True)
class CallBatch:
    """Sampled calls of one node by provider; axis 0 (K) is the provider.

    ``latency_hist`` counts the provider's response times, from the first byte of the request
    that was sent to it to the last byte of its answer, per bucket of ``CALL_BOUNDS_MS`` and one
    above. The last attempt's, when there were retries.
    """

    node_id: NodeId
    providers: tuple[ProviderName, ...]
    counts: Floats  # (K, len(CALL_COLUMNS)) sums
    latency_hist: Floats  # (K, len(CALL_BOUNDS_MS) + 1)


@dataclass(frozen=True, slots=True)
class CallWindow:
    """The sampled calls of every (node, provider) pair over a window; axis 0 (P) is the pair."""

    window_s: float
    nodes: tuple[NodeId, ...]
    providers: tuple[ProviderName, ...]
    node_row: Ints  # (P,) index into nodes
    provider_row: Ints  # (P,) index into providers
    counts: Floats  # (P, len(CALL_COLUMNS))
    latency_hist: Floats  # (P, len(CALL_BOUNDS_MS) + 1)
    age_s: Floats  # (P,) since the newest call was heard of
