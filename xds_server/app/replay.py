"""Runs recorded streams against this build's protocol layer, and finds the first difference.

A state machine is a function of its calls, so the calls of a recording and their times must
give the recorded responses, byte for byte. Streams of one node share what it refused, so they
are run together, in the order in which they were called.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from xds_server.errors import RemoteProtocolError, UnreadableTapeError
from xds_server.model.snapshot import Snapshot, TypeSnapshot
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.messages import Response
from xds_server.protocol.quarantine import Quarantine
from xds_server.protocol.sotw import SotwStream
from xds_server.protocol.stream import StreamMachine
from xds_server.wire.requests import decode_delta, decode_sotw
from xds_server.wire.tape.calls import Settings
from xds_server.wire.tape.format import Sent, load_refusals, sent
from xds_server.wire.tape.reader import Contents, End, Entry, Got, Header, Poll, Tape, tapes

BEFORE: Final = 8
"""Requests and responses shown before a difference."""
PARTS_SEEN: Final = 64
"""Parts of snapshots that are searched for the resource whose bytes differ."""
Build: TypeAlias = Callable[[Settings], StreamMachine]


def build_machine(settings: Settings) -> StreamMachine:
    """Build what serves such a stream in this version."""
    kind = SotwStream if settings.protocol == "sotw" else DeltaStream
    return kind(only=settings.only, drain_s=settings.drain_s)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first response, or refusal, that is not as recorded."""

    after_s: float  # since the stream opened
    recorded: Sent | None  # None: nothing
    built: Sent | None
    error: str  # what this build raised, or refused the client for
    before: tuple[tuple[float, Entry], ...]  # up to BEFORE events, each with its ``after_s``
    parts: tuple[TypeSnapshot, ...]  # the newest last


@dataclass(slots=True)
class Outcome:
    """What became of one stream."""

    path: Path
    header: Header | None = None  # None: the tape was cut before it
    requests: int = 0
    responses: int = 0
    duration_s: float = 0.0
    ended: str = ""  # why the tape ends before its stream did
    closed: bool = False
    difference: Difference | None = None
    unreadable: str = ""
    incomplete: tuple[int, ...] = ()  # streams of the same node that are not known to the end


def replay(folder: Path, *, only: int | None = None, build: Build = build_machine) -> list[Outcome]:
    """Run every stream of a recording, or one.

    Raises UnreadableTapeError when there is nothing to run; a tape that is damaged is an
    outcome.
    """
    contents = Contents(folder)
    outcomes: list[Outcome] = []
    groups: dict[tuple[str, int], list[_Player]] = {}
    for path in tapes(folder):
        outcome = Outcome(path)
        outcomes.append(outcome)
        try:
            tape = Tape(path, contents)
        except UnreadableTapeError as error:
            outcome.unreadable = str(error)
            continue
        if tape.header is not None:
            outcome.header = tape.header
            group = groups.setdefault((tape.header.run, tape.header.shared), [])
            group.append(_Player(tape, tape.header, outcome, build))
    for group in groups.values():
        if only is None or any(p.header.number == only for p in group):
            _play(group)
    if only is None:
        return outcomes
    chosen = [o for o in outcomes if o.header is not None and o.header.number == only]
    if not chosen:
        raise UnreadableTapeError(f"{folder}: there is no stream {only}")
    return chosen


def _play(group: list["_Player"]) -> None:
    """Run streams that share a quarantine, call by call in their order."""
    quarantine = Quarantine()
    for player, entry in _merged(group):
        if entry is None:
            player.open(quarantine)
        else:
            player.take(entry)
    cut = tuple(p.header.number for p in group if p.outcome.ended or p.outcome.unreadable)
    for player in group:
        player.outcome.incomplete = tuple(n for n in cut if n != player.header.number)


def _merged(group: list["_Player"]) -> Iterator[tuple["_Player", Entry | None]]:
    """Yield all entries by ``n``; None stands for the opening. Files are open while needed."""
    waiting = sorted(group, key=lambda p: p.header.n, reverse=True)
    heap: list[tuple[int, int, Entry]] = []
    streams = {p.header.number: (p, p.entries()) for p in group}

    def advance(number: int) -> None:
        entry = next(streams[number][1], None)
        if entry is not None:
            heapq.heappush(heap, (entry.n, number, entry))

    while heap or waiting:
        if waiting and (not heap or waiting[-1].header.n < heap[0][0]):
            player = waiting.pop()
            yield player, None
            advance(player.header.number)
        else:
            _, number, entry = heapq.heappop(heap)
            yield streams[number][0], entry
            advance(number)


@dataclass(slots=True)
class _Player:
    """One stream: its tape on one side, a machine of this build on the other."""

    tape: Tape
    header: Header
    outcome: Outcome
    build: Build
    machine: StreamMachine = field(init=False)
    _before: deque[tuple[float, Entry]] = field(default_factory=lambda: deque(maxlen=BEFORE))
    _parts: deque[TypeSnapshot] = field(default_factory=lambda: deque(maxlen=PARTS_SEEN))
    _refused: str = ""  # why this build ended the stream
    _dead: bool = False  # this build's machine is no longer of use

    def open(self, quarantine: Quarantine) -> None:
        """Build the machine, beside what the node had refused by then."""
        self.machine = self.build(self.header.settings)
        try:
            load_refusals(quarantine, self.header.refused, self.tape.contents.body)
        except (KeyError, TypeError) as error:
            self._unreadable(f"{self.tape.path}:1: {error!r}")
        except UnreadableTapeError as error:
            self._unreadable(str(error))
        self.machine.use(quarantine)

    def entries(self) -> Iterator[Entry]:
        """Yield the tape's entries; a damaged one is the last."""
        try:
            yield from self.tape.entries()
        except UnreadableTapeError as error:
            self._unreadable(str(error))

    def _unreadable(self, why: str) -> None:
        self.outcome.unreadable = self.outcome.unreadable or why

    def take(self, entry: Entry) -> None:
        """Make one call, and compare what comes."""
        if isinstance(entry, End):
            self._end(entry)
            return
        after_s = entry.at_s - self.header.at_s
        if self._refused:
            self._differs(after_s, None, None, self._refused)
        self.outcome.duration_s = after_s
        try:
            if isinstance(entry, Got):
                self._receive(entry)
            else:
                self._poll(entry, after_s)
        except Exception as error:  # noqa: BLE001 - whatever this build raises is a difference
            self._differs(after_s, None, None, f"{type(error).__name__}: {error}")
            self._dead = True
        if isinstance(entry, Got) or entry.sent:
            self._before.append((after_s, entry))

    def _end(self, end: End) -> None:
        if end.cut:
            self.outcome.ended = end.reason
        else:
            self.outcome.closed = True
            if self._refused and end.reason != "protocol":
                self._differs(self.outcome.duration_s, None, None, self._refused)

    def _receive(self, got: Got) -> None:
        self.outcome.requests += 1
        if self._dead:
            return
        decode = decode_sotw if self.header.settings.protocol == "sotw" else decode_delta
        try:
            request, _ = decode(got.body)
            self.machine.receive(request, got.at_s)
        except RemoteProtocolError as error:
            self._refused, self._dead = f"refuses the request: {error}", True

    def _poll(self, poll: Poll, after_s: float) -> None:
        self.outcome.responses += len(poll.sent)
        self._remember(poll.snapshot)
        if self._dead:
            return
        responses: list[Response] = self.machine.poll(poll.snapshot, poll.at_s)
        if poll.heartbeat:
            responses += self.machine.heartbeat(poll.snapshot, poll.at_s)
        built = tuple(sent(r) for r in responses)
        for i in range(max(len(built), len(poll.sent))):
            here = built[i] if i < len(built) else None
            there = poll.sent[i] if i < len(poll.sent) else None
            if here != there:
                self._differs(after_s, there, here, "")
                return

    def _remember(self, snapshot: Snapshot) -> None:
        for part in snapshot.types.values():
            if not any(part is known for known in self._parts):
                self._parts.append(part)

    def _differs(self, after_s: float, there: Sent | None, here: Sent | None, error: str) -> None:
        """Keep the first difference; those that follow from it say nothing."""
        if self.outcome.difference is None:
            before, parts = tuple(self._before), tuple(self._parts)
            self.outcome.difference = Difference(after_s, there, here, error, before, parts)
