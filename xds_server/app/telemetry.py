"""The services by which sidecars report, joined: what they report with, and where it is counted."""

from collections.abc import Callable
from pathlib import Path

from xds_server.app.kept_counters import KeptCounters
from xds_server.model.topology import TelemetrySettings
from xds_server.ports import Clock
from xds_server.registry.registry import Registry
from xds_server.wire.access_log_service import AccessLogService
from xds_server.wire.intake import Tally
from xds_server.wire.load_stats import LoadReportingService
from xds_server.wire.metrics_service import MetricsService
from xds_server.wire.otlp_service import OtlpService
from xds_server.wire.speaker import Speakers
from xds_server.wire.well_known import Handler


class TelemetryServices:
    """One of each; both of statistics count from the same counters, which outlive the process."""

    def __init__(
        self,
        registry: Registry,
        tally: Tally,
        clock: Clock,
        speakers: Speakers,
        settings: Callable[[], TelemetrySettings],
        history: Path | None,
    ) -> None:
        """``settings`` are asked for when a stream opens; counters are kept beside ``history``."""

        def flush_interval_s() -> float:
            return settings().stats_flush_interval_s

        def report_interval_s() -> float:
            return settings().load_report_interval_s

        shared = (registry, tally, clock, speakers)
        metrics = MetricsService(*shared, flush_interval_s)
        self._services = (
            metrics,
            OtlpService(*shared, flush_interval_s, metrics.bases),
            AccessLogService(*shared, flush_interval_s),
            LoadReportingService(*shared, report_interval_s),
        )
        self._counters = KeptCounters(history, metrics.bases, clock)
        self._counters.load()

    def handlers(self) -> tuple[Handler, ...]:
        """Return what a grpc server registers."""
        return tuple(service.handler() for service in self._services)

    def save(self) -> None:
        """Leave the counters for the next process; never raises."""
        self._counters.save()
