"""What a step of load does to stations over the next seconds: queues as a fluid, on a time grid.

``core.latency`` says how long a request takes once a station has settled. What happens on the way
there is a fluid queue (G. F. Newell, "Applications of Queueing Theory", 1971, chapter 2): work
that is offered beyond the capacity piles up, and drains by what capacity is left over,

    dq/dt = x(t) - c(t)  while q > 0 or x > c,  else 0

so that a request which comes at t takes

    T(t) = s + W(min(x, c)) + q(t) / c(t)

with s the idle time and W the wait of the station's curve: below its capacity a station answers at
once as it does when it has settled. A cold one has a part g(t) of its capacity, c(t) = c g(t); g
rises in a straight line, as the weight of an endpoint does in Envoy's slow start.

The load steps once, when what was decided takes effect; rates are constant between grid points,
where the solution is then exact. A power curve has no capacity, and so no queue.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from xds_server.core import latency
from xds_server.core.latency import Stations
from xds_server.core.tables import Bools, Floats

LONGEST_S: Final = 60.0
"""A wait is at most so long: who waits is gone by then. Keeps all finite."""
_LEAST_RPS: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Grid:
    """Points in time, ``step_s`` apart."""

    step_s: float
    steps: int
    delay_steps: int  # from which on the new load is offered, < steps
    warm_s: float  # that a cold provider takes to be warm, once the new load is there

    def warmth(self, start: Floats) -> Floats:
        """(steps + 1, E) part of its capacity that each station has; ``start`` (E,) at first."""
        since_s = self.step_s * (np.arange(self.steps + 1) - self.delay_steps)
        done = np.clip(since_s / max(self.warm_s, 1e-9), 0.0, 1.0)
        warm: Floats = start + (1.0 - start) * done[:, None]
        return warm


@dataclass(frozen=True, slots=True)
class Course:
    """Response times, mean over the grid from when the new load is offered; axis 0 (E)."""

    mean_s: Floats
    p95_s: Floats


def queues(
    queued: Floats, before_rps: Floats, after_rps: Floats, capacity_rps: Floats, grid: Grid
) -> Floats:
    """Follow the queues, in requests.

    Parameters
    ----------
    queued : (E,) now, >= 0
    before_rps, after_rps : (E,) offered before and after the step
    capacity_rps : (steps + 1, E) or (1, E)

    Returns
    -------
    (steps + 1, E), >= 0; exact where rates are constant between grid points
    """
    path = np.empty((grid.steps + 1, len(queued)))
    path[0] = queued
    for k in range(grid.steps):
        rps = before_rps if k < grid.delay_steps else after_rps
        capacity = capacity_rps[k if len(capacity_rps) > 1 else 0]
        np.maximum(path[k] + (rps - capacity) * grid.step_s, 0.0, out=path[k + 1])
    return path


def simulate(
    stations: Stations,
    queued: Floats,
    before_rps: Floats,
    after_rps: Floats,
    warm: Floats,
    grid: Grid,
) -> Course:
    """Response times of stations whose load steps from one rate to another.

    Parameters
    ----------
    stations : (E,), in any order: one row for each draw and provider
    queued : (E,) requests that wait now, >= 0
    before_rps, after_rps : (E,) requests/s, >= 0
    warm : (E,) part of its capacity that a station has at first, 0..1; 1 where it is warm

    Returns
    -------
    the course, finite; a capacity that is not known (NaN) is never exceeded, and one of 0 makes
    every request wait for ``LONGEST_S``
    """
    capacity = _capacity_rps(stations)
    warm = np.clip(warm, 1e-3, 1.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        curve = latency.wait_s(stations, np.minimum(after_rps, capacity))
    curve = np.minimum(np.nan_to_num(curve, nan=0.0, posinf=LONGEST_S), LONGEST_S)
    idle, wait = stations.idle_s, np.zeros_like(after_rps)
    rows = np.flatnonzero(_needs_time(queued, before_rps, after_rps, capacity, warm))
    if len(rows):
        served = np.maximum(capacity[rows] * grid.warmth(warm[rows]), _LEAST_RPS)
        path = queues(queued[rows], before_rps[rows], after_rps[rows], served, grid)
        waits = np.minimum(path[grid.delay_steps :] / served[grid.delay_steps :], LONGEST_S)
        wait[rows] = waits.mean(axis=0)
    return Course(
        idle + curve + wait,
        idle * stations.tail_ratio + latency.WAIT_P95_RATIO * curve + wait,
    )


def _capacity_rps(stations: Stations) -> Floats:
    """(E,) requests/s; inf where there is none, or none is known."""
    capacity = np.nan_to_num(stations.capacity_rps, nan=np.inf, posinf=np.inf)
    if stations.power is not None:
        capacity = np.where(stations.power.chosen, np.inf, capacity)
    return np.maximum(capacity, 0.0)


def _needs_time(
    queued: Floats, before_rps: Floats, after_rps: Floats, capacity: Floats, warm: Floats
) -> Bools:
    """(E,) whether anything changes with time: elsewhere no queue is, and none will be."""
    needs: Bools = (queued > 0.0) | (np.maximum(before_rps, after_rps) > capacity * warm)
    return needs
