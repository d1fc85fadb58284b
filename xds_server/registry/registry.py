"""The live registry: who is connected, what they report, what providers say."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from xds_server.model.calls import CallBatch
from xds_server.model.history import SlotTables
from xds_server.model.ids import NodeId, ProviderName, ServiceName
from xds_server.model.snapshot import Node
from xds_server.model.telemetry import (
    HostsSeen,
    InstanceSignals,
    LoadReport,
    PairWindow,
    ProviderLoad,
    SampleBatch,
)
from xds_server.registry.calls import CallSamples
from xds_server.registry.instances import InstanceSums, instance_sums
from xds_server.registry.leases import Leases
from xds_server.registry.rates import EndedRates
from xds_server.registry.tariffs import Tariffs
from xds_server.registry.usage import Usages
from xds_server.registry.windows import PairWindows

SLOTS = 16
MAX_PAIRS = 200_000
SIGNAL_SLOTS = 5
"""Completed slots that an instance's signals are taken over."""


@dataclass(slots=True)
class Connected:
    """One node with an open ADS stream."""

    node: Node
    since_s: float
    streams: int = 1


@dataclass(frozen=True, slots=True)
class _Said:
    report: LoadReport
    at_s: float


class Registry:
    """Runtime metadata of nodes and providers.

    A node's samples count while its ADS stream is open: whoever has none is refused and
    counted under ``refused``.
    """

    def __init__(
        self,
        services: Mapping[ProviderName, ServiceName],
        *,
        slot_s: float,
        load_valid_s: float,
        max_pairs: int = MAX_PAIRS,
        leases: Leases | None = None,
        tariffs: Tariffs | None = None,
    ) -> None:
        self._services = dict(services)
        self._leases = Leases() if leases is None else leases
        self._tariffs = Tariffs() if tariffs is None else tariffs
        self._load_valid_s = load_valid_s
        self._windows = PairWindows(slot_s=slot_s, slots=SLOTS, max_pairs=max_pairs)
        self.usages = Usages(self._windows.refused)
        self.calls = CallSamples(self._windows.refused, slot_s=slot_s)
        self._nodes: dict[NodeId, Connected] = {}
        self._said: dict[ProviderName, dict[NodeId, _Said]] = {}
        self._ended = EndedRates()
        self._heard_at_s: dict[NodeId, float] = {}
        self._hosts: dict[NodeId, dict[ProviderName, HostsSeen]] = {}

    @property
    def nodes(self) -> Mapping[NodeId, Connected]:
        """Every connected node."""
        return self._nodes

    @property
    def providers(self) -> frozenset[ProviderName]:
        """Every provider whose samples count."""
        return frozenset(self._services)

    @property
    def refused(self) -> Counter[str]:
        """What was not taken in, by reason."""
        return self._windows.refused

    @property
    def pairs(self) -> int:
        """(node, provider) pairs that are held."""
        return self._windows.pairs

    def set_providers(
        self,
        services: Mapping[ProviderName, ServiceName],
        *,
        slot_s: float,
        load_valid_s: float,
    ) -> None:
        """Take over another configuration; providers that stay keep their history."""
        self._services = dict(services)
        self._load_valid_s = load_valid_s
        if slot_s != self._windows.slot_s:  # slots of another length do not add up
            self._windows.restart(slot_s)
            self.calls.restart(slot_s)
        self._windows.keep_providers(services)
        self.calls.keep_providers(services)
        self._said = {p: s for p, s in self._said.items() if p in services}
        for hosts in self._hosts.values():
            for gone in hosts.keys() - services.keys():
                del hosts[gone]

    def node_connected(self, node: Node, now_s: float) -> None:
        """An ADS stream of that node opened."""
        known = self._nodes.get(node.node_id)
        if known is None:
            self._nodes[node.node_id] = Connected(node, now_s)
        else:
            known.streams += 1
            known.node = node

    def node_disconnected(self, node_id: NodeId) -> None:
        """One of its ADS streams closed; the last one ends the instance."""
        known = self._nodes[node_id]
        known.streams -= 1
        if known.streams == 0:
            del self._nodes[node_id]
            self._heard_at_s.pop(node_id, None)
            self._hosts.pop(node_id, None)
            self._windows.forget(node_id)
            self._ended.forget(node_id)
            self.calls.forget(node_id)
            for said in self._said.values():
                said.pop(node_id, None)

    def observe(self, batch: SampleBatch, now_s: float) -> None:
        """Take in what a sidecar counted."""
        if batch.node_id not in self._nodes:
            self.refused["no ADS stream"] += 1
            return
        self._heard_at_s[batch.node_id] = now_s
        self._windows.observe(batch, now_s)

    def observe_hosts(
        self, node_id: NodeId, hosts: Mapping[ProviderName, float], now_s: float
    ) -> None:
        """Take in how many healthy hosts a sidecar has, by provider."""
        if node_id in self._nodes:
            self._heard_at_s[node_id] = now_s
            seen = {p: HostsSeen(count, now_s) for p, count in hosts.items()}
            self._hosts.setdefault(node_id, {}).update(seen)

    def hosts(self, node_id: NodeId) -> Mapping[ProviderName, HostsSeen]:
        """Return what a node said last of its providers' hosts."""
        return self._hosts.get(node_id, {})

    def telemetry_age_s(self, node_id: NodeId, now_s: float) -> float:
        """Return how long ago a node reported anything; inf: never."""
        return now_s - self._heard_at_s.get(node_id, -math.inf)

    def observe_load(self, node_id: NodeId, reports: Iterable[LoadReport], now_s: float) -> None:
        """Take in what providers said of themselves to one node."""
        if node_id not in self._nodes:
            self.refused["no ADS stream"] += 1
            return
        known = [report for report in reports if report.provider in self._services]
        self._ended.take(node_id, known, now_s)
        for report in known:
            if report.says_anything:
                self._said.setdefault(report.provider, {})[node_id] = _Said(report, now_s)

    def observe_calls(self, batch: CallBatch, now_s: float) -> None:
        """Take in a node's sampled calls."""
        if batch.node_id not in self._nodes:
            self.refused["no ADS stream"] += 1
            return
        self.calls.observe(batch, now_s)

    def sampled_by_service(self, node_id: NodeId) -> dict[ServiceName, float]:
        """Return how many of a node's calls were sampled lately, by service."""
        mix: dict[ServiceName, float] = {}
        for provider, calls in self.calls.by_provider(node_id).items():
            service = self._services[provider]
            mix[service] = mix.get(service, 0.0) + calls
        return mix

    def roll(self) -> None:
        """Complete a slot; called once per tick, before reading windows."""
        self._windows.roll()
        self.calls.roll()

    def window(self, now_s: float, slots: int) -> PairWindow:
        """What happened in the newest ``slots`` completed slots."""
        return self._windows.window(now_s, slots)

    def newest(self) -> SlotTables:
        """Copy what every pair reported in the newest completed slot."""
        return self._windows.newest()

    def provider_load(self, now_s: float) -> ProviderLoad:
        """What providers say: in ORCA, else in the heartbeats of their leases.

        Utilisation that neither says is what a source of usage measures, and a price what its
        source of prices says, if there is one.
        """
        load = self.orca_load(now_s)
        for j, name in enumerate(load.providers):
            busy = self._leases.utilisation_ratio(name)
            price = self._leases.price_per_million_usd(name)
            fresh = busy is not None and now_s - busy.at_s <= self._load_valid_s
            if busy is not None and fresh and math.isnan(load.utilisation_ratio[j]):
                load.utilisation_ratio[j] = busy.value
                load.age_s[j] = now_s - busy.at_s
            if math.isnan(load.utilisation_ratio[j]):
                load.utilisation_ratio[j] = self.usages.value(
                    name, "utilisation_ratio", now_s, is_provider=True
                )
            if price is not None and math.isnan(load.price_per_million_usd[j]):
                load.price_per_million_usd[j] = price.value
                if math.isnan(load.utilisation_ratio[j]):
                    load.age_s[j] = now_s - price.at_s
            tariff = self._tariffs.of(name)
            if tariff is not None and math.isnan(load.price_per_million_usd[j]):
                load.price_per_million_usd[j] = tariff.price.per_million_requests_usd
            if math.isnan(load.price_per_million_usd[j]):
                load.price_per_million_usd[j] = self._price_said(name)
        return load

    def _price_said(self, name: ProviderName) -> float:
        """Return what a provider announced last, however long ago; NaN: nothing.

        Who gets no traffic for its price cannot say it anew, and would be taken for one that costs
        what was declared, get traffic, say it, and so on.
        """
        said = self._said.get(name, {}).values()
        if not said:
            return math.nan
        return max(said, key=lambda s: s.at_s).report.price_per_million_usd

    def orca_load(self, now_s: float) -> ProviderLoad:
        """What providers say in ORCA, averaged over the nodes that they said it to."""
        names = tuple(sorted(self._services))
        columns = np.full((7, len(names)), np.nan)
        self._ended.expire(now_s - self._load_valid_s)
        for j, name in enumerate(names):
            said = self._valid(name, now_s)
            if said:
                columns[0, j] = _mean([s.report.utilisation_ratio for s in said])
                columns[1, j] = _mean([s.report.memory_ratio for s in said])
                # A price changes at once: the newest word counts, not the average.
                newest = max(said, key=lambda s: s.at_s)
                columns[2, j] = newest.report.price_per_million_usd
                columns[3, j] = now_s - newest.at_s
                if math.isfinite(columns[0, j]):
                    columns[4:, j] = self._ended.of(name)
        return ProviderLoad(names, *columns)

    def utilisations(self, name: ProviderName, now_s: float) -> list[float]:
        """Return the utilisation that a provider said in ORCA to each node, where it is valid."""
        ratios = [s.report.utilisation_ratio for s in self._valid(name, now_s)]
        return [ratio for ratio in ratios if math.isfinite(ratio)]

    def _valid(self, name: ProviderName, now_s: float) -> list[_Said]:
        said = self._said.get(name, {}).values()
        return [s for s in said if now_s - s.at_s <= self._load_valid_s]

    def signals(self, now_s: float) -> list[InstanceSignals]:
        """Every connected instance as its sidecar reports it."""
        window = self.window(now_s, SIGNAL_SLOTS)
        row_of = {node: i for i, node in enumerate(window.nodes)}
        sums = instance_sums(window, [self._services[p] for p in window.providers])
        reads = self.calls.read_ratios()
        return [
            self._signals(known, sums, row_of.get(node_id), reads.get(node_id, math.nan), now_s)
            for node_id, known in self._nodes.items()
        ]

    def _signals(
        self,
        known: Connected,
        sums: InstanceSums,
        row: int | None,
        read_ratio: float,
        now_s: float,
    ) -> InstanceSignals:
        node_id, heard_at_s = known.node.node_id, self._heard_at_s.get(known.node.node_id)
        return InstanceSignals(
            node_id=node_id,
            age_s=now_s - known.since_s,
            rps=0.0 if row is None else sums.rps[row],
            error_ratio=0.0 if row is None else sums.error_ratio[row],
            latency_p95_s=math.nan if row is None else sums.latency_p95_s[row],
            rps_by_service={} if row is None else sums.rps_by_service[row],
            response_bytes_by_service={} if row is None else sums.bytes_by_service[row],
            telemetry_age_s=math.inf if heard_at_s is None else now_s - heard_at_s,
            cpu_ratio=self.usages.value(node_id, "cpu_ratio", now_s),
            memory_bytes=self.usages.value(node_id, "memory_bytes", now_s),
            read_ratio=read_ratio,
        )


def _mean(values: list[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan
