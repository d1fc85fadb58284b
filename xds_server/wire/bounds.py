"""How much one telemetry stream may send, so that no node takes the loop from the others."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from xds_server.errors import RemoteProtocolError

TIMES_AGREED: Final = 20.0
"""How many messages may come in an agreed interval; an Envoy that splits its flushes, or has
an older configuration, sends more than one."""
INTERVAL_MAX_S: Final = 1.0
"""Longer intervals are bounded as this one, since a reload may make them longer than those
that Envoys have from their bootstraps."""
BURST: Final = 100.0
"""Messages that may come at once, after this process was held up."""
SHARE_BYTES: Final = 512 * 1024
"""A message counts once more for each of these."""
PACES_MAX: Final = 10_000
"""Connections whose pace is kept; the least recently heard starts with a full bucket again."""


class OversizedError(RemoteProtocolError):
    """A message is too large to be read."""


class Pace:
    """A token bucket, and a bound of size, for one stream.

    Loss policy: what comes beyond the pace is dropped unread, the newest first, and then the
    stream is not read for ``gap_s``, so that its client is slowed down by HTTP/2. Counters are
    cumulative, so the next message has what was lost of them; of histograms it is lost.
    """

    __slots__ = ("_at_s", "_max_bytes", "_per_s", "_tokens", "lost")

    def __init__(self, interval_s: float, max_bytes: int) -> None:
        self._per_s = TIMES_AGREED / min(interval_s, INTERVAL_MAX_S)
        self._max_bytes = max_bytes
        self._tokens, self._at_s = BURST, -1.0
        self.lost = 0

    @property
    def gap_s(self) -> float:
        """How long to wait after a message that was dropped."""
        return 1.0 / self._per_s

    def take(self, size_bytes: int, now_s: float) -> bool:
        """Whether a message may be read now. Raises OversizedError when it never may."""
        if size_bytes > self._max_bytes:
            most = self._max_bytes // 2**20
            raise OversizedError(f"a message of {size_bytes} bytes; the most is {most} MiB")
        if self._at_s >= 0.0:
            self._tokens = min(BURST, self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        cost = 1.0 + size_bytes // SHARE_BYTES
        if self._tokens < cost:
            self.lost += 1
            return False
        self._tokens -= cost
        return True


class Paces:
    """The pace of each connection, where messages are calls of their own; bounded."""

    def __init__(self) -> None:
        self._paces: OrderedDict[str, Pace] = OrderedDict()

    def of(self, peer: str, start: Callable[[], Pace]) -> Pace:
        """Return a connection's, a new one by ``start``."""
        pace = self._paces.get(peer)
        if pace is None:
            pace = self._paces[peer] = start()
            if len(self._paces) > PACES_MAX:
                self._paces.popitem(last=False)
        self._paces.move_to_end(peer)
        return pace
