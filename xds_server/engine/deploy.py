"""Stage 6: the plan as whole weights, handed over for publication."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from xds_server.core import limits
from xds_server.core.tables import Bools, Floats, Ints, Pairs
from xds_server.engine.types import Problem
from xds_server.model.decision import Decision, Forecast
from xds_server.model.ids import GroupKey
from xds_server.model.snapshot import GroupWeights, Overlay
from xds_server.model.topology import Mode

NOTHING = Overlay({})
"""No weights: every sidecar is at its baseline."""
_UNKNOWN: Mapping[str, Mapping[str, int]] = {}


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
    overlay: Overlay  # in force; reused by the next
    published: bool


def deploy(
    problem: Problem,
    decision: Decision,
    shares_now: Floats,
    weights_now: Ints,
    overlay_now: Overlay,
    actuator: Actuator,
    *,
    mode: Mode,
    now_s: float,
) -> Deployment:
    """Publish changed weights; renew the rest. Modes other than enforce change nothing.

    Renewal is what keeps an overlay alive in Envoy: it happens here, once a tick, so an
    engine that hangs loses its weights like one that died.
    """
    weights = _quantise(problem, decision.shares, shares_now, weights_now)
    if mode is not Mode.ENFORCE:
        return Deployment(now_s, shares_now, weights, decision.hold, NOTHING, published=False)
    changed = problem.pairs.any_by_route(weights != weights_now)
    overlay = overlay_now
    if changed.any():
        overlay = to_overlay(problem, weights, changed, overlay_now)
        actuator.publish(overlay, now_s)
    actuator.renew(now_s)
    return Deployment(
        now_s, decision.shares, weights, decision.chosen, overlay, published=bool(changed.any())
    )


def _quantise(problem: Problem, shares: Floats, shares_now: Floats, weights_now: Ints) -> Ints:
    """(P,) whole weights; a route that keeps its shares keeps its weights."""
    pairs = problem.pairs
    served = pairs.sum_by_route(weights_now) > 0
    stale = ~served | pairs.any_by_route(shares != shares_now)
    if stale.all():
        return limits.to_weights(pairs, shares)
    weights = weights_now.copy()
    rows = np.flatnonzero(stale[pairs.route])
    if len(rows):
        number = np.cumsum(stale) - 1
        few = Pairs(
            number[pairs.route[rows]], pairs.provider[rows], int(stale.sum()), pairs.providers
        )
        weights[rows] = limits.to_weights(few, shares[rows])
    return weights


def to_overlay(problem: Problem, weights: Ints, changed: Bools, before: Overlay) -> Overlay:
    """Name every provider of each route; a route without any weight keeps its baseline.

    Groups none of whose routes ``changed`` (R,) keep the very mapping that they had ``before``,
    by which the publisher knows that there is nothing to encode.
    """
    keys, layouts = problem.group_keys, problem.layouts
    touched = np.zeros(len(keys), dtype=bool)
    touched[problem.route_group[changed]] = True
    ends = problem.group_ends.tolist()
    overlay: dict[GroupKey, Mapping[str, Mapping[str, int]]] = {}
    if len(keys) == len(before.weights) and all(map(operator.is_, keys, before.weights)):
        overlay.update(before.weights)  # at once: to hash every key takes as long as all the rest
        anew = np.flatnonzero(touched).tolist()
    else:
        overlay = {key: before.weights.get(key, _UNKNOWN) for key in keys}
        anew = [g for g, key in enumerate(keys) if touched[g] or overlay[key] is _UNKNOWN]
    for g in anew:
        overlay[keys[g]] = GroupWeights(layouts[g], weights[ends[g] : ends[g + 1]].copy())
    return Overlay(overlay)
