"""Instances with their runtime metadata, for people."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from xds_server.model.ids import Locality, NodeId, PhaseName, ProviderName
from xds_server.model.services import UNKNOWN, InstanceView, Reading, Traffic
from xds_server.model.snapshot import Node
from xds_server.model.telemetry import InstanceSignals, PairWindow
from xds_server.registry.registry import Registry
from xds_server.registry.sampled import calls_by_node, sampled_calls
from xds_server.registry.services import STALE_S, both_windows
from xds_server.registry.traffic import by_node, no_traffic, traffic

FAILING_RATIO: Final = 0.5
"""Errors by attempts from which an instance is shown as failing."""


def instance_views(
    registry: Registry,
    signals: Mapping[NodeId, InstanceSignals],
    phases: Mapping[NodeId, tuple[PhaseName, float]],
    prices: Mapping[ProviderName, Reading],
    now_s: float,
    valid_s: float = STALE_S,
) -> tuple[InstanceView, ...]:
    """Return every connected instance, by node id.

    ``phases`` has names and since when; ``prices`` are of a million requests, by provider. What
    sidecars report is stale when it is older than ``valid_s``.
    """
    windows = both_windows(registry, now_s)
    measured = traffic(*windows, by_node, valid_s)
    costs = _costs(windows[0], prices, valid_s)
    sampled = sampled_calls(registry.calls.window(now_s), calls_by_node, valid_s)
    views = []
    for node_id, connected in sorted(registry.nodes.items()):
        seen = measured.get(node_id) or no_traffic(*windows)
        age_s = registry.telemetry_age_s(node_id, now_s)
        phase = phases.get(node_id)
        own = signals.get(node_id)
        views.append(
            InstanceView(
                node_id=node_id,
                application=connected.node.application,
                locality=_locality(connected.node),
                phase=phase[0] if phase else "",
                phase_s=now_s - phase[1] if phase else None,
                age_s=now_s - connected.since_s,
                health=_instance_health(seen, age_s, valid_s),
                traffic=seen,
                rps_by_service=own.rps_by_service if own else {},
                cost_usd_per_h=costs.get(node_id, UNKNOWN),
                cpu_ratio=registry.usages.reading(node_id, "cpu_ratio", now_s),
                memory_bytes=registry.usages.reading(node_id, "memory_bytes", now_s),
                sampled=sampled.get(node_id),
                sampled_by_service=registry.sampled_by_service(node_id),
            )
        )
    return tuple(views)


def _costs(
    window: PairWindow, prices: Mapping[ProviderName, Reading], valid_s: float
) -> dict[NodeId, Reading]:
    """Return what each node's requests cost per hour; of priced providers only."""
    known = [prices.get(name, UNKNOWN).value for name in window.providers]
    usd_per_rps = np.array([math.nan if usd is None else 3600.0 * usd / 1e6 for usd in known])
    old = np.array([prices.get(name, UNKNOWN).stale for name in window.providers], dtype=bool)
    if not len(window.node_row):
        return {}
    priced = np.isfinite(usd_per_rps)[window.provider_row]
    node, provider = window.node_row[priced], window.provider_row[priced]
    requests, covered_s = window.requests[priced], window.covered_s[priced].clip(min=1e-9)
    count, each = len(window.nodes), usd_per_rps[provider]
    usd = np.bincount(node, requests / covered_s * each, count)
    # As rate_error has it, with each request's price; without any, one by the dearest of them.
    dearest = np.zeros(count)
    np.maximum.at(dearest, node, each)
    least = (dearest / max(window.window_s, 1e-9)) ** 2
    error = np.sqrt(np.maximum(np.bincount(node, requests * (each / covered_s) ** 2, count), least))
    samples = np.bincount(node, requests, count)
    age_s = np.zeros(count)
    np.maximum.at(age_s, node, window.age_s[priced])
    stale = (age_s > valid_s) | (np.bincount(node, old[provider], count) > 0)
    return {
        window.nodes[i]: Reading(
            float(usd[i]), float(age_s[i]), "derived", float(samples[i]), float(error[i]),
            stale=bool(stale[i]),
        )
        for i in sorted(set(node.tolist()))
    }  # fmt: skip


def _instance_health(seen: Traffic, telemetry_age_s: float, valid_s: float) -> str:
    if telemetry_age_s > valid_s:
        return "no telemetry"
    failing = (seen.error_ratio.value or 0.0) >= FAILING_RATIO
    return "failing" if failing else "ok"


def _locality(node: Node) -> Locality:
    return Locality(node.locality_region, node.locality_zone, node.locality_sub_zone)
