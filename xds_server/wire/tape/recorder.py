"""Records every xDS stream of this process, without ever being waited for."""

import os
from collections import deque
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from threading import Condition, Thread
from typing import Final, Protocol

import structlog

from xds_server.errors import AdapterError, RecordingFullError
from xds_server.model.ids import NodeId, TypeUrl
from xds_server.model.snapshot import Node, Snapshot
from xds_server.observability import Metrics
from xds_server.ports import Clock
from xds_server.protocol.messages import Response
from xds_server.protocol.quarantine import Quarantine
from xds_server.wire.tape.calls import Call, Closed, Cut, Opened, Polled, Received, Settings
from xds_server.wire.tape.format import Seal
from xds_server.wire.tape.store import Disk, RealDisk, Store, lock, prepare
from xds_server.wire.tape.writer import Writer

log = structlog.get_logger()

QUEUE_CALLS: Final = 16_384
QUEUE_BYTES: Final = 64 * 2**20
"""Bounds of what waits to be written. Loss policy: the stream whose call does not fit is no
longer recorded, and its tape says so; a tape with a gap could not be replayed."""
CLOSE_WITHIN_S: Final = 5.0
NODES_KEPT: Final = 65_536
"""Nodes whose quarantine is told from another's; the oldest is forgotten first."""


class Stream(Protocol):
    """What a recorder has to know of a stream."""

    @property
    def stream_id(self) -> int:
        """Unique in the process."""

    @property
    def protocol(self) -> str:
        """``sotw`` or ``delta``."""

    @property
    def only(self) -> TypeUrl | None:
        """Type of a stream that is not aggregated."""

    @property
    def drain_s(self) -> float:
        """How long its machine lets clusters drain."""

    @property
    def quarantine(self) -> Quarantine | None:
        """What its node refused; None before the node is known."""


class _Queue:
    """Calls that wait for the writer's thread; bounded in number and in bytes."""

    def __init__(self, calls_max: int, bytes_max: int) -> None:
        self._calls: deque[tuple[Call, int]] = deque()
        self._calls_max, self._bytes_max = calls_max, bytes_max
        self._bytes = 0
        self._changed = Condition()
        self._closed = self._taken = False

    def put(self, call: Call, size: int) -> bool:
        """Add a call, unless there is no room for it; an end always has room."""
        with self._changed:
            full = len(self._calls) >= self._calls_max or self._bytes + size > self._bytes_max
            if full and not isinstance(call, Cut | Closed):
                return False
            self._calls.append((call, size))
            self._bytes += size
            self._changed.notify_all()
            return True

    def take(self) -> Call | None:
        """Wait for the next call; None when there will be none."""
        with self._changed:
            self._taken = False
            self._changed.notify_all()
            while not self._calls and not self._closed:
                self._changed.wait()
            if not self._calls:
                return None
            call, size = self._calls.popleft()
            self._bytes -= size
            self._taken = True
            return call

    def wait(self, within_s: float) -> bool:
        """Wait until nothing waits and nothing is taken; say whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._calls or self._taken), within_s)

    def close(self) -> None:
        """Let ``take`` return None once what waits is taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class TapeRecorder:
    """The Tape of the pump: takes calls down in order, and hands them to one thread.

    A full disk, a full folder or a full queue ends tapes, never streams.
    """

    def __init__(
        self,
        folder: Path,
        metrics: Metrics,
        clock: Clock,
        *,
        max_bytes: int,
        disk: Disk | None = None,
        queue_calls: int = QUEUE_CALLS,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        """Make the folder. Raises AdapterError when nothing can be written there."""
        try:
            first, self._lock = prepare(folder), lock(folder)
            store = Store(folder, disk or RealDisk(), max_bytes)
        except OSError as error:
            message = f"--record {folder}: cannot record there: {error.strerror}"
            raise AdapterError(message, retryable=False) from None
        self._metrics, self._clock = metrics, clock
        self._store = store
        self._run = os.urandom(8).hex()
        seal = Seal(os.urandom(32))
        self._writer = Writer(store, self._run, version("xds-server"), seal, first)
        self._queue = _Queue(queue_calls, queue_bytes)
        self._live: dict[int, NodeId] = {}
        self._shared: dict[NodeId, tuple[Quarantine, int]] = {}
        self._n = self._quarantines = 0
        self._failure = ""  # why recording stopped; the thread sets it, last
        self._bug: Exception | None = None
        self._stopped = False  # that this was seen, or that it was closed
        self._closed = False
        self._thread = Thread(target=self._work, name="tape", daemon=True)
        self._thread.start()

    # -- what the pump calls ---------------------------------------------------------

    def opened(self, stream: Stream, node: Node) -> None:
        """A stream's node is known."""
        if self._broken():
            return
        self._live[stream.stream_id] = node.node_id
        settings = Settings(stream.protocol, stream.only, stream.drain_s)
        quarantine = stream.quarantine
        if quarantine is None:
            quarantine = Quarantine()
        refused = dict(quarantine.refusals)
        shared = self._number(node.node_id, quarantine)
        now_s, wall_s = self._clock.now_s(), self._clock.wall_s()
        n, stream_id = self._next(), stream.stream_id
        self._put(Opened(n, stream_id, now_s, wall_s, settings, node, shared, refused), 4096)

    def received(self, stream: Stream, body: bytes, now_s: float) -> None:
        """The stream's machine got a request."""
        if stream.stream_id in self._live and not self._broken():
            self._put(Received(self._next(), stream.stream_id, now_s, body), len(body))

    def polled(
        self,
        stream: Stream,
        snapshot: Snapshot,
        now_s: float,
        heartbeat: bool,
        responses: Sequence[Response],
    ) -> None:
        """The stream's machine was asked what to send."""
        if stream.stream_id in self._live and not self._broken():
            size = sum(len(r.payload) for r in responses)
            n, sent = self._next(), tuple(responses)
            self._put(Polled(n, stream.stream_id, now_s, snapshot, heartbeat, sent), size)

    def closed(self, stream: Stream, reason: str) -> None:
        """The stream ended."""
        if stream.stream_id in self._live and not self._broken():
            self._put(Closed(self._next(), stream.stream_id, reason), 0)
            del self._live[stream.stream_id]

    def flush(self, within_s: float = CLOSE_WITHIN_S) -> bool:
        """Wait until all is written that was called; say whether that came in time."""
        return self._queue.wait(within_s)

    def close(self) -> None:
        """Write what waits, for a bounded time."""
        self._queue.close()
        self._thread.join(CLOSE_WITHIN_S)
        self._broken()
        if not self._closed:
            self._closed = self._stopped = True
            os.close(self._lock)

    # -- inside ----------------------------------------------------------------------

    def _next(self) -> int:
        self._n += 1
        return self._n

    def _number(self, node_id: NodeId, quarantine: Quarantine) -> int:
        known = self._shared.get(node_id)
        if known is not None and known[0] is quarantine:
            return known[1]
        self._quarantines += 1
        self._shared.pop(node_id, None)
        self._shared[node_id] = (quarantine, self._quarantines)
        if len(self._shared) > NODES_KEPT:
            del self._shared[next(iter(self._shared))]
        return self._quarantines

    def _put(self, call: Call, size: int) -> None:
        if self._queue.put(call, size):
            return
        node_id = self._live.pop(call.stream_id)
        if not isinstance(call, Opened):  # otherwise there is no tape to end
            self._queue.put(Cut(call.n, call.stream_id, "the disk is too slow"), 0)
        self._metrics.tapes_cut_total.labels("queue").inc()
        log.warning("tape.cut", node_id=node_id, stream_id=call.stream_id, reason="queue")

    def _broken(self) -> bool:
        """Whether recording stopped; says so once, in the thread that may log."""
        if self._failure and not self._stopped:
            self._stopped = True
            self._metrics.tapes_cut_total.labels(self._failure).inc(len(self._live))
            facts = {"reason": self._failure, "tapes": len(self._live)}
            log.warning("tape.stopped", exc_info=self._bug, **facts)
            self._live.clear()
        return self._stopped

    def _work(self) -> None:
        while (call := self._queue.take()) is not None:
            if self._failure:
                continue  # let go of what waits
            try:
                self._writer.write(call)
            except RecordingFullError:
                self._end("size", "the recording has reached --record-max-mib")
            except OSError as error:
                self._end("disk", f"the disk failed: {error.strerror}")
            except Exception as error:  # noqa: BLE001 - a bug of ours must not stop serving
                self._bug = error
                self._end("error", f"internal error: {error!r}")
        self._store.close()

    def _end(self, failure: str, reason: str) -> None:
        self._writer.end(reason)
        self._failure = failure
