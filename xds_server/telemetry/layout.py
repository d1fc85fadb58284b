"""Where the values are in a stream's messages.

An Envoy writes the same families in the same order at every flush, and of a counter nothing
but its eight bytes and the time stamp changes. So the names are resolved once: the layout of a
message is kept, each later message is checked against it, family by family with one comparison
of bytes, and all values are taken out at once. A message that differs is parsed as a whole
and gives a new layout.

Field numbers are those of envoy/service/metrics/v3/metrics_service.proto and of the Prometheus
data model (io/prometheus/client/metrics.proto), as in ``protos/xds_server_metrics.proto``.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError

from xds_server.generated import xds_server_metrics_pb2 as pb
from xds_server.model.ids import ProviderName
from xds_server.model.telemetry import Floats, Ints
from xds_server.telemetry.values import (
    ABSURD,
    BOUNDS,
    BUCKETS,
    GAUGE_MOST,
    HISTOGRAM,
    HOSTS,
    RAW,
    TIME,
    Values,
    believable,
    histograms,
    interesting,
    labels,
    rebinned,
    why_not,
)

_IDENTIFIER, _FAMILY, _METRIC = b"\x0a", b"\x12", b"\x22"
_GAUGE, _COUNTER = b"\x12\x09\x09", b"\x1a\x09\x09"  # one that holds a double
_EIGHT: Final = np.arange(8)
_SKIPPED, _NUMBER, _TIMES, _OTHER = range(4)
_TIMESTAMP, _HISTOGRAM = 0x30, 0x3A
SHARED_MAX: Final = 64
"""Layouts that are kept for streams to share, 20 KB or so each; the least recently learned is
forgotten, and then belongs to the streams that use it. An Envoy has some until all its
statistics exist, and another order after a restart, so most are of no more use."""
_Times: TypeAlias = tuple[float, int, Sequence[float]]
"""Sum in ms, responses, cumulative buckets."""


@dataclass(frozen=True, slots=True)
class _Family:
    """One family: what is compared, and how long it is (0: that differs)."""

    kind: int
    head: bytes  # from the family's tag to its value; of what varies, from its name on
    size: int
    labels: bytes = b""  # of a histogram: the labels and the tag of the time stamp
    bounds: tuple[float, ...] = ()


@dataclass(slots=True)
class Layout:
    """One message's families, and which cell of the arrays each value belongs to."""

    names: tuple[ProviderName, ...]
    families: list[_Family]
    raw_from: Ints  # places among the numbers ...
    raw_to: Ints  # ... and in the flattened counters
    active_from: Ints
    active_to: Ints
    hosts_from: Ints
    hosts_to: tuple[ProviderName, ...]
    times_to: Ints  # row of each histogram
    most: Floats  # what each number can be at most
    samples: int
    _fixed: list[tuple[bytes, int, int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._fixed = [(f.head, len(f.head), f.size, f.kind) for f in self.families]

    def read(self, body: bytes, at: int) -> Values | None:
        """Read a message from its first family on; None if it is laid out otherwise."""
        found = self._find(body, at)
        if found is None:
            return None
        numbers, times = found
        raw, active, hosts, refused = self._numbers(body, numbers)
        sums_s, hist, false = self._times(times)
        if false:
            refused[HISTOGRAM] += false
        return Values(self.names, raw, active, sums_s, hist, hosts, self.samples, refused)

    def _find(self, body: bytes, at: int) -> tuple[list[int], list[_Times]] | None:
        """Offsets of all numbers, and every histogram."""
        numbers: list[int] = []
        times: list[_Times] = []
        append, same, i = numbers.append, body.startswith, 0
        try:
            for head, head_size, size, kind in self._fixed:
                if size:
                    if not same(head, at):
                        return None
                    if kind == _NUMBER:
                        append(at + head_size)
                    at += size
                else:
                    start, end = open_field(body, at)
                    if not same(_FAMILY, at) or not same(head, start):
                        return None
                    if kind == _TIMES:
                        found = _histogram(body, start + head_size, end, self.families[i])
                        if found is None:
                            return None
                        times.append(found)
                    at = end
                i += 1
        except (IndexError, DecodeError):  # it ends in the middle, or is none
            return None
        return (numbers, times) if at == len(body) else None

    def _numbers(
        self, body: bytes, at: list[int]
    ) -> tuple[Floats, Floats, dict[ProviderName, float], Counter[str]]:
        """Counters, requests in flight, healthy hosts; and why values were dropped."""
        cells = np.frombuffer(body, np.uint8)[np.array(at, dtype=np.int64)[:, None] + _EIGHT]
        values = cells.view("<f8").ravel()
        bad = ~((values >= 0.0) & (values <= self.most))  # true for NaN
        refused: Counter[str] = Counter()
        if bad.any():
            refused = why_not(values, self.most)
            values = np.where(bad, np.nan, values)
        raw = np.full((len(self.names), len(RAW)), np.nan)
        raw.reshape(-1)[self.raw_to] = values[self.raw_from]
        active = np.zeros(len(self.names))
        active[self.active_to] = values[self.active_from]
        hosts = dict(zip(self.hosts_to, values[self.hosts_from].tolist(), strict=True))
        if refused:
            active = np.nan_to_num(active, nan=0.0)
            hosts = {name: count for name, count in hosts.items() if count == count}
        return raw, active, hosts, refused

    def _times(self, times: list[_Times]) -> tuple[Floats, Floats, int]:
        """Sums in s, responses per bucket; and how many histograms were dropped."""
        count = len(self.names)
        below, counts, sums = np.zeros((count, BUCKETS)), np.zeros(count), np.zeros(count)
        false = 0
        for row, (total, responses, cumulative) in zip(self.times_to, times, strict=True):
            if believable(total, responses):
                below[row], counts[row], sums[row] = cumulative, responses, total
            else:
                false += 1
        sums_s, hist, fell = histograms(below, counts, sums)
        return sums_s, hist, false + fell


class Layouts:
    """Layouts that streams share: sidecars of one application write alike.

    What is kept is bounded by ``SHARED_MAX`` and the streams that use it.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[_Family, ...], Layout] = OrderedDict()
        self._providers: frozenset[ProviderName] = frozenset()

    def learn(self, body: bytes, at: int, providers: frozenset[ProviderName]) -> Layout | None:
        """Return the layout of a message, the same object for the same layout."""
        if providers != self._providers:  # what is read differs
            self._known.clear()
            self._providers = providers
        layout = learn(body, at, providers)
        if layout is None:
            return None
        key = tuple(layout.families)
        layout = self._known.setdefault(key, layout)
        self._known.move_to_end(key)
        if len(self._known) > SHARED_MAX:
            self._known.popitem(last=False)
        return layout


def learn(body: bytes, at: int, providers: frozenset[ProviderName]) -> Layout | None:
    """Return the layout of a message from its first family on; None if it has none to keep.

    It has none where a value that is read is written in another form than Envoy's.
    """
    families: list[_Family] = []
    cells: list[tuple[str, ProviderName]] = []  # of the numbers, in order
    times: list[ProviderName] = []
    try:
        while at < len(body):
            if body[at : at + 1] != _FAMILY:
                return None
            start, end = open_field(body, at)
            family, what = _family(body, at, start, end, providers)
            if family is None:
                return None
            families.append(family)
            if family.kind == _NUMBER:
                cells.append(what)
            elif family.kind == _TIMES:
                times.append(what[1])
            at = end
    except (IndexError, ValueError):
        return None
    return _arrange(families, cells, times)


def _arrange(
    families: list[_Family], cells: list[tuple[str, ProviderName]], times: list[ProviderName]
) -> Layout | None:
    names = tuple(dict.fromkeys(p for name, p in cells if name in RAW))
    row = {name: k for k, name in enumerate(names)}
    unread = [p for p in times if p not in row]  # times without a counter: no such Envoy
    if len(set(cells)) < len(cells) or len(set(times)) < len(times) or unread:
        return None
    raw = [(i, row[p] * len(RAW) + RAW[n]) for i, (n, p) in enumerate(cells) if n in RAW]
    hosts = [(i, p) for i, (n, p) in enumerate(cells) if n == HOSTS]
    active = [
        (i, row[p]) for i, (n, p) in enumerate(cells) if n not in RAW and n != HOSTS and p in row
    ]
    return Layout(
        names,
        families,
        _ints([i for i, _ in raw]),
        _ints([k for _, k in raw]),
        _ints([i for i, _ in active]),
        _ints([k for _, k in active]),
        _ints([i for i, _ in hosts]),
        tuple(p for _, p in hosts),
        _ints([row[p] for p in times]),
        np.array([ABSURD if name in RAW else GAUGE_MOST for name, _ in cells]),
        len(cells) + len(times),
    )


def _family(
    body: bytes, at: int, start: int, end: int, providers: frozenset[ProviderName]
) -> tuple[_Family | None, tuple[str, ProviderName]]:
    """Lay out one family; what it is of, if it is read. None: it cannot be kept."""
    parsed = pb.MetricFamily.FromString(body[start:end])
    name, metrics = parsed.name, parsed.metric
    own = _name_end(body, start)
    skipped = _Family(_OTHER, body[start:own], 0), ("", "")
    if len(metrics) != 1:
        mine = any(interesting(name, *labels(m), providers) for m in metrics)
        return (None, ("", "")) if mine else skipped
    provider, code_class = labels(metrics[0])
    read = interesting(name, provider, code_class, providers)
    inner = body.find(_METRIC, own, end)
    metric, metric_end = open_field(body, inner)
    if metric_end != end:
        return (None, ("", "")) if read else skipped
    value = _labels_end(body, metric, end)
    if name == TIME:
        if not read:
            return skipped
        if body[value] != _TIMESTAMP:
            return None, ("", "")
        bounds = tuple(b.upper_bound for b in metrics[0].histogram.bucket)
        head, tail = body[start : inner + 1], body[metric : value + 1]
        return _Family(_TIMES, head, 0, tail, bounds), (name, provider)
    kind = body[value : value + 3]
    if read and kind != (_COUNTER if name in RAW else _GAUGE):
        return None, ("", "")
    if kind not in (_GAUGE, _COUNTER):
        return skipped
    head = body[at : value + 3]
    return _Family(_NUMBER if read else _SKIPPED, head, end - at), (name, provider)


def _histogram(body: bytes, at: int, end: int, family: _Family) -> _Times | None:
    """Sum in ms, count and cumulative buckets of a histogram family from its metric on."""
    at, metric_end = open_field(body, at - 1)
    if metric_end != end or not body.startswith(family.labels, at):
        return None
    at += len(family.labels)
    while body[at] >= 0x80:
        at += 1
    at += 1
    if body[at] != _HISTOGRAM:
        return None
    start, stop = open_field(body, at)
    if stop != end:
        return None
    parsed = pb.Histogram.FromString(body[start:stop])
    cumulative = [b.cumulative_count for b in parsed.bucket]
    if len(cumulative) != len(family.bounds):
        return None
    if list(family.bounds) != BOUNDS:
        return parsed.sample_sum, parsed.sample_count, rebinned(family.bounds, cumulative)
    return parsed.sample_sum, parsed.sample_count, cumulative


def open_field(body: bytes, at: int) -> tuple[int, int]:
    """Start and end of the length-delimited field at ``at``. Raises IndexError past the end."""
    size, shift = body[at + 1], 7
    start = at + 2
    if size >= 0x80:
        size &= 0x7F
        while True:
            more = body[start]
            start += 1
            size |= (more & 0x7F) << shift
            if more < 0x80:
                break
            shift += 7
    end = start + size
    if end > len(body):
        raise IndexError(at)
    return start, end


def _name_end(body: bytes, start: int) -> int:
    """End of a family's name, its first field."""
    if body[start : start + 1] != _IDENTIFIER:
        raise ValueError("no name")
    return open_field(body, start)[1]


def _labels_end(body: bytes, at: int, end: int) -> int:
    """End of a metric's labels, its first fields."""
    while at < end and body[at : at + 1] == _IDENTIFIER:
        at = open_field(body, at)[1]
    return at


def _ints(values: list[int]) -> Ints:
    return np.array(values, dtype=np.int64)
