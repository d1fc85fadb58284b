"""Counts what the wire does."""

import structlog

from xds_server.model.ids import SHORT
from xds_server.observability import Metrics
from xds_server.protocol.events import Acked, Event, Nacked, Quarantined, Stale, UnknownType
from xds_server.protocol.messages import Response
from xds_server.wire.pump import Stream

log = structlog.get_logger()


class _OfType:
    """What is counted for every push and ACK, of one type: found once, since that costs most."""

    __slots__ = ("ack", "ack_latency", "push", "push_bytes", "request")

    def __init__(self, m: Metrics, kind: str) -> None:
        self.request = m.requests_total.labels(kind).adder()
        self.ack = m.acks_total.labels(kind).adder()
        self.ack_latency = m.ack_latency_seconds.labels(kind).adder()
        self.push = m.responses_total.labels(kind, "push").adder()
        self.push_bytes = m.push_bytes_total.labels(kind).adder()


class Recorder:
    """Observer of streams and tally of telemetry, into metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._of = {url: _OfType(metrics, kind) for url, kind in SHORT.items()}

    def waiting(self, streams: int) -> None:
        """So many streams wait to be let in."""
        self._metrics.streams_waiting.set(streams)

    def refused(self, reason: str) -> None:
        """A stream was refused before a node was known on it."""
        self._metrics.streams_refused_total.labels(reason).inc()

    def opened(self, stream: Stream) -> None:
        """A node announced itself on a new stream."""
        self._metrics.streams_open.labels(stream.protocol).inc()

    def received(self, stream: Stream, event: Event) -> None:
        """A request meant this."""
        m = self._metrics
        if type(event) is Acked:
            series = self._of[event.type_url]
            series.request(1)
            series.ack(1)
            series.ack_latency(event.latency_s)
            return
        if isinstance(event, UnknownType):
            m.unknown_types_total.inc()
            return
        series = self._of[event.type_url]
        match event:
            case Quarantined():
                m.quarantined_total.labels(SHORT[event.type_url]).inc()
            case Nacked():
                series.request(1)
                m.nacks_total.labels(SHORT[event.type_url]).inc()
            case Stale():
                series.request(1)
                m.stale_total.labels(SHORT[event.type_url]).inc()
            case _:
                series.request(1)

    def sent(self, stream: Stream, response: Response) -> None:
        """A response was handed to the transport."""
        series = self._of[response.type_url]
        if response.heartbeat or response.unwedge:
            how = "heartbeat" if response.heartbeat else "unwedge"
            self._metrics.responses_total.labels(SHORT[response.type_url], how).inc()
        else:
            series.push(1)
        series.push_bytes(len(response.payload))

    def closed(self, stream: Stream, reason: str) -> None:
        """The stream ended."""
        self._metrics.streams_open.labels(stream.protocol).dec()
        self._metrics.streams_ended_total.labels(reason).inc()

    def telemetry(self, source: str, *, messages: int, samples: int) -> None:
        """Messages were decoded."""
        m = self._metrics
        m.telemetry_messages_total.labels(source).inc(messages)
        m.telemetry_samples_total.labels(source).inc(samples)

    def telemetry_refused(self, source: str, reason: str, count: int = 1) -> None:
        """Messages, values or a stream were refused."""
        self._metrics.telemetry_refused_total.labels(source, reason).inc(count)

    def telemetry_event(self, source: str, event: str) -> None:
        """A message was taken in that did not follow from the one before."""
        self._metrics.telemetry_events_total.labels(source, event).inc()
