"""Messages of Envoy's gRPC access log to batches of sampled calls."""

from collections import Counter
from typing import Any, Final

import numpy as np

from xds_server.generated import xds_server_access_log_pb2 as pb
from xds_server.model.calls import CALL_BOUNDS_MS, CALL_COLUMNS, FLAGS, CallBatch
from xds_server.model.ids import NodeId, ProviderName
from xds_server.telemetry.messages import parsed
from xds_server.telemetry.values import LARGE, NEGATIVE

SIZE_MOST: Final = 2**50
"""A call whose headers or bodies are larger is not believed."""
TIME_MOST_S: Final = 86_400.0
"""A call that took longer is not believed."""
FALSE_TIMES: Final = "false times"
_READS: Final = frozenset((1, 2, 7))  # GET, HEAD, OPTIONS of envoy.config.core.v3.RequestMethod
_ENDED: Final = frozenset((0, 6))  # NotSet, DownstreamEnd of envoy.data.accesslog.v3.AccessLogType
_BOUNDS_S: Final = np.array(CALL_BOUNDS_MS) / 1e3
_FAILURES: Final = FLAGS[:-1]
_COLUMNS: Final = len(CALL_COLUMNS)


class _RefusedError(Exception):
    """One entry cannot be true; its argument says why."""


def parse_access_log(body: bytes) -> pb.StreamAccessLogsMessage:
    """Read one message. Raises RemoteProtocolError when it is none, or too large to be read."""
    return parsed(pb.StreamAccessLogsMessage, body)


def read_calls(
    message: pb.StreamAccessLogsMessage, node_id: NodeId, providers: frozenset[ProviderName]
) -> tuple[CallBatch, Counter[str]]:
    """Add up a message's calls by provider; and why how many were dropped.

    Calls that went to nobody of ours, and entries that were written before a call ended, are
    ignored. A call of which anything cannot be true is dropped as a whole.
    """
    ours = {name.encode(): name for name in providers}
    rows: dict[ProviderName, int] = {}
    row_of: list[int] = []
    calls: list[tuple[float, ...]] = []
    refused: Counter[str] = Counter()
    for entry in message.http_logs.log_entry:
        common = entry.common_properties
        provider = ours.get(common.upstream_cluster)
        if provider is None or common.access_log_type not in _ENDED:
            continue
        if common.intermediate_log_entry:
            continue
        try:
            call = _call(entry, common)
        except _RefusedError as error:
            refused[str(error)] += 1
            continue
        row_of.append(rows.setdefault(provider, len(rows)))
        calls.append(call)
    return _summed(node_id, tuple(rows), row_of, calls), refused


def _call(entry: Any, common: Any) -> tuple[float, ...]:
    """One call's columns, in the order of ``CALL_COLUMNS``."""
    request, response, flags = entry.request, entry.response, common.response_flags
    received = request.request_headers_bytes + request.request_body_bytes
    sent = response.response_headers_bytes + response.response_body_bytes
    if received > SIZE_MOST or sent > SIZE_MOST:
        raise _RefusedError(LARGE)
    latency_s, timed = 0.0, 0.0
    # Without the first byte the request never left: what there is then is no answer's time.
    first, last = "time_to_first_upstream_tx_byte", "time_to_last_upstream_rx_byte"
    if common.HasField(first) and common.HasField(last):
        latency_s = _seconds(getattr(common, last)) - _seconds(getattr(common, first))
        timed = 1.0
        if latency_s < 0.0:
            raise _RefusedError(FALSE_TIMES)
    duration_s = _seconds(common.duration)
    raised = tuple(1.0 if getattr(flags, name) else 0.0 for name in FLAGS)
    failed = response.response_code.value >= 500 or 1.0 in raised[: len(_FAILURES)]
    read = request.request_method in _READS
    return (1.0, float(read), float(failed), received, sent, timed, latency_s, duration_s, *raised)


def _seconds(duration: Any) -> float:
    value = duration.seconds + duration.nanos / 1e9
    if value < 0.0:
        raise _RefusedError(NEGATIVE)
    if value > TIME_MOST_S:
        raise _RefusedError(LARGE)
    return float(value)


def _summed(
    node_id: NodeId,
    providers: tuple[ProviderName, ...],
    row_of: list[int],
    calls: list[tuple[float, ...]],
) -> CallBatch:
    count, width = len(providers), len(CALL_BOUNDS_MS) + 1
    rows = np.array(row_of, dtype=np.int64)
    table = np.array(calls, dtype=np.float64).reshape(len(calls), _COLUMNS)
    counts = np.zeros((count, _COLUMNS))
    np.add.at(counts, rows, table)
    timed = table[:, CALL_COLUMNS.index("timed")] > 0.0
    latency_s = table[timed, CALL_COLUMNS.index("latency_s")]
    cells = rows[timed] * width + np.searchsorted(_BOUNDS_S, latency_s)
    hist = np.bincount(cells, minlength=count * width).astype(np.float64).reshape(count, width)
    return CallBatch(node_id, providers, counts, hist)
