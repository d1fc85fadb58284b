"""Stage 6: the plan as whole weights, handed over for publication."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from xds_server.core import limits
from xds_server.core.tables import Floats, Ints
from xds_server.engine.types import Problem
from xds_server.model.decision import Decision, Forecast
from xds_server.model.ids import GroupKey
from xds_server.model.snapshot import Overlay
from xds_server.model.topology import Mode


class Actuator(Protocol):
    """What takes weights to the sidecars; ``cache.publisher.Publisher`` is one."""

    def publish(self, overlay: Overlay, now_s: float) -> None:
        """Replace all weights."""
        ...

    def renew(self, now_s: float) -> None:
        """Say that the engine is alive, so that published weights stay in force."""
        ...


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is in force after the tick, and what is expected of it."""

    now_s: float
    shares: Floats  # (P,) commanded
    weights: Ints  # (P,) as published, or as they would be
    forecast: Forecast
    published: bool


def deploy(
    problem: Problem,
    decision: Decision,
    shares_now: Floats,
    weights_now: Ints,
    actuator: Actuator,
    *,
    mode: Mode,
    now_s: float,
) -> Deployment:
    """Publish changed weights; renew the rest. Modes other than enforce change nothing.

    Renewal is what keeps an overlay alive in Envoy: it happens here, once a tick, so an
    engine that hangs loses its weights like one that died.
    """
    weights = limits.to_weights(problem.pairs, decision.shares)
    if mode is not Mode.ENFORCE:
        return Deployment(now_s, shares_now, weights, decision.hold, published=False)
    changed = not np.array_equal(weights, weights_now)
    if changed:
        actuator.publish(to_overlay(problem, weights), now_s)
    actuator.renew(now_s)
    return Deployment(now_s, decision.shares, weights, decision.chosen, published=changed)


def to_overlay(problem: Problem, weights: Ints) -> Overlay:
    """Name every provider of each route; a route without any weight keeps its baseline."""
    served = problem.pairs.sum_by_route(weights.astype(np.float64)) > 0.0
    overlay: dict[GroupKey, dict[str, dict[str, int]]] = {key: {} for key in problem.group_keys}
    for r, j, weight in zip(problem.pairs.route, problem.pairs.provider, weights, strict=True):
        if served[r]:
            route = problem.routes[r]
            service = overlay[route.group].setdefault(route.service, {})
            service[problem.providers[j]] = int(weight)
    return Overlay(overlay)
