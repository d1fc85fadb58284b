"""The real engine as a policy: its mesh, its tick, its published weights."""

import time
from itertools import pairwise
from typing import Final

import numpy as np

from bench.lab.feed import Seen
from bench.lab.worlds import World
from xds_server.core.tables import Floats
from xds_server.engine.gain import decided_gains, gain_terms
from xds_server.engine.loop import Tick, tick
from xds_server.engine.state import EngineState, initial_state
from xds_server.engine.types import Problem
from xds_server.model.decision import MOVES, Move
from xds_server.model.snapshot import Overlay
from xds_server.model.telemetry import PairWindow, ProviderLoad

_SAME_SHARE: Final = 1e-6


class Wire:
    """The actuator: keeps the newest weights, and counts what was pushed."""

    def __init__(self) -> None:
        self.overlay: Overlay | None = None
        self.published = 0

    def publish(self, overlay: Overlay, now_s: float) -> None:
        """Take over new weights."""
        self.overlay = overlay
        self.published += 1

    def renew(self, now_s: float) -> None:
        """Nothing expires here."""


class Ours:
    """``xds_server.engine.loop.tick`` over what was seen."""

    name = "ours"
    in_data_plane = False
    least_request = False

    def start(self, world: World) -> Floats:
        """Begin at the baseline, with the declared capacities."""
        layout = world.layout
        self._problem = layout.problem
        self._mesh = layout.mesh
        self._state: EngineState = initial_state(layout.problem)
        self._wire = Wire()
        self._taken: Overlay | None = None
        self._shares = layout.problem.baseline_shares.copy()
        self.tick_ms: list[float] = []
        self.z: list[Floats] = []
        """Of each tick, how many sigmas each settled forecast was off."""
        self.reverts: list[int] = []
        self.terms_off: list[Floats] = []
        """Of each push of a tick, how far the terms that explain it are from the gain predicted."""
        pairs, providers = layout.problem.pairs, layout.problem.providers
        self._nodes, self._node_row = layout.nodes, layout.node_row
        self._provider_row = pairs.provider
        ends = [*pairs.starts.tolist(), len(pairs.route)]
        self._names = [
            (begin, [providers[j] for j in pairs.provider[begin:end]])
            for begin, end in pairwise(ends)
        ]
        return self._shares

    def step(self, seen: Seen) -> Floats:
        """Run one tick of the engine; shares are those of the published weights."""
        window, load = self._window(seen), self._load(seen)
        begun = time.perf_counter()
        done = tick(
            self._state,
            window,
            load,
            self._wire,
            self._mesh.engine,
            self._mesh.mode,
            now_s=float(seen.tick + 1),
            elapsed_s=1.0,
        )
        self.tick_ms.append(1e3 * (time.perf_counter() - begun))
        self.z.append(done.lesson.outcomes.z)
        self.reverts.append(len(done.reverted))
        self.terms_off.append(terms_off(self._problem, done))
        self._take_published()
        return self._shares

    def _take_published(self) -> None:
        """Read shares off the overlay, as sidecars do; a route without weights keeps its own."""
        overlay, problem = self._wire.overlay, self._problem
        if overlay is None or overlay is self._taken:
            return
        weights = np.full(len(self._shares), np.nan)
        before = self._taken.weights if self._taken is not None else {}
        for r, key in enumerate(problem.routes):
            group = overlay.weights.get(key.group)
            # A group that kept its weights kept the very object.
            if group is None or group is before.get(key.group):
                continue
            mine = group.get(key.service)
            if mine:
                begin, names = self._names[r]
                weights[begin : begin + len(names)] = [mine.get(name, 0) for name in names]
        self._taken = overlay
        total = problem.pairs.sum_by_route(weights)[problem.pairs.route]
        self._shares = np.where(total > 0.0, weights / total, self._shares)

    def _window(self, seen: Seen) -> PairWindow:
        return PairWindow(
            window_s=seen.window_s,
            nodes=self._nodes,
            providers=self._problem.providers,
            node_row=self._node_row,
            provider_row=self._provider_row,
            covered_s=seen.covered_s,
            requests=seen.requests,
            errors=seen.errors,
            latency_sum_s=seen.latency_sum_s,
            latency_count=seen.latency_count,
            latency_hist=seen.latency_hist,
            active=seen.active,
            rx_bytes=seen.latency_count * 20_000.0,
            tx_bytes=seen.requests * 500.0,
            age_s=seen.age_s,
            recent_requests=seen.recent_requests,
            recent_covered_s=seen.recent_covered_s,
        )

    def _load(self, seen: Seen) -> ProviderLoad:
        blank = np.full(len(seen.price_usd), np.nan)
        return ProviderLoad(
            self._problem.providers,
            seen.utilisation_ratio,
            blank,
            1e6 * seen.price_usd,
            seen.load_age_s,
        )


def terms_off(problem: Problem, done: Tick) -> Floats:
    """(K,) of each pushed route, relative difference of the sum of its terms to its gain.

    The gain is the one that the gate compared with the cost of the move; a way back is taken
    against the forecast, so its terms are held against their own total. Infinite where the terms
    are not those of what was pushed: where providers are fed up to their floors, for instance.
    """
    decision, evaluation = done.decision, done.evaluation
    moved = problem.pairs.any_by_route(done.deployment.shares != evaluation.shares_now)
    routes = np.flatnonzero(moved & done.deployment.published)
    if len(routes) == 0:
        return np.empty(0)
    gains = decided_gains(problem, evaluation, done.simulated, decision)
    terms = gain_terms(problem, evaluation, gains, routes)
    back = decision.move[routes] == MOVES.index(Move.LAST_GOOD)
    wanted = np.where(back, gains.net_ms[routes], decision.gain_ms[routes])
    off = np.abs(np.sum(list(terms.values()), axis=0) - wanted) / np.maximum(np.abs(wanted), 1e-9)
    pushed = evaluation.shares_now - done.deployment.shares
    other = problem.pairs.max_by_route(np.abs(pushed - gains.change))[routes] > _SAME_SHARE
    return np.where(other, np.inf, off)
