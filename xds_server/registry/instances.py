"""What each node did over a window, over all of its providers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xds_server.core.histogram import quantile_s
from xds_server.model.ids import ServiceName
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, Floats, PairWindow

_BOUNDS_S = np.array(LATENCY_BUCKETS_MS) / 1e3


@dataclass(frozen=True, slots=True)
class InstanceSums:
    """One entry per node of the window."""

    rps: list[float]
    error_ratio: list[float]
    latency_p95_s: list[float]  # NaN where nothing was answered
    rps_by_service: list[dict[ServiceName, float]]
    bytes_by_service: list[dict[ServiceName, float]]  # mean per response


def instance_sums(window: PairWindow, service_of: Sequence[ServiceName]) -> InstanceSums:
    """Sum a window by node. ``service_of`` names the service of each of its providers."""
    nodes, node = len(window.nodes), window.node_row
    services = sorted(set(service_of))
    column = np.array([services.index(s) for s in service_of], dtype=np.int64)
    cell = node * len(services) + column[window.provider_row] if len(node) else node

    def by_node(values: Floats) -> Floats:
        return np.bincount(node, values, nodes).astype(np.float64)

    def by_service(values: Floats) -> Floats:
        sums = np.bincount(cell, values, nodes * len(services)).astype(np.float64)
        return sums.reshape(nodes, len(services))

    rates = window.requests / np.maximum(window.covered_s, 1e-9)
    rps, answered = by_service(rates), by_service(window.latency_count)
    response_bytes = by_service(window.rx_bytes) / np.maximum(answered, 1e-9)
    called = by_service(np.ones(len(node))) > 0.0
    # A failure is counted when it ends, its attempt when it began: a window can hold more.
    ratio = by_node(window.errors) / np.maximum(by_node(window.requests), 1.0)
    hist = np.zeros((nodes, window.latency_hist.shape[1]))
    np.add.at(hist, node, window.latency_hist)
    return InstanceSums(
        by_node(rates).tolist(),
        np.minimum(ratio, 1.0).tolist(),
        quantile_s(hist, _BOUNDS_S, 0.95).tolist(),
        _named(services, rps, called),
        _named(services, response_bytes, answered > 0.0),
    )


def _named(
    services: list[ServiceName], values: Floats, there: NDArray[np.bool_]
) -> list[dict[ServiceName, float]]:
    return [
        {s: v for s, v, is_there in zip(services, row, mask, strict=True) if is_there}
        for row, mask in zip(values.tolist(), there.tolist(), strict=True)
    ]
