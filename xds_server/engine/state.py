"""What the engine remembers from tick to tick: shares, models, forecasts.

Rows follow the current ``Problem``; ``engine.adopt`` carries them over when routes come and go.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from xds_server.core import limits
from xds_server.core.tables import Bools, Floats, Ints
from xds_server.engine.deploy import NOTHING, Deployment
from xds_server.engine.models import Models, initial_models
from xds_server.engine.observe import RowMap
from xds_server.engine.trials import Trials, no_trials
from xds_server.engine.types import Problem
from xds_server.model.snapshot import Overlay

FORECASTS_KEPT: Final = 4
"""Deployments whose outcome is still awaited; the oldest is dropped."""
_WINDOW_PLANS: Final = 2
"""Plans that were in force during one window."""


@dataclass(slots=True)
class EngineState:
    """The engine's memory. Bounded by the problem's size times a constant."""

    problem: Problem
    shares: Floats  # (P,) commanded
    wanted: Floats  # (P,) where steps that were too small to push would have led
    models: Models
    last_good: Floats  # (P,) shares whose outcome was as forecast and within the SLO
    weights: Ints  # (P,) last published; all 0 before the first
    trials: Trials
    fragile: Bools  # (R,) would not survive the loss of a provider, when last looked at
    overlay: Overlay = NOTHING  # last published
    rows: RowMap | None = None  # of the newest window
    pending: deque[Deployment] = field(default_factory=lambda: deque(maxlen=FORECASTS_KEPT))

    @property
    def planned_rps(self) -> Floats:
        """(K, J) load under each plan of the newest window at today's demand; NaN if none."""
        pairs, demand = self.problem.pairs, self.models.demand_rps
        plans = [d.shares for d in list(self.pending)[-_WINDOW_PLANS:]]
        if not plans:
            return np.full((1, pairs.providers), np.nan)
        return np.stack([pairs.loads(plan, demand) for plan in plans])

    def remember(
        self, deployment: Deployment, wanted: Floats, models: Models, last_good: Floats
    ) -> None:
        """Take over the results of a tick."""
        self.wanted = wanted
        self.shares, self.weights = deployment.shares, deployment.weights
        self.overlay = deployment.overlay
        self.models, self.last_good = models, last_good
        self.pending.append(deployment)


def initial_state(problem: Problem) -> EngineState:
    """Start at the baseline, knowing only priors."""
    shares = limits.onto_allowed(problem.pairs, problem.baseline_shares, problem.allowed)
    return EngineState(
        problem,
        shares,
        shares,
        initial_models(problem),
        shares,
        np.zeros(len(shares), dtype=np.int64),
        no_trials(problem.pairs.routes, len(shares)),
        np.zeros(problem.pairs.routes, dtype=bool),
    )
