"""What a controller gets to see of the truth: late, noisy, or not at all."""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.lab.truth import Slot
from bench.lab.worlds import World
from xds_server.core.tables import Bools, Floats

WINDOW_TICKS: Final = 2
NOISE: Final = 0.05
"""Standard deviation of the logarithm of the factor on every reported sum."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One window. Sums over it, by pair (P,) or provider (J,)."""

    tick: int
    window_s: float
    covered_s: Floats  # (P,)
    age_s: Floats  # (P,) inf: never
    requests: Floats  # (P,)
    errors: Floats  # (P,)
    latency_sum_s: Floats  # (P,)
    latency_count: Floats  # (P,)
    latency_hist: Floats  # (P, B + 1)
    active: Floats  # (P,) in flight at the end
    utilisation_ratio: Floats  # (J,) NaN: nothing was said
    price_usd: Floats  # (J,) per request
    load_age_s: Floats  # (J,)
    recent_requests: Floats  # (P,) of the newest tick
    recent_covered_s: Floats  # (P,) seconds of it that were reported


@dataclass(frozen=True, slots=True)
class Noise:
    """The accidents of one tick's reports, the same for every policy."""

    counts: Floats  # (P,)
    latency: Floats  # (P,)
    utilisation: Floats  # (J,)
    lost: Bools  # (P,) reports are lost by node


def draw_noise(world: World, seed: int, tick: int) -> Noise:
    """Draw one tick; depends on nothing but its arguments."""
    rng = np.random.default_rng([seed, 4, tick])
    layout = world.layout
    pairs = layout.problem.pairs
    lost = rng.random(len(layout.nodes)) < world.faults.dropped_ratio
    return Noise(
        np.exp(rng.normal(0.0, NOISE, len(pairs.route))),
        np.exp(rng.normal(0.0, NOISE, len(pairs.route))),
        np.exp(rng.normal(0.0, NOISE, pairs.providers)),
        lost[layout.node_row],
    )


class Feed:
    """Turns a policy's slots into what it sees."""

    def __init__(self, world: World) -> None:
        self.world = world
        rows = len(world.layout.problem.pairs.route)
        count = len(world.layout.servers)
        # The newest WINDOW_TICKS slots that arrived; older ones are forgotten.
        self._slots: deque[tuple[int, Bools, Slot]] = deque(maxlen=WINDOW_TICKS)
        self._newest = np.full(rows, -np.inf)
        self._busy = np.full(count, np.nan)
        self._busy_at = np.full(count, -np.inf)

    def see(self, tick: int, slot: Slot, noise: Noise) -> Seen:
        """Take in one tick and return the window that ends with it."""
        faults = self.world.faults
        stale = faults.stale[0] <= tick < faults.stale[1]
        if not stale:
            dark = faults.blackout[0] <= tick < faults.blackout[1]
            kept = np.zeros_like(noise.lost) if dark else ~noise.lost
            self._slots.append((tick, kept, self._blur(slot, noise)))
            self._newest[kept] = tick
            if not dark:
                heard = self._heard(slot)
                busy = slot.utilisation_ratio * noise.utilisation
                if faults.liar >= 0:
                    busy[faults.liar] *= faults.lie_ratio
                self._busy = np.where(heard, busy, self._busy)
                self._busy_at = np.where(heard, tick, self._busy_at)
        return self._window(tick)

    def _heard(self, slot: Slot) -> Bools:
        """(J,) utilisation rides on responses."""
        heard: Bools = self.world.layout.problem.pairs.sum_by_provider(slot.latency_count) > 0
        return heard

    def _blur(self, slot: Slot, noise: Noise) -> Slot:
        return Slot(
            slot.requests * noise.counts,
            slot.errors * noise.counts,
            slot.latency_sum_s * noise.counts * noise.latency,
            slot.latency_count * noise.counts,
            slot.latency_hist * noise.counts.astype(np.float32)[:, None],
            slot.active,
            slot.utilisation_ratio,
        )

    def _window(self, tick: int) -> Seen:
        def total(name: str) -> Floats:
            parts = [
                np.where(k if getattr(s, name).ndim == 1 else k[:, None], getattr(s, name), 0.0)
                for _, k, s in self._slots
            ]
            summed: Floats = np.sum(parts, axis=0)
            return summed

        rows = len(self._newest)
        covered = np.zeros(rows)
        for _, kept, _ in self._slots:
            covered += kept
        age = tick - self._newest
        load_age = tick - self._busy_at
        # A load report is valid for 30 s in the control plane.
        return Seen(
            tick,
            float(WINDOW_TICKS),
            covered,
            np.where(np.isfinite(age), age + 0.1, np.inf),
            total("requests"),
            total("errors"),
            total("latency_sum_s"),
            total("latency_count"),
            total("latency_hist"),
            self._slots[-1][2].active if self._slots else np.zeros(rows),
            np.where(load_age <= 30.0, self._busy, np.nan),
            self.world.price_usd[tick],
            np.where(np.isfinite(load_age), load_age, np.inf),
            *self._recent(rows),
        )

    def _recent(self, rows: int) -> tuple[Floats, Floats]:
        """Requests of the newest slot, and the seconds of it that were reported."""
        if not self._slots:
            return np.zeros(rows), np.zeros(rows)
        _, kept, slot = self._slots[-1]
        return np.where(kept, slot.requests, 0.0), kept.astype(np.float64)
