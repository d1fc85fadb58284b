"""Load reports (LRS) to what providers say of themselves by ORCA."""

import math
from collections import Counter
from typing import Any, Final

from xds_server.generated import xds_server_load_report_pb2 as pb
from xds_server.model.telemetry import LoadReport
from xds_server.telemetry.messages import parsed
from xds_server.telemetry.values import LARGE, NAN, NEGATIVE

PRICE_METRIC: Final = "named_metrics.price_per_million_requests_usd"
"""A provider announces its price per million requests under this ORCA metric."""
_ABSURD: Final = 1e12
_RATE_MOST: Final = 1e7
"""Requests/s of one node to one provider."""
RATIO_MOST: Final = 1e3
"""A mean utilisation above this is not believed: many cores may be above 1, but not so far."""
_SCALARS: Final = ("cpu_utilization", "mem_utilization", "application_utilization")
_READ: Final = frozenset({*_SCALARS, PRICE_METRIC})


def parse_load_stats(body: bytes) -> pb.LoadStatsRequest:
    """Read one message. Raises RemoteProtocolError when it is none, or too large to be read."""
    return parsed(pb.LoadStatsRequest, body)


def read_reports(message: pb.LoadStatsRequest) -> tuple[list[LoadReport], Counter[str]]:
    """One report per cluster that had anything to report, and how many values were dropped, by why.

    Means over requests, and rates over the interval that the report is of. A metric that endpoints
    did not send arrives as a total of 0 with a full count, so 0 is "not reported" for utilisation;
    a price of 0 cannot be announced. What cannot be true (NaN, negative, absurd) is dropped.
    """
    reports: list[LoadReport] = []
    refused: Counter[str] = Counter()
    for cluster in message.cluster_stats:
        totals: dict[str, tuple[float, float]] = {}
        for locality in cluster.upstream_locality_stats:
            for metric in locality.load_metric_stats:
                if metric.metric_name in _READ:
                    _add(totals, metric.metric_name, metric, refused)
            for name in _SCALARS:
                if locality.HasField(name):
                    _add(totals, name, getattr(locality, name), refused)
        means = {n: m for n, (total, count) in totals.items() if (m := total / count) > 0.0}
        for name in [n for n in _SCALARS if means.get(n, 0.0) > RATIO_MOST]:
            refused[LARGE] += 1
            del means[name]
        ended = _ended(cluster, refused)
        if means or ended:
            application = means.get("application_utilization")
            busy = application or means.get("cpu_utilization", math.nan)
            memory = means.get("mem_utilization", math.nan)
            price = means.get(PRICE_METRIC, math.nan)
            rates = ended or (math.nan,) * 3
            reports.append(LoadReport(cluster.cluster_name, busy, memory, price, *rates))
    return reports, refused


def _ended(cluster: pb.ClusterStats, refused: Counter[str]) -> tuple[float, float, float] | None:
    """Succeeded and failed requests/s, and the interval, s; None where nothing ended."""
    localities = cluster.upstream_locality_stats
    succeeded = sum(locality.total_successful_requests for locality in localities)
    failed = sum(locality.total_error_requests for locality in localities)
    interval = cluster.load_report_interval
    interval_s = interval.seconds + interval.nanos / 1e9
    if succeeded + failed == 0 or interval_s <= 0.0:
        return None
    if succeeded + failed > _RATE_MOST * interval_s:
        refused[LARGE] += 1
        return None
    return succeeded / interval_s, failed / interval_s, interval_s


def _add(
    totals: dict[str, tuple[float, float]], name: str, metric: Any, refused: Counter[str]
) -> None:
    """Add one total, unless it cannot be true."""
    count, total = metric.num_requests_finished_with_metric, metric.total_metric_value
    if math.isnan(total):
        refused[NAN] += 1
    elif total < 0.0:
        refused[NEGATIVE] += 1
    elif max(total, count) > _ABSURD:
        refused[LARGE] += 1
    elif count > 0:
        before, counted = totals.get(name, (0.0, 0.0))
        totals[name] = (before + total, counted + count)
