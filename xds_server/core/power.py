"""Power curves b + k (x / x0)^n learned online, and the choice between them and a station.

Recursive least squares with forgetting over the features (1, (x / x0)^n), for a few exponents
at once, in relative errors: a measurement weighs by 1 / (T^2 noise). Every candidate is judged by
how probable it made each measurement before it saw it, remembered with the same forgetting (a
rolling predictive log-score: A. P. Dawid, "Present position and potential developments: the
prequential approach", 1984).
"""

from dataclasses import dataclass, replace

import numpy as np

from xds_server.core.latency import PowerCurves
from xds_server.core.tables import Bools, Floats

EXPONENTS = (1.0, 2.0, 3.0, 4.0, 6.0)
FORGETTING = 0.98
"""Per measurement."""
SWITCH_MARGIN = 2.0
"""Log-score by which a family must be better than the one in use."""
MODEL_NOISE = 0.02**2
"""Relative variance of a measurement that no number of samples removes."""
_RIDGE = 0.05
_WORST_SCORE = -12.0
_MOVED_RATIO = 1.3
"""Loads must have differed by this factor before a curve can be told from a constant."""


@dataclass(frozen=True, slots=True)
class PowerFits:
    """Normal equations of every (provider, exponent), and scores; axis 0 (J) is the provider."""

    scale_rps: Floats  # (J,) x0, the first load seen; NaN: none yet
    lowest_rps: Floats  # (J,)
    highest_rps: Floats  # (J,)
    normal: Floats  # (J, G, 3) sums of 1, f, f f
    right: Floats  # (J, G, 2) sums of T, f T
    score: Floats  # (J, G) rolling predictive log-score
    station_score: Floats  # (J,)
    chosen: Bools  # (J,) the power family is in use


def no_fits(providers: int) -> PowerFits:
    """Nothing is known of any provider."""
    g = len(EXPONENTS)
    blank = np.full(providers, np.nan)
    return PowerFits(
        blank,
        np.full(providers, np.inf),
        np.zeros(providers),
        np.zeros((providers, g, 3)),
        np.zeros((providers, g, 2)),
        np.zeros((providers, g)),
        np.zeros(providers),
        np.zeros(providers, dtype=bool),
    )


def update(
    fits: PowerFits,
    rps: Floats,
    observed_s: Floats,
    samples: Floats,
    cv2: Floats,
    station_s: Floats,
    eligible: Bools,
) -> PowerFits:
    """Take in one measurement per provider where there are samples.

    Parameters
    ----------
    rps : (J,) load at which ``observed_s`` (J,) was measured
    samples : (J,) requests behind it, >= 0
    cv2 : (J,) squared coefficient of variation of one sample
    station_s : (J,) what the station predicted for that load, before it learned of it
    eligible : (J,) whether the family may be chosen
    """
    seen = (samples > 0.0) & np.isfinite(observed_s) & (rps > 0.0)
    scale = np.where(np.isnan(fits.scale_rps) & seen, rps, fits.scale_rps)
    safe_scale = np.where(np.isfinite(scale), scale, 1.0)
    observed = np.where(seen, observed_s, 1.0)
    noise = cv2 / np.maximum(samples, 1.0) + MODEL_NOISE
    features = _features(rps, safe_scale)
    base, rise = _solve(fits)
    known = fits.normal[:, :, 0] > 0.0
    guess = np.where(known, base + rise * features, station_s[:, None])
    ours = _log_density(guess, observed[:, None], noise[:, None])
    theirs = _log_density(station_s, observed, noise)
    weight = np.where(seen, 1.0 / (observed**2 * noise), 0.0)[:, None]
    kept = np.where(seen, FORGETTING, 1.0)[:, None]
    normal = fits.normal * kept[:, :, None]
    normal += weight[:, :, None] * np.stack([np.ones_like(features), features, features**2], 2)
    right = fits.right * kept[:, :, None]
    right += (weight * observed[:, None])[:, :, None] * np.stack(
        [np.ones_like(features), features], 2
    )
    score = np.where(seen[:, None], FORGETTING * fits.score + ours, fits.score)
    station = np.where(seen, FORGETTING * fits.station_score + theirs, fits.station_score)
    low = np.where(seen, np.minimum(fits.lowest_rps, rps), fits.lowest_rps)
    high = np.where(seen, np.maximum(fits.highest_rps, rps), fits.highest_rps)
    ahead = score.max(axis=1) - station
    told_apart = high > _MOVED_RATIO * low
    enters = ahead > SWITCH_MARGIN
    chosen = eligible & told_apart & np.where(fits.chosen, ahead > -SWITCH_MARGIN, enters)
    return replace(
        fits,
        scale_rps=scale,
        lowest_rps=low,
        highest_rps=high,
        normal=normal,
        right=right,
        score=score,
        station_score=station,
        chosen=chosen,
    )


def curves(fits: PowerFits) -> PowerCurves:
    """Return each provider's most probable curve."""
    base, rise = _solve(fits)
    best = fits.score.argmax(axis=1)
    row = np.arange(len(best))
    return PowerCurves(
        chosen=fits.chosen,
        base_s=np.maximum(base[row, best], 1e-6),
        rise_s=rise[row, best],
        scale_rps=np.where(np.isfinite(fits.scale_rps), fits.scale_rps, 1.0),
        exponent=np.array(EXPONENTS)[best],
    )


def _features(rps: Floats, scale: Floats) -> Floats:
    """(J, G) (x / x0)^n."""
    ratio = np.clip(rps / scale, 1e-6, 1e3)
    powers: Floats = ratio[:, None] ** np.array(EXPONENTS)
    return powers


def _solve(fits: PowerFits) -> tuple[Floats, Floats]:
    """(J, G) b and k >= 0 that fit best; the ridge keeps k at 0 until loads have differed."""
    n1, nf, nff = fits.normal[:, :, 0], fits.normal[:, :, 1], fits.normal[:, :, 2]
    t1, tf = fits.right[:, :, 0], fits.right[:, :, 1]
    safe = np.maximum(n1, 1e-300)
    spread = nff - nf**2 / safe
    rise = (tf - nf * t1 / safe) / np.maximum(spread + _RIDGE * 1e-3 * nff, 1e-300)
    rise = np.maximum(rise, 0.0)
    base = (t1 - rise * nf) / safe
    # A curve that would start below zero goes through it instead.
    through = tf / np.maximum(nff, 1e-300)
    below = base <= 0.0
    return np.where(below, 0.0, base), np.where(below, through, rise)


def _log_density(guess: Floats, observed: Floats, noise: Floats) -> Floats:
    """Log of a normal density of the relative error; bounded, so that one outlier is one vote."""
    z2 = ((observed - guess) / observed) ** 2 / noise
    return np.maximum(-0.5 * (z2 + np.log(noise)), _WORST_SCORE)
