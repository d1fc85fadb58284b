"""Open streams as the publisher knows them, and what outlives them."""

from collections import OrderedDict

from xds_server.model.ids import GroupKey, NodeId
from xds_server.model.snapshot import Node, Snapshot
from xds_server.ports import Wakeup
from xds_server.protocol.quarantine import Quarantine

GONE_MAX = 1024
"""Nodes without a stream whose quarantine is kept; the one gone longest is dropped, and that
node would be offered once more what it refused."""


class NodeHandle:
    """One stream of a node.

    What a stream says of itself (where it listens, that it has a runtime layer) counts for
    that stream alone: two Envoys that share an id by mistake do not move each other's
    listeners. Its group, its quarantine and what it waits for are those of the node.
    """

    def __init__(
        self, node: Node, snapshot: Snapshot, group: GroupKey | None, quarantine: Quarantine
    ) -> None:
        self.node = node
        self.group = group
        self.runtime = False
        self.heartbeat_seq = 0
        self.quarantine = quarantine
        self.kind = 0  # the same for nodes that differ in nothing that a snapshot depends on
        self._snapshot = snapshot
        self._wakeups: tuple[Wakeup, ...] = ()  # one, as a rule

    def snapshot(self) -> Snapshot:
        """Return what the node should have now."""
        return self._snapshot

    def subscribe_wakeup(self, wakeup: Wakeup) -> None:
        """Set ``wakeup`` whenever the snapshot or ``heartbeat_seq`` changes."""
        self._wakeups = (*self._wakeups, wakeup)

    def unsubscribe_wakeup(self, wakeup: Wakeup) -> None:
        """Stop that."""
        self._wakeups = tuple(w for w in self._wakeups if w is not wakeup)

    def show(self, snapshot: Snapshot) -> None:
        """Replace the snapshot; wakes streams if anything in it differs."""
        before, now = self._snapshot.types, snapshot.types
        if before is now:
            return
        self._snapshot = snapshot
        if len(before) != len(now):
            self.wake()
            return
        for url, part in now.items():
            old = before.get(url)
            if old is not part and old != part:  # most are the very same
                self.wake()
                return

    def wake(self) -> None:
        """Make this node's streams look."""
        for wakeup in self._wakeups:
            wakeup.set()


class Quarantines:
    """One quarantine per node; bounded for those that are gone."""

    def __init__(self) -> None:
        self._open: dict[NodeId, Quarantine] = {}
        self._gone: OrderedDict[NodeId, Quarantine] = OrderedDict()

    def open(self, node_id: NodeId) -> Quarantine:
        """Return the node's; the same one as long as it has a stream, and a while longer."""
        if node_id not in self._open:
            self._open[node_id] = self._gone.pop(node_id) if node_id in self._gone else Quarantine()
        return self._open[node_id]

    def close(self, node_id: NodeId) -> None:
        """The node's last stream has ended."""
        quarantine = self._open.pop(node_id)
        if len(quarantine):
            self._gone[node_id] = quarantine
            if len(self._gone) > GONE_MAX:
                self._gone.popitem(last=False)
