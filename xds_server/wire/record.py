"""Counts what the wire does."""

import structlog

from xds_server.model.ids import SHORT
from xds_server.observability import Metrics
from xds_server.protocol.events import Acked, Event, Nacked, Quarantined, Stale, UnknownType
from xds_server.protocol.messages import Response
from xds_server.wire.pump import Stream

log = structlog.get_logger()


class Recorder:
    """Observer of streams and tally of telemetry, into metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def opened(self, stream: Stream) -> None:
        """A node announced itself on a new stream."""
        self._metrics.streams_open.labels(stream.protocol).inc()

    def received(self, stream: Stream, event: Event) -> None:
        """A request meant this."""
        m = self._metrics
        if isinstance(event, UnknownType):
            m.unknown_types_total.inc()
            return
        kind = SHORT[event.type_url]
        if isinstance(event, Quarantined):
            m.quarantined_total.labels(kind).inc()
            return
        m.requests_total.labels(kind).inc()
        match event:
            case Acked(latency_s=latency_s):
                m.acks_total.labels(kind).inc()
                m.ack_latency_seconds.labels(kind).observe(latency_s)
            case Nacked():
                m.nacks_total.labels(kind).inc()
            case Stale():
                m.stale_total.labels(kind).inc()

    def sent(self, stream: Stream, response: Response) -> None:
        """A response was handed to the transport."""
        kind = SHORT[response.type_url]
        how = "heartbeat" if response.heartbeat else "unwedge" if response.unwedge else "push"
        self._metrics.responses_total.labels(kind, how).inc()
        self._metrics.push_bytes_total.labels(kind).inc(len(response.payload))

    def closed(self, stream: Stream, reason: str) -> None:
        """The stream ended."""
        self._metrics.streams_open.labels(stream.protocol).dec()
        self._metrics.streams_ended_total.labels(reason).inc()

    def telemetry(self, source: str, *, messages: int, samples: int, dropped: int) -> None:
        """One message was decoded."""
        m = self._metrics
        m.telemetry_messages_total.labels(source).inc(messages)
        m.telemetry_samples_total.labels(source).inc(samples)
        if dropped:
            m.telemetry_refused_total.labels(source, "value").inc(dropped)

    def telemetry_refused(self, source: str, reason: str) -> None:
        """One message or stream was refused."""
        self._metrics.telemetry_refused_total.labels(source, reason).inc()
