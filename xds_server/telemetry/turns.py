"""Whose counters are a node's, where two Envoys have one id.

Each of them counts from its own start. Read in turns, every change from one to the other would
look like a restart, and count everything again, without end. So of the callers that speak for
a node one has the turn, until it leaves or is silent; what others say does not count. A caller
that was heard while another spoke on is another Envoy, so when the turn passes then, counting
starts from where the new one's counters are. Otherwise it is the same Envoy on another
connection, or the one that replaced it, and counting goes on.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from xds_server.model.ids import NodeId

NODES_KEPT: Final = 10_000
"""Nodes whose turns are remembered; of the least recently heard whoever is next has the turn."""
SILENT_INTERVALS: Final = 2.5
"""Who was silent for so many of its intervals has left."""
SILENT_S: Final = 30.0
"""The same in s, unless the agreed interval is longer: one gap must not keep the turn for hours."""
TWICE_S: Final = 900.0
"""How long after two were heard at once each change of turn starts counting anew."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What is known of who calls: enough to tell two Envoys apart, also on one connection."""

    connection: str  # as gRPC writes it; all clients of a Unix socket have the same
    stream: int = 0  # 0: the call is not a stream
    start_ms: int = 0  # since when it counts, 0: it does not say

    def may_be(self, other: "Caller") -> bool:
        """Whether nothing speaks against it being the other; then it is."""
        return (
            self.connection == other.connection
            and (self.stream == other.stream or not (self.stream and other.stream))
            and (self.start_ms == other.start_ms or not (self.start_ms and other.start_ms))
        )

    def with_(self, other: "Caller") -> "Caller":
        """What is known of one caller from two of its calls."""
        return Caller(self.connection, self.stream or other.stream, self.start_ms or other.start_ms)


@dataclass(slots=True)
class Turn:
    """One node's."""

    holder: Caller
    heard_s: float
    left: bool = False
    rival: bool = False  # another was heard since the holder was
    twice_s: float | None = None  # when two were last known to be there


class Turns:
    """The turns of all nodes, bounded."""

    def __init__(self) -> None:
        self._turns: OrderedDict[NodeId, Turn] = OrderedDict()

    def take(
        self, node_id: NodeId, caller: Caller, interval_s: float, agreed_s: float, now_s: float
    ) -> tuple[bool, bool]:
        """Return whether the caller has the turn, and whether counting then starts anew.

        ``interval_s`` is the time between the node's last messages, ``agreed_s`` the one that
        is configured.
        """
        turn = self._turns.get(node_id)
        if turn is None:
            turn = self._turns[node_id] = Turn(caller, now_s)
            while len(self._turns) > NODES_KEPT:
                self._turns.popitem(last=False)
            return True, False
        self._turns.move_to_end(node_id)
        same = turn.holder.may_be(caller)
        longest_s = max(SILENT_S, SILENT_INTERVALS * agreed_s)
        silent_s = min(SILENT_INTERVALS * max(interval_s, agreed_s), longest_s)
        if not same and not turn.left and now_s - turn.heard_s <= silent_s:
            turn.rival = True
            return False, False
        if same and not turn.left and turn.rival:
            turn.twice_s = now_s
        anew = not same and self._twice(turn, now_s)
        turn.holder = turn.holder.with_(caller) if same else caller
        turn.heard_s, turn.left, turn.rival = now_s, False, False
        return True, anew

    def leave(self, node_id: NodeId, caller: Caller) -> None:
        """Give the turn up, since the stream ended."""
        turn = self._turns.get(node_id)
        if turn is not None and turn.holder.may_be(caller):
            turn.left = True

    def twice(self, node_id: NodeId, now_s: float) -> bool:
        """Whether two were heard at once, so that a change of turn starts counting anew."""
        turn = self._turns.get(node_id)
        return turn is not None and self._twice(turn, now_s)

    def _twice(self, turn: Turn, now_s: float) -> bool:
        return turn.twice_s is not None and now_s - turn.twice_s <= TWICE_S
