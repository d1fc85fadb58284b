"""Messages of Envoy's metrics service to batches of samples."""

from collections import Counter, OrderedDict
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError

from xds_server.generated import xds_server_metrics_pb2 as pb
from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import SampleBatch
from xds_server.telemetry.counters import ABSURD_RATE, Base, Bases
from xds_server.telemetry.layout import Layout, Layouts, open_field
from xds_server.telemetry.messages import parsed
from xds_server.telemetry.values import MOST_PER_S, Values, read_message

LAYOUTS_MAX: Final = 16
"""Layouts kept per stream (a flush may come in several messages); the oldest is dropped."""
PATIENCE: Final = 8
"""Layouts that a stream may need anew without a message that fits; then none is learned for
as many messages as ``REST``, so that a stream without any order costs little more."""
REST: Final = 256
_IDENTIFIER, _FAMILY = b"\x0a", b"\x12"


class MetricsDecoder:
    """Decodes one stream's messages; the bases belong to all streams together.

    What cannot be true is dropped, what is not a provider's is ignored. Of the message that was
    decoded last, ``hosts`` are the healthy hosts per provider, ``refused`` says why how many
    values (or it as a whole) were dropped, and ``events`` how it did not follow from the one
    before.
    """

    def __init__(
        self,
        bases: Bases,
        providers: frozenset[ProviderName],
        shared: Layouts | None = None,
    ) -> None:
        self._bases, self._providers = bases, providers
        self._shared = shared if shared is not None else Layouts()
        self._layouts: OrderedDict[bytes, Layout] = OrderedDict()
        self._misses = self._resting = 0
        self._held: Base | None = None
        self.samples = 0
        self.refused: Counter[str] = Counter()
        self.events: list[str] = []
        self.hosts: dict[ProviderName, float] = {}

    def use(self, providers: frozenset[ProviderName]) -> None:
        """Say whose samples count from now on."""
        if providers != self._providers:
            self._providers = providers
            self._layouts.clear()
            self._misses = self._resting = 0

    def hold(self, body: bytes, node_id: NodeId, now_s: float) -> None:
        """Remember where the counters are that may be counted only later.

        If the node is unknown then, counting starts from here. Only the stream's first flush is
        read. Raises RemoteProtocolError when it is no message.
        """
        held = self._held
        if held is None and self._bases.get(node_id) is not None:
            return
        at = _after_identifier(body) if body[:1] == _IDENTIFIER else 0
        sent_ms, first = _sent(body, at)
        if held is None:
            values = self._read(body, at)
            held = self._held = Bases().start(node_id, values.names, values.raw, now_s)
            held.admit(sent_ms, first)
        elif sent_ms and sent_ms == held.sent_ms and not held.admit(sent_ms, first):
            values = self._read(body, at)
            held.advance(values.names, values.raw, now_s)

    def release(self) -> None:
        """Forget what was held."""
        self._held = None

    def decode(self, body: bytes, node_id: NodeId, now_s: float) -> SampleBatch | None:
        """Return the increments since the node's message before; None for its first.

        None also for one that is not counted: repeated, or older than the one before. What was
        held is the base of a node without one. Raises RemoteProtocolError when ``body`` is no
        message.
        """
        self.samples, self.refused, self.events, self.hosts = 0, Counter(), [], {}
        base = self._bases.get(node_id)
        if base is None and self._held is not None:
            base = self._held
            self._bases.put(node_id, base)
        self._held = None
        at = _after_identifier(body) if body[:1] == _IDENTIFIER else 0
        sent_ms, first = _sent(body, at)
        if base is not None and (why := base.admit(sent_ms, first)):
            self.refused[why] += 1
            return None
        values = self._read(body, at)
        self.samples, self.refused, self.hosts = values.samples, values.refused, values.hosts
        if base is None:
            base = self._bases.start(node_id, values.names, values.raw, now_s)
            base.admit(sent_ms, first)
            return None
        starting = base.starting
        batch = self._counted(base, values, node_id, now_s)
        return None if starting else batch

    def _counted(self, base: Base, values: Values, node_id: NodeId, now_s: float) -> SampleBatch:
        raw, covered_s = base.advance(values.names, values.raw, now_s)
        self.events = base.events
        most = MOST_PER_S[0] * max(covered_s, 1.0)
        absurd = values.hist.sum(axis=1) > most
        if absurd.any():
            values.hist[absurd], values.times_s[absurd] = 0.0, 0.0
        if wrong := base.absurd + int(absurd.sum()):
            self.refused[ABSURD_RATE] += wrong
        counts = np.empty((len(raw), 4))
        np.sum(raw[:, :4], axis=1, out=counts[:, 0])  # attempts
        np.add(raw[:, 4], raw[:, 5], out=counts[:, 1])  # failures
        counts[:, 2:] = raw[:, 6:8]
        return SampleBatch(
            node_id, values.names, covered_s, counts, values.times_s, values.hist, values.active
        )

    def _read(self, body: bytes, at: int) -> Values:
        if body[:1] != _IDENTIFIER:
            key = _first_name(body, 0)
            layout = self._layouts.get(key)
            values = layout.read(body, 0) if layout is not None else None
            if values is not None:
                self._misses = 0
                return values
        message = parse_metrics(body)
        self._learn(body, at, _first_name(body, at))
        return read_message(message, self._providers)

    def _learn(self, body: bytes, at: int, key: bytes) -> None:
        if self._resting:
            self._resting -= 1
            return
        self._misses += 1
        if self._misses > PATIENCE:
            self._misses, self._resting = 0, REST
            return
        self._layouts.pop(key, None)
        layout = self._shared.learn(body, at, self._providers)
        if layout is not None:
            self._layouts[key] = layout
            if len(self._layouts) > LAYOUTS_MAX:
                self._layouts.popitem(last=False)


def parse_metrics(body: bytes) -> pb.StreamMetricsMessage:
    """Read one message. Raises RemoteProtocolError when it is none, or too large to be read."""
    return parsed(pb.StreamMetricsMessage, body)


def _first_name(body: bytes, at: int) -> bytes:
    """The name of the first family, which tells a flush's messages apart."""
    return body[at : at + 64].partition(b"\x18")[0]


def _sent(body: bytes, at: int) -> tuple[int, bytes]:
    """When a message was sent by its first family, ms (0: it does not say), and that family."""
    try:
        if body[at : at + 1] != _FAMILY:
            return 0, b""
        start, end = open_field(body, at)
        first = body[start:end]
        metrics = pb.MetricFamily.FromString(first).metric
    except (IndexError, DecodeError):  # who reads the message will say so
        return 0, b""
    return (metrics[0].timestamp_ms if metrics else 0), first


def _after_identifier(body: bytes) -> int:
    """End of the first field; of what is no message, anywhere."""
    try:
        return open_field(body, 0)[1]
    except IndexError:
        return len(body)
