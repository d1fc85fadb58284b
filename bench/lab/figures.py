"""From series to the figures that are reported."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from bench.lab.run import Series
from bench.lab.truth import quantile_s
from bench.lab.worlds import WARM, World
from xds_server.core.tables import Floats

INSTANT: Final = "clairvoyant"
DELAYED: Final = "clairvoyant_delayed"
CONVERGED_RATIO: Final = 1.10
"""Of the instant clairvoyant's cost, 3-tick means; to be held for 5 ticks."""
LEAST_TICKS: Final = 6
"""Of a run: the engine's first ``_COLD`` are left out of its times."""
_COLD: Final = 5
_HOLD: Final = 5
_SMOOTH: Final = 3
_Z_90: Final = 1.645


def figures(
    world: World, delay: int, series: Mapping[str, Series], policy: str
) -> dict[str, float]:
    """Every figure of one policy in one run; NaN where it does not apply.

    Regret counts from the event to the end, and is relative to the clairvoyant's mean cost
    over the same ticks; ``steady`` is from the end of warming up to the event.
    """
    mine, event = series[policy], world.event
    warm = round(WARM * world.ticks / 160)
    after, before = slice(event, None), slice(warm, event)
    cost = mine.cost_ms
    found: dict[str, float] = {}
    for name, rival in (("instant", INSTANT), ("delayed", DELAYED)):
        if rival in series:
            reference = series[rival].cost_ms
            found[f"regret_{name}"] = _regret(cost[after], reference[after], mine.requests[after])
            found[f"regret_{name}_steady"] = _regret(
                cost[before], reference[before], mine.requests[before]
            )
            ratio = cost[warm:] / np.maximum(reference[warm:], 1e-9) - 1.0
            found[f"regret_{name}_p99_tick"] = float(np.percentile(ratio, 99))
    detail = mine.detail[event:].sum(axis=0)
    total = max(float(mine.requests[after].sum()), 1.0)
    minutes = (world.ticks - warm) / 60.0
    routes = world.layout.problem.pairs.routes
    calm, busy = slice(warm, event), slice(event, min(event + 40, world.ticks))
    found |= {
        "cost_ms": _mean(cost[after], mine.requests[after]),
        "latency_ms": _mean(mine.latency_ms[after], mine.requests[after]),
        "p50_ms": 1e3 * quantile_s(detail, 0.5),
        "p99_ms": 1e3 * quantile_s(detail, 0.99),
        "usd_per_million": 1e6 * float(mine.usd[after].sum()) / total,
        "failed_ratio": float(mine.failed[after].sum()) / total,
        "slo_minutes": float(mine.slow_cells[after].sum()) / 60.0,
        "flips_per_route_hour_steady": _hourly(mine.flips[calm], routes),
        "flips_per_route_hour_event": _hourly(mine.flips[busy], routes),
        "pushes_per_route_minute": float(mine.moves[warm:].sum()) / routes / minutes,
        "overshoot": _overshoot(world, delay, mine),
    }
    if INSTANT in series:
        found["converged_ticks"] = _converged(cost, series[INSTANT].cost_ms, event)
    if mine.tick_ms:
        p50, p99 = np.percentile(mine.tick_ms[_COLD:], [50, 99])
        found |= {"tick_p50_ms": float(p50), "tick_p99_ms": float(p99)}
        found |= _decisions(mine)
    z = np.concatenate(mine.z[warm:]) if mine.z[warm:] else np.empty(0)
    if len(z):
        found["coverage_90"] = float(np.mean(np.abs(z) <= _Z_90))
        found["z_bias"] = float(np.mean(np.clip(z, -10, 10)))
    if world.faults.liar >= 0:
        found["liar_share"] = _liar_share(world, mine)
    return found


def _decisions(mine: Series) -> dict[str, float]:
    """How often something was pushed, taken back, or pushed without terms that add up."""
    off = np.concatenate(mine.terms_off)
    explained = off[np.isfinite(off)]
    return {
        "pushes": float(len(off)),
        "reverts": float(sum(mine.reverts)),
        "unexplained": float(len(off) - len(explained)),
        "terms_off_most": float(explained.max()) if len(explained) else 0.0,
    }


def _mean(values: Floats, weight: Floats) -> float:
    return float(np.sum(values * weight) / max(float(weight.sum()), 1e-9))


def _regret(cost: Floats, reference: Floats, weight: Floats) -> float:
    """Relative excess of the mean cost per request."""
    return _mean(cost, weight) / max(_mean(reference, weight), 1e-9) - 1.0


def _hourly(counts: Floats, routes: int) -> float:
    return float(counts.sum()) / routes / max(len(counts), 1) * 3600.0


def _converged(cost: Floats, reference: Floats, event: int) -> float:
    """Ticks from the event until cost is near the clairvoyant's and stays so; inf: never.

    Each mean is of the tick and the two after it, so that the event's own is not diluted.
    """
    padded = [np.append(v[event:], np.repeat(v[-1:], _SMOOTH - 1)) for v in (cost, reference)]
    mine, best = (np.convolve(v, np.ones(_SMOOTH) / _SMOOTH, mode="valid") for v in padded)
    near = mine <= CONVERGED_RATIO * best
    for k in range(len(near) - _HOLD):
        if near[k : k + _HOLD].all():
            return float(k)
    return float("inf")


_STEPS: Final = frozenset(
    ("step", "degraded_15", "price_spike", "outage", "liar", "bimodal", "telemetry_dropped")
)
"""Worlds whose event asks for one lasting change."""


def _overshoot(world: World, delay: int, mine: Series) -> float:
    """How far providers' loads went beyond where they settled, over the change they made.

    The mean over the providers whose load changes by a fifth or more, weighted by the change.
    """
    event, ticks = world.event, world.ticks
    settled = slice(event + round(30 * ticks / 160), event + round(50 * ticks / 160))
    if world.name not in _STEPS or settled.stop <= settled.start:
        return float("nan")
    begin = mine.load_rps[max(event - 5, 0) : event].mean(axis=0)
    end = mine.load_rps[settled].mean(axis=0)
    change = end - begin
    moved = np.abs(change) > 0.2 * np.maximum(begin, 1.0)
    if not moved.any():
        return float("nan")
    path = mine.load_rps[event + delay + 1 : settled.start][:, moved]
    if len(path) == 0:
        return float("nan")
    beyond = ((path - end[moved]) * np.sign(change[moved])).max(axis=0)
    return float(np.sum(np.maximum(beyond, 0.0)) / np.sum(np.abs(change[moved])))


def _liar_share(world: World, mine: Series) -> float:
    """Part of its service's traffic that the liar still has 10 ticks after the event."""
    service = world.layout.provider_service
    liar = world.faults.liar
    load = mine.load_rps[min(world.event + 10, world.ticks - 1)]
    return float(load[liar] / max(load[service == service[liar]].sum(), 1e-9))
