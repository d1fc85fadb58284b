"""What may go out when: make before break, and what a silent client waits for."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Set

from xds_server.model.ids import CDS, EDS, RDS, ResourceName, TypeUrl
from xds_server.model.snapshot import Resource, Snapshot, TypeSnapshot
from xds_server.protocol.events import Event, Quarantined
from xds_server.protocol.ordering import POINTERS, TARGETS, Gate, Names
from xds_server.protocol.quarantine import Quarantine
from xds_server.protocol.recovery import Recovery, mentions
from xds_server.protocol.report import resource_states
from xds_server.protocol.state import UNKNOWN, Target, TypeState, Update
from xds_server.protocol.status import SILENT_AFTER_S, WITHDRAW_AFTER_S, Progress, ResourceState

NONE: Set[ResourceName] = frozenset()


class Holds(ABC):
    """What a stream remembers, and what of the newest snapshot it may have now."""

    def __init__(self, only: TypeUrl | None, drain_s: float, quarantine: Quarantine | None) -> None:
        self._types: dict[TypeUrl, TypeState] = {}
        self._only, self._drain_s = only, drain_s
        self._quarantine = quarantine if quarantine is not None else Quarantine()
        self._gate = Gate()
        self._unwedged_at_s = float("-inf")

    @abstractmethod
    def _missing(self, state: TypeState, target: Target) -> Update:
        """Compare what the client was told with what it should have."""

    def progress(self, now_s: float) -> tuple[Progress, ...]:
        """Say how far the client is."""
        return tuple(
            Progress(
                url,
                s.version_sent,
                s.version_acked,
                s.nacks,
                s.last_nack,
                0.0 if s.oldest_s is None else now_s - s.oldest_s,
                self._lacks(s) if url == CDS else (),
            )
            for url, s in self._types.items()
        )

    def silent(self, now_s: float) -> bool:
        """Whether the client has left a response of any type unanswered for too long."""
        return any(
            s.oldest_s is not None and now_s - s.oldest_s > SILENT_AFTER_S
            for s in self._types.values()
        )

    def resources(self) -> tuple[ResourceState, ...]:
        """Say what the client has of everything that it was told, sorted."""
        return tuple(
            entry
            for state in self._types.values()
            for entry in resource_states(state, self._quarantine)
        )

    def _wanted(self, state: TypeState, part: TypeSnapshot) -> Mapping[ResourceName, Resource]:
        picked = state.subscription.pick(part)
        return self._quarantine.replace(state.subscription.type_url, picked, part)

    def _target(self, state: TypeState, snapshot: Snapshot, kept: Set[ResourceName]) -> Target:
        part = snapshot.of(state.subscription.type_url)
        picked = state.subscription.pick(part)
        wanted = self._quarantine.replace(state.subscription.type_url, picked, part)
        if state.recovery is not None and state.recovery.withheld:
            wanted = _without(wanted, state)
        held = NONE if state.recovery is None else state.recovery.holds(wanted)
        deviates = bool(kept or held) or wanted is not picked
        return Target(wanted, kept, held, part.aliases, deviates)

    def _targets_unsettled(self, snapshot: Snapshot) -> bool:
        """Whether clusters or endpoints are still on their way to this client."""
        cds = self._types.get(CDS)
        if cds is None:
            return False
        if cds.in_flight or cds.partial:
            return True
        due = self._gate.endpoints_due
        return bool(due) and not due.isdisjoint(snapshot.of(EDS).resources)

    def _kept(self, snapshot: Snapshot, now_s: float) -> Names:
        """Clusters and endpoints that are to go, and have to stay for now.

        Until the client has applied routes without them, and then for the drain. A client
        that refused new routes goes on with the old ones: what these may name stays until it
        has accepted others, however long that takes.
        """
        gone = {url: names for url in TARGETS if (names := self._going(url, snapshot))}
        if not gone:
            self._gate.removals.release()
            self._gate.leaving.clear()
            return {}
        if self._gate.removals.blocks(self._pointers_unsettled(snapshot), now_s) or (
            self._pointers_refused(snapshot)
        ):
            self._gate.leaving.clear()
            return gone
        return self._gate.draining(gone, self._drain_s, now_s)

    def _going(self, type_url: TypeUrl, snapshot: Snapshot) -> Set[ResourceName]:
        state, part = self._types.get(type_url), snapshot.of(type_url)
        if state is None or state.settled is part:
            return NONE
        going = state.sent.keys() - self._wanted(state, part).keys()
        # What was new and refused never carried anything.
        return {n for n in going if state.sent[n].version or n in state.good}

    def _pointers_unsettled(self, snapshot: Snapshot) -> bool:
        """Whether the client may still use routes or listeners that are to be replaced.

        One that came back asks for clusters before it asks for routes, and uses the routes
        that it has all the while.
        """
        cds = self._types.get(CDS)
        came_back = self._only is None and cds is not None and cds.from_before
        if came_back and RDS not in self._types and snapshot.of(RDS).resources:
            return True
        for type_url in POINTERS:
            state = self._types.get(type_url)
            if state is None or state.subscription.empty:
                continue
            if state.in_flight or state.partial:
                return True
            if state.settled is not snapshot.of(type_url) and self._missing(
                state, self._target(state, snapshot, NONE)
            ):
                return True
        return False

    def _pointers_refused(self, snapshot: Snapshot) -> bool:
        """Whether the client goes on with routes or listeners that were to be replaced."""
        if any(s.refused & s.sent.keys() for t, s in self._types.items() if t in POINTERS):
            return True
        return any(
            url in POINTERS
            and refusal.good is not None
            and (now := snapshot.of(url).resources.get(name)) is not None
            and now.version == refusal.version
            for (url, name), refusal in self._quarantine.refusals.items()
        )

    def _clusters_sent(self, cds: TypeState, update: Update) -> None:
        """A changed cluster warms until it gets endpoints, also unchanged ones."""
        changed = {
            name
            for r in update.resources
            if (s := cds.sent.get(r.name)) is None or s.version != r.version
            for name in r.needs or (r.name,)
        }
        self._gate.endpoints_due |= changed
        self._gate.endpoints_due -= set(update.removed)
        self._send_endpoints_again(changed)

    def _send_endpoints_again(self, names: Set[ResourceName]) -> bool:
        """Forget that endpoints were sent; say whether the client asked for any of them."""
        eds = self._types.get(EDS)
        again = names & eds.sent.keys() if eds is not None else NONE
        if eds is None or not again:
            return False
        for name in again:
            del eds.sent[name]
        eds.settled = None
        return True

    def _lacks(self, cds: TypeState) -> tuple[ResourceName, ...]:
        """Clusters in unanswered responses whose endpoints the client has not accepted since.

        It answers for them only when it has them.
        """
        eds = self._types.get(EDS)
        if eds is None:
            return ()
        due = {name for name in self._gate.endpoints_due if eds.subscription.covers(name)}
        return tuple(
            sorted(
                {
                    r.name
                    for flight in cds.in_flight.values()
                    for r in flight.resources
                    if not due.isdisjoint(r.needs or (r.name,))
                }
            )
        )

    def _unwedge(self, snapshot: Snapshot, now_s: float) -> bool:
        """Send endpoints again, unchanged, to a client that has been silent about clusters.

        That releases an Envoy whose cluster still warms: it withholds every answer to CDS
        until then (measured with 1.40).
        """
        cds, eds = self._types.get(CDS), self._types.get(EDS)
        if cds is None or eds is None or cds.oldest_s is None:
            return False
        since_s = max(cds.oldest_s, self._unwedged_at_s)
        if now_s - since_s < SILENT_AFTER_S or eds.blocked(now_s):
            return False
        lacking = self._gate.endpoints_due & snapshot.of(EDS).resources.keys()
        if not lacking or not self._send_endpoints_again(lacking):
            return False
        self._unwedged_at_s = now_s
        return True

    def _withdraw(self, now_s: float) -> None:
        """Take back own clusters that a client is silent about, if nothing else explains it."""
        cds = self._types.get(CDS)
        if cds is None or cds.oldest_s is None or now_s - cds.oldest_s < WITHDRAW_AFTER_S:
            return
        recovery = cds.recovery or Recovery()
        if recovery.withheld or self._lacks(cds):
            return
        suspects = {
            r.name: r
            for flight in cds.in_flight.values()
            for r in cds.suspects(flight)
            if r.own and self._quarantine.of(r) is None
        }
        if not suspects:
            return
        for name in suspects:
            cds.sent[name] = UNKNOWN
            cds.acked.pop(name, None)
        recovery.withheld, recovery.nonce = suspects, ""
        cds.recovery, cds.settled = recovery, None

    def _release(self, state: TypeState, error: str) -> list[Event]:
        """The silent client has answered: blame what its words name, offer the rest again."""
        recovery = state.recovery
        if recovery is None or not recovery.withheld:
            return []
        withheld = list(recovery.withheld.values())
        blamed = [r for r in withheld if mentions(error, r.name)]
        if not blamed and len(withheld) == 1:
            blamed, error = withheld, error or "no answer for too long"
        recovery.withheld = {}
        events: list[Event] = []
        for r in blamed:
            events.append(self._blame(state, r, error))
            state.refused.add(r.name)
        rest = [r for r in withheld if r not in blamed]
        if blamed and rest:
            recovery.waiting.insert(0, {r.name: r.version for r in rest})
        elif rest:
            recovery.split(rest, error)
        state.settled = None
        return events

    def _blame(self, state: TypeState, culprit: Resource, error: str) -> Quarantined:
        """Keep it from the node, which keeps what it accepted last."""
        good = state.good.get(culprit.name)
        self._quarantine.add(culprit, error, good)
        kept = good.version if good is not None else ""
        return Quarantined(culprit.type_url, culprit.name, culprit.version, error, kept)


def _without(
    wanted: Mapping[ResourceName, Resource], state: TypeState
) -> Mapping[ResourceName, Resource]:
    """What was accepted last, or nothing, in the place of what is withheld."""
    withheld = state.recovery.withheld if state.recovery is not None else {}
    return {
        name: kept
        for name, r in wanted.items()
        if (kept := state.good.get(name) if withheld.get(name) == r else r) is not None
    }
