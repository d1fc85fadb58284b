"""Stage 7: what was forecast beside what happened."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from xds_server.core.calibration import Z_90, recalibrate
from xds_server.core.tables import Floats
from xds_server.engine.deploy import Deployment
from xds_server.engine.models import Models
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.decision import NO_OUTCOMES, Outcomes

MIN_RESPONSES = 10.0
"""Fewer responses than this say too little about a forecast."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one tick taught."""

    models: Models
    last_good: Floats  # (P,)
    outcomes: Outcomes


def learn(
    problem: Problem,
    evaluation: Evaluation,
    pending: Iterable[Deployment],
    models: Models,
    last_good: Floats,
    *,
    settled_s: float,
) -> Lesson:
    """Compare the newest settled forecast with the window, and adjust the trust in both.

    Parameters
    ----------
    pending : deployments, oldest first
    settled_s : a deployment older than this was in force for the whole window
    """
    settled = [d for d in pending if evaluation.now_s - d.now_s >= settled_s]
    seen = evaluation.observation
    if not settled:
        return Lesson(models, last_good, NO_OUTCOMES)
    deployed = settled[-1]
    enough = (seen.route_responses >= MIN_RESPONSES) & evaluation.measured
    observed = np.where(enough, seen.route_latency_s, 0.0)
    # The mean of n responses has its own error, beside the forecast's.
    sampling = np.nan_to_num(seen.route_latency_s) / np.sqrt(np.maximum(seen.route_responses, 1.0))
    sigma = np.sqrt(deployed.forecast.sigma_s**2 + sampling**2) + 1e-9
    z = (observed - deployed.forecast.latency_s) / sigma
    calibration = recalibrate(models.calibration, z, enough)
    within = np.isnan(seen.route_p95_s) | (seen.route_p95_s <= evaluation.slo_s)
    good = enough & (np.abs(z) <= Z_90) & within
    rows = np.flatnonzero(enough)
    outcomes = Outcomes(rows, deployed.forecast.latency_s[rows], sigma[rows], observed[rows])
    return Lesson(
        replace(models, calibration=calibration),
        np.where(good[problem.pairs.route], deployed.shares, last_good),
        outcomes,
    )
