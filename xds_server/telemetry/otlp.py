"""OTLP exports of Envoy's OpenTelemetry sink to batches of samples."""

import hashlib
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from xds_server.model.ids import NodeId, ProviderName
from xds_server.model.telemetry import Floats, SampleBatch
from xds_server.telemetry.counters import ABSURD_RATE, NODES_KEPT, RESET, Base, Bases
from xds_server.telemetry.otlp_values import TIMES, OtlpValues
from xds_server.telemetry.values import MOST_PER_S

_DIGEST_BYTES: Final = 16


@dataclass(slots=True)
class _Times:
    """The last histograms of one node, by provider."""

    rows: dict[ProviderName, Floats] = field(default_factory=dict)  # (TIMES,) each
    totals_ms: int = 0  # when totals were sent last, of counters or of histograms

    def advance(self, names: tuple[ProviderName, ...], current: Floats) -> Floats:
        """Replace them; return the increments (K, TIMES).

        A histogram of which any bucket fell counts anew as a whole. NaN is one that the
        message does not have, and one that was unknown counts from 0.
        """
        if not names:
            return np.zeros((0, TIMES))
        zeros = np.zeros(TIMES)
        before = np.array([self.rows.get(name, zeros) for name in names])
        now = np.where(np.isnan(current), before, current)
        fell = (now[:, :-1] < before[:, :-1]).any(axis=1, keepdims=True)
        self.rows.update(zip(names, now, strict=True))
        more: Floats = np.where(fell, now, np.maximum(now - before, 0.0))
        return more


class OtlpDecoder:
    """Decodes exports of all nodes; ``bases`` are where each node's counters are.

    They may be the metrics service's too: a node that reports by both sinks is then counted
    once.

    Of the export that was decoded last, ``hosts`` are the healthy hosts per provider,
    ``refused`` says why how many values (or it as a whole) were dropped, and ``events`` how it
    did not follow from the one before. Bounded: of more than ``NODES_KEPT`` nodes, the least
    recently heard starts from a new base.
    """

    def __init__(self, bases: Bases | None = None) -> None:
        self._bases = Bases() if bases is None else bases
        self._times: OrderedDict[NodeId, _Times] = OrderedDict()
        self.refused: Counter[str] = Counter()
        self.events: list[str] = []
        self.hosts: dict[ProviderName, float] = {}

    def decode(
        self, body: bytes, values: OtlpValues, node_id: NodeId, now_s: float
    ) -> SampleBatch | None:
        """Return the increments since the node's export before; None for its first.

        None also for one that is not counted: repeated, or older than the one before.
        ``values`` are what ``body`` says. What a first export counts, with deltas too, began
        before it was ours.
        """
        self.refused, self.events, self.hosts = Counter(values.refused), [], values.hosts
        base = self._bases.get(node_id)
        digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
        if base is None:
            base = self._bases.start(node_id, values.names, values.raw, now_s)
            base.admit(values.sent_ms, digest)
            self._start(node_id, values)
            return None
        if why := base.admit(values.sent_ms, digest):
            self.refused[why] += 1
            self.hosts = {}
            return None
        starting = base.starting
        batch = self._counted(base, values, node_id, now_s)
        return None if starting else batch

    def _start(self, node_id: NodeId, values: OtlpValues) -> _Times:
        """Remember the first histograms of a node: what was before them is not ours."""
        times = self._times[node_id] = _Times()
        times.advance(values.names, values.times)
        times.totals_ms = values.sent_ms if values.start_ms else 0
        while len(self._times) > NODES_KEPT:
            self._times.popitem(last=False)
        return times

    def _counted(
        self, base: Base, values: OtlpValues, node_id: NodeId, now_s: float
    ) -> SampleBatch:
        """Take the differences."""
        times = self._times.get(node_id)
        if times is None:  # its counters are known from another process, or another sink
            times = self._start(node_id, values)
        self._times.move_to_end(node_id)
        interval_s = base.interval_s
        # An Envoy that started after the last totals counts anew, even where it is further by now.
        anew = values.start_ms > times.totals_ms > 0
        if anew:
            base.values = np.zeros_like(base.values)
            base.absent.clear()
            times.rows.clear()
        if values.start_ms:
            times.totals_ms = values.sent_ms
        names = base.names if values.names == base.names else values.names
        raw, covered_s = base.advance(names, values.raw, now_s)
        hist = times.advance(names, values.times) + values.times_delta
        raw = raw + values.raw_delta
        if anew:
            covered_s = base.interval_s = min(covered_s, interval_s)
        self.events = [*base.events, *([RESET] if anew and RESET not in base.events else [])]
        self._refuse_absurd(base, raw, values.raw_delta, hist, covered_s)
        counts = np.empty((len(raw), 4))
        np.sum(raw[:, :4], axis=1, out=counts[:, 0])  # attempts
        np.add(raw[:, 4], raw[:, 5], out=counts[:, 1])  # failures
        counts[:, 2:] = raw[:, 6:8]
        return SampleBatch(
            node_id, names, covered_s, counts, hist[:, -1] / 1e3, hist[:, :-1], values.active
        )

    def _refuse_absurd(
        self, base: Base, raw: Floats, delta: Floats, hist: Floats, covered_s: float
    ) -> None:
        """Take out of ``raw`` and ``hist`` what no Envoy can count in that time."""
        most = MOST_PER_S * max(covered_s, 1.0)
        false = delta > most
        raw[false] = 0.0
        fast = hist[:, :-1].sum(axis=1) > most[0]
        hist[fast] = 0.0
        if wrong := base.absurd + int(false.sum()) + int(fast.sum()):
            self.refused[ABSURD_RATE] += wrong
