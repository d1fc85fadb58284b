"""Trust in one's own forecasts: an interval that covers what it says it covers."""

import numpy as np

from xds_server.core.tables import Bools, Floats

COVERAGE_RATIO = 0.9
Z_90 = 1.645
"""Half-width of the 90 % interval of a normal distribution, in standard deviations."""
_STEP = 0.15
_LOWEST, _HIGHEST = 0.5, 20.0


def recalibrate(scale: Floats, z: Floats, seen: Bools) -> Floats:
    """(R,) factor on sigma, moved so that 90 % of outcomes fall within the interval.

    Quantile tracking by stochastic approximation (Robbins and Monro, 1951): a miss widens
    by nine times what a hit narrows, so the two balance at 10 % misses.

    Parameters
    ----------
    scale : (R,) factor so far
    z : (R,) (observed - predicted) / sigma, sigma including ``scale``
    seen : (R,) where there was an outcome
    """
    missed = np.abs(z) > Z_90
    step = np.where(missed, COVERAGE_RATIO, COVERAGE_RATIO - 1.0) * _STEP
    return np.clip(scale * np.exp(np.where(seen, step, 0.0)), _LOWEST, _HIGHEST)
