"""Logs and metrics: how a line is written, and every metric with its help text.

Label sets are bounded: ``application``, ``phase``, ``service`` and ``provider`` are names from
mesh.yaml, ``locality`` is a group's and goes with it (``keep_routes``), ``type`` is one of
``TYPES``, and every ``reason``, ``kind``, ``move`` and ``result`` is a word from our own code.
No metric is labelled with a node, a version, an address or a text from outside.
"""

import logging
import platform
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, Literal

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from structlog.typing import EventDict, Processor, WrappedLogger

from xds_server.model.ids import SHORT, RouteKey

LINES_PER_PERIOD: Final = 20
PERIOD_S: Final = 10.0
EVENT_NAMES_KEPT: Final = 1000
"""Event names counted at once; beyond that all others share one count."""

TYPES: Final = (*sorted(SHORT.values()), "other")
"""Every value of the label ``type``."""

_DROPPED: Final = "log.dropped"


def type_label(type_url: str) -> str:
    """Return the label for a type URL, whatever a client sent."""
    return SHORT.get(type_url, "other")


@dataclass(slots=True)
class _Count:
    since_s: float
    lines: int = 0
    dropped: int = 0


class RateLimit:
    """A structlog processor that keeps the number of log lines bounded.

    Loss policy: of one event name (of one logger, for the standard library's free texts) the
    first ``limit`` lines in each period are kept, the rest is dropped and counted. The count
    is logged as ``log.dropped`` with the first line of any kind after the period.
    """

    def __init__(
        self,
        limit: int = LINES_PER_PERIOD,
        period_s: float = PERIOD_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._period_s, self._now_s = limit, period_s, now_s
        self._counts: dict[str, _Count] = {}
        self._lock = threading.Lock()  # history logs from its own thread
        self._sweep_at_s = now_s() + period_s

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Pass ``event`` on, or raise DropEvent."""
        name = str(event.get("logger") or event.get("event"))
        if name == _DROPPED:
            return event
        with self._lock:
            now_s = self._now_s()
            if now_s >= self._sweep_at_s:
                self._sweep(now_s)
            if name not in self._counts and len(self._counts) >= EVENT_NAMES_KEPT:
                name = "(others)"
            count = self._counts.setdefault(name, _Count(now_s))
            if count.lines >= self._limit:
                count.dropped += 1
                raise structlog.DropEvent
            count.lines += 1
        return event

    def _sweep(self, now_s: float) -> None:
        """Forget the periods that are over, and say what they lost."""
        over = [n for n, c in self._counts.items() if now_s >= c.since_s + self._period_s]
        lost = {n: c for n in over if (c := self._counts.pop(n)).dropped}
        ends = [c.since_s + self._period_s for c in self._counts.values()]
        self._sweep_at_s = min([now_s + self._period_s, *ends])
        for name, count in lost.items():
            structlog.get_logger().warning(_DROPPED, of=name, dropped=count.dropped)


class _ToStructlog(logging.Handler):
    """Sends what the standard library's loggers get through the one chain of processors."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log = structlog.get_logger()
            log.log(
                record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info
            )
        except Exception:  # noqa: BLE001 - logging's own rule: a handler never raises
            self.handleError(record)


def configure_logging(fmt: Literal["json", "console"], level: str) -> None:
    """Write logs to stderr; ``level`` is a standard name in either case.

    Raises ValueError for a level that does not exist.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"no log level {level!r}; one of debug, info, warning, error, critical")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            RateLimit(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_renderers(fmt),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,  # a later call must reach loggers already in use
    )
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    root.setLevel(number)
    for chatty in ("uvicorn", "watchfiles", "asyncio"):
        logging.getLogger(chatty).setLevel(max(number, logging.WARNING))
    logging.captureWarnings(capture=True)


def _renderers(fmt: Literal["json", "console"]) -> Sequence[Processor]:
    if fmt == "console":
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        structlog.processors.JSONRenderer(),
    ]


_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TICK_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_Z = (-5.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
_ROUTE = ("application", "phase", "locality", "service")


class Tally(Counter):
    """A counter for what happens at every push."""

    def adder(self) -> Callable[[float], None]:
        """Return what counts like ``inc``, but does not ask each time whether it may."""
        add: Callable[[float], None] = self._value.inc
        return add


class Distribution(Histogram):
    """A histogram for what happens at every push."""

    def adder(self) -> Callable[[float], None]:
        """Return what counts like ``observe``, in half the time."""
        bounds, add = self._upper_bounds, self._sum.inc
        count_in = [bucket.inc for bucket in self._buckets]

        def observe(amount: float) -> None:
            add(amount)
            count_in[bisect_left(bounds, amount)](1)

        return observe


class _Declare:
    """Declares metrics on one registry, with the prefix of this project."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Tally:
        return Tally(f"xds_server_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"xds_server_{name}", text, labels, registry=self._registry)

    def histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Distribution:
        return Distribution(
            f"xds_server_{name}", text, labels, buckets=buckets, registry=self._registry
        )


class Metrics:
    """Every metric of the control plane: attribute ``x`` is ``xds_server_x``."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        declare = _Declare(self.registry)
        self._declare_streams(declare)
        self._declare_telemetry(declare)
        self._declare_registry(declare)
        self._declare_engine(declare)
        self._declare_routes(declare)
        self._declare_history(declare)
        self._declare_process()
        self._routes: frozenset[RouteKey] = frozenset()

    def _declare_streams(self, d: _Declare) -> None:
        self.streams_open = d.gauge(
            "streams_open", "Discovery streams open now; protocol is sotw or delta.", ["protocol"]
        )
        self.streams_waiting = d.gauge(
            "streams_waiting", "Discovery streams that wait to be let in (streams_per_s)."
        )
        self.streams_refused_total = d.counter(
            "streams_refused_total",
            "Discovery streams refused before a node was known on them; reason is rate, "
            "streams_max, draining, first_request or node_id.",
            ["reason"],
        )
        self.requests_total = d.counter("requests_total", "Requests received.", ["type"])
        self.responses_total = d.counter(
            "responses_total",
            "Responses sent; kind is push, heartbeat or unwedge.",
            ["type", "kind"],
        )
        self.acks_total = d.counter("acks_total", "Responses that an Envoy accepted.", ["type"])
        self.nacks_total = d.counter("nacks_total", "Responses that an Envoy refused.", ["type"])
        self.quarantined_total = d.counter(
            "quarantined_total",
            "Resources found to be why an Envoy refused a response.",
            ["type"],
        )
        self.stale_total = d.counter(
            "stale_total", "Requests ignored because they answer an older response.", ["type"]
        )
        self.ack_latency_seconds = d.histogram(
            "ack_latency_seconds", "From a response to its ACK or NACK.", _LATENCY_S, ["type"]
        )
        self.push_bytes_total = d.counter(
            "push_bytes_total", "Bytes of responses handed to gRPC.", ["type"]
        )
        self.silent_nodes = d.gauge(
            "silent_nodes", "Nodes that have left a response unanswered for too long."
        )
        self.unknown_types_total = d.counter(
            "unknown_types_total", "Requests for a resource type that is not served."
        )
        self.streams_ended_total = d.counter(
            "streams_ended_total", "ADS streams that ended, by why.", ["reason"]
        )
        self.tapes_cut_total = d.counter(
            "tapes_cut_total",
            "Recordings of streams (--record) that ended before their stream did, by why.",
            ["reason"],
        )
        self.nodes = d.gauge("nodes", "Nodes with an open ADS stream.", ["application"])
        self.instances = d.gauge(
            "instances", "Instances in each phase of life.", ["application", "phase"]
        )

    def _declare_telemetry(self, d: _Declare) -> None:
        self.telemetry_messages_total = d.counter(
            "telemetry_messages_total",
            "Messages from sidecars; source is the service that they came to.",
            ["source"],
        )
        self.telemetry_samples_total = d.counter(
            "telemetry_samples_total", "Samples taken from those messages.", ["source"]
        )
        self.telemetry_refused_total = d.counter(
            "telemetry_refused_total",
            "Messages, values and streams of telemetry that were refused, by why "
            "(docs/operations.md has the reasons).",
            ["source", "reason"],
        )
        self.telemetry_events_total = d.counter(
            "telemetry_events_total",
            "Messages that were taken in and did not follow from the one before; event is reset "
            "(an Envoy started anew), gap (some are missing) or clock (its clock was set back).",
            ["source", "event"],
        )
        self.telemetry_age_seconds = d.gauge(
            "telemetry_age_seconds", "Age of the newest telemetry of the node where it is oldest."
        )
        self.registry_pairs = d.gauge(
            "registry_pairs", "Pairs of node and provider with a window of measurements."
        )

    def _declare_registry(self, d: _Declare) -> None:
        self.registry_leases = d.gauge(
            "registry_leases", "Endpoints that announced themselves and are believed.", ["provider"]
        )
        self.registry_leases_ended_total = d.counter(
            "registry_leases_ended_total",
            "Leases that ended; reason is expired, deregistered or configuration.",
            ["reason"],
        )
        self.registry_calls_total = d.counter(
            "registry_calls_total",
            "Calls of the registry's API; result is ok, malformed, provider, mismatch, full or "
            "lease.",
            ["method", "result"],
        )
        self.registry_watchers = d.gauge("registry_watchers", "Clients that watch the registry.")

    def _declare_engine(self, d: _Declare) -> None:
        self.tick_duration_seconds = d.histogram(
            "tick_duration_seconds", "Time that one tick of the engine takes.", _TICK_S
        )
        self.ticks_total = d.counter("ticks_total", "Ticks begun.")
        self.tick_overruns_total = d.counter(
            "tick_overruns_total", "Ticks that took longer than engine.tick_s."
        )
        self.tick_failures_total = d.counter(
            "tick_failures_total", "Ticks that raised; the weights of the tick before stay."
        )
        self.decisions_total = d.counter(
            "decisions_total", "Decisions about one route in one tick.", ["move"]
        )
        self.holds_total = d.counter(
            "holds_total", "Routes that kept their weights in a tick, by why.", ["reason"]
        )
        self.foreseen_total = d.counter(
            "foreseen_total",
            "Moves that were shortened, or held, since their simulation was riskier than to hold.",
            ["result"],
        )
        self.reverts_total = d.counter(
            "reverts_total", "Routes that were put back, since their last move did harm."
        )
        self.substitutions_total = d.counter(
            "substitutions_total", "Providers on standby that entered, or left again.", ["action"]
        )
        self.scale_decisions_total = d.counter(
            "scale_decisions_total", "Other numbers of endpoints that were recommended.", ["action"]
        )
        self.flag_switches_total = d.counter(
            "flag_switches_total", "Features that the engine switched off, or on again.", ["action"]
        )
        self.fragile_ratio = d.gauge(
            "fragile_ratio",
            "Part of the routes whose SLO would not survive the loss of their largest provider.",
        )
        self.gain_ms = d.gauge(
            "gain_ms", "Predicted gain of the last tick, demand-weighted ms-equivalent per second."
        )
        self.solver_iterations = d.gauge("solver_iterations", "Iterations of the last solve.")
        self.solver_gap_ratio = d.gauge(
            "solver_gap_ratio", "Certified distance of the last solve from the optimum."
        )
        self.weight_published_total = d.counter(
            "weight_published_total", "Weights published, one per route and provider."
        )
        self.forecast_z = d.histogram(
            "forecast_z", "Forecast errors in standard deviations; above 0 is slower.", _Z
        )
        self.phase_changes_total = d.counter(
            "phase_changes_total", "Instances that entered a phase.", ["application", "phase"]
        )
        self.behaviour_breaches = d.gauge(
            "behaviour_breaches",
            "Instances outside of a declared expectation now, by its name.",
            ["application", "name"],
        )
        self.config_reloads_total = d.counter(
            "config_reloads_total", "Changes of mesh.yaml; result is ok or refused.", ["result"]
        )
        self.config_last_reload_success = d.gauge(
            "config_last_reload_success", "1 if the newest mesh.yaml is in force, 0 if refused."
        )

    def _declare_routes(self, d: _Declare) -> None:
        pair = (*_ROUTE, "provider")
        self.route_share = d.gauge(
            "route_share", "Share of a route's calls asked for, 0 to 1.", pair
        )
        self.route_observed_share = d.gauge(
            "route_observed_share", "Share of a route's calls that its sidecars report.", pair
        )
        self.route_latency_p95_seconds = d.gauge(
            "route_latency_p95_seconds", "95th percentile of a route's response times.", _ROUTE
        )
        self.route_slo_seconds = d.gauge(
            "route_slo_seconds", "The 95th percentile that the route's profile asks for.", _ROUTE
        )
        self.route_demand_rps = d.gauge("route_demand_rps", "Calls per second.", _ROUTE)
        self.calibration_ratio = d.gauge(
            "calibration_ratio",
            "Factor by which a route's forecasts are trusted less than computed.",
            _ROUTE,
        )
        one = ["provider"]
        self.provider_rps = d.gauge("provider_rps", "Requests per second, all callers.", one)
        self.provider_latency_seconds = d.gauge(
            "provider_latency_seconds", "Mean response time over all callers.", one
        )
        self.provider_utilisation_ratio = d.gauge(
            "provider_utilisation_ratio", "Load by estimated capacity; 1 is saturated.", one
        )
        self.provider_error_ratio = d.gauge(
            "provider_error_ratio", "Failed requests by all requests.", one
        )
        self.provider_price_usd_per_million = d.gauge(
            "provider_price_usd_per_million", "Price of a million requests.", one
        )
        self._of_route = (
            self.route_share,
            self.route_observed_share,
            self.route_latency_p95_seconds,
            self.route_slo_seconds,
            self.route_demand_rps,
            self.calibration_ratio,
        )
        self._of_provider = (
            self.provider_rps,
            self.provider_latency_seconds,
            self.provider_utilisation_ratio,
            self.provider_error_ratio,
            self.provider_price_usd_per_million,
        )

    def _declare_history(self, d: _Declare) -> None:
        self.history_up = d.gauge(
            "history_up", "1 while history is written, 0 while it is off or its file unusable."
        )
        self.history_rows_total = d.counter("history_rows_total", "Rows written to history.")
        self.history_dropped_total = d.counter(
            "history_dropped_total",
            "What history lost, by why: ticks (queue, off), transactions (failed), else rows.",
            ["reason"],
        )
        self.history_flush_seconds = d.histogram(
            "history_flush_seconds", "Time that one transaction of history takes.", _TICK_S
        )
        self.history_file_bytes = d.gauge(
            "history_file_bytes", "Size of the history file and its log."
        )

    def _declare_process(self) -> None:
        self.build = Info("xds_server_build", "What is running.", registry=self.registry)
        self.build.info({"version": version("xds-server"), "python": platform.python_version()})
        self.tasks = _Declare(self.registry).gauge(
            "tasks", "Tasks of the event loop at the last tick: a few per open stream."
        )
        ProcessCollector(registry=self.registry)  # process_*, the names that dashboards know

    def keep_routes(self, routes: Iterable[RouteKey]) -> None:
        """Forget the series of every route that was kept before and is not among these."""
        current = frozenset(routes)
        for gone in self._routes - current:
            self.forget_route(gone)
        self._routes = current

    def forget_route(self, route: RouteKey) -> None:
        """Remove a route's series, so that what is gone does not linger at its last value."""
        group = route.group
        values = (group.application, group.phase, str(group.locality), route.service)
        labels = dict(zip(_ROUTE, values, strict=True))
        for metric in self._of_route:
            metric.remove_by_labels(labels)

    def forget_provider(self, provider: str) -> None:
        """Remove the series of a provider that mesh.yaml no longer names."""
        of_route = (self.route_share, self.route_observed_share)
        for metric in (*self._of_provider, *of_route, self.registry_leases):
            metric.remove_by_labels({"provider": provider})
