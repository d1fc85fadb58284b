"""Power curves b + sum of k_n (x / x0)^n learned online, and the choice between them and a station.

What was measured is remembered by load: each provider has a row of bins over the logarithm of its
load, each with the mean load and latency of what fell into it. A bin forgets when it is hit again,
the others hardly: a provider that has been held at one load for an hour still knows what it was
like at another (directional forgetting). Curves of a few exponents are fitted to the bins by
weighted least squares in relative errors, averaged by their likelihood, and compared with the
station by likelihood over the bins; a power curve has two parameters more, and pays for them.
What a provider needs without load, which it may never be, is guessed from the quickest response
of its kind: those that the same routes may use do the same work.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from xds_server.core import latency
from xds_server.core.latency import PowerCurves, Stations
from xds_server.core.tables import Bools, Floats, Ints

EXPONENTS = (1.0, 2.0, 3.0, 4.0, 6.0)
BINS = 64
BIN_RATIO = 1.05
"""Upper over lower bound of a bin: loads from a fifth to five times the first are told apart."""
STAY_LOG = 0.03
HIT_KEPT = 0.8
"""Part of a bin's past that stays when it is measured again."""
IDLE_KEPT = 0.998
"""Per measurement, of all other bins."""
LEVEL_GAIN = 0.3
"""Part of a miss that moves a whole curve: a provider that slows down has the same, higher."""
LEVEL_BREAK = 0.3
"""A curve that is off by more than this, in logarithms, is another one: the past fades fast."""
BREAK_KEPT = 0.5
CHANGED_RATIO = 1.35
CHANGED_SIGMA = 4.0
"""The same load with a latency that is off by both is another provider under the same name."""
CHANGED_KEPT = 0.0
KNOWN_MARGIN = 10.0
"""Log-likelihood by which a curve must be better than a station whose capacity is known."""
UNKNOWN_MARGIN = 0.0
"""And than one whose number of servers is a guess."""
KEPT_MARGIN = 3.0
"""By so much less it may be better once it is in use."""
MODEL_NOISE = 0.03**2
"""Relative variance of a measurement that no number of samples removes."""
LEAST_COUNT = 5.0
"""Measurements without which no curve is drawn: queues that build up or drain are none."""
KIN_SIGMA = 0.15
"""How far an idle provider's response time is from the quickest of its kind, relative."""
_ASIDE = 1.1
"""Loads nearer than this ratio may be the same."""
_TOLD_APART = 1.05
_LEAST_WEIGHT = 0.02
_BIN_WEIGHT_MAX = 4.0 / MODEL_NOISE


@dataclass(frozen=True, slots=True)
class PowerFits:
    """What was measured by load, and the best curve through it; axis 0 (J) is the provider."""

    scale_rps: Floats  # (J,) x0, the first load seen; NaN: none yet
    weight: Floats  # (J, BINS) sums of 1 / relative variance
    load: Floats  # (J, BINS) weighted sums of the load, rps
    time: Floats  # (J, BINS) and of the response time, s
    newest: Ints  # (J,) bin that was hit last; -1: none
    count: Floats  # (J,) measurements since the provider last changed
    level: Floats  # (J,) log of what is observed over what the chosen curve says
    chosen: Bools  # (J,) the power family is in use
    base_s: Floats  # (J,)
    rise_s: Floats  # (J, len(EXPONENTS))


def no_fits(providers: int) -> PowerFits:
    """Nothing is known of any provider."""
    zeros, table = np.zeros(providers), np.zeros((providers, BINS))
    return PowerFits(
        np.full(providers, np.nan),
        table,
        table,
        table,
        np.full(providers, -1),
        zeros,
        zeros,
        np.zeros(providers, dtype=bool),
        np.ones(providers),
        np.zeros((providers, len(EXPONENTS))),
    )


def update(
    fits: PowerFits,
    rps: Floats,
    observed_s: Floats,
    samples: Floats,
    variance: Floats,
    stations: Stations,
    known_capacity: Bools,
    eligible: Bools,
    kin: Ints,
) -> PowerFits:
    """Take in one measurement per provider where there are samples, and fit again.

    Parameters
    ----------
    rps : (J,) load at which ``observed_s`` (J,) was measured
    samples : (J,) requests behind it, >= 0
    variance : (J,) relative variance of ``observed_s`` as a measurement at that load
    stations : the other family's curves, as they are now
    known_capacity : (J,) whether the stations' is more than a guess
    eligible : (J,) whether the power family may be chosen; nothing is kept of the others
    kin : (J,) providers of the same number do the same work; -1: with nobody
    """
    rows = np.flatnonzero(eligible)
    if len(rows) == 0:
        return replace(fits, chosen=np.zeros_like(fits.chosen))
    columns = [f.name for f in fields(PowerFits)]
    mine = PowerFits(*(getattr(fits, name)[rows] for name in columns))
    done = _update(
        mine,
        rps[rows],
        observed_s[rows],
        samples[rows],
        variance[rows],
        stations.rows(rows),
        known_capacity[rows],
        kin[rows],
    )
    whole = {name: getattr(fits, name).copy() for name in columns}
    whole["chosen"][:] = False
    for name in columns:
        whole[name][rows] = getattr(done, name)
    return PowerFits(**whole)


def _update(
    fits: PowerFits,
    rps: Floats,
    observed_s: Floats,
    samples: Floats,
    variance: Floats,
    stations: Stations,
    known_capacity: Bools,
    kin: Ints,
) -> PowerFits:
    seen = (samples > 0.0) & np.isfinite(observed_s) & (rps > 0.0)
    scale = np.where(np.isnan(fits.scale_rps) & seen, rps, fits.scale_rps)
    x0 = np.where(np.isfinite(scale), scale, 1.0)
    curve = _at(fits.base_s, fits.rise_s, rps / x0)
    miss = np.log(np.where(seen, observed_s, curve) / curve) - fits.level
    step = np.where(seen & fits.chosen, LEVEL_GAIN * np.clip(miss, -1.0, 1.0), 0.0)
    level = np.where(fits.chosen, fits.level + step, 0.0)
    where = np.log(np.maximum(rps, 1e-9) / x0) / np.log(BIN_RATIO) + BINS / 2
    bins = _stay(fits, rps, np.clip(where, 0, BINS - 1).astype(np.int64))
    noise = variance + MODEL_NOISE
    more = 1.0 / noise
    changed = seen & (
        _contradicted(fits, bins, observed_s, noise) | _not_monotone(fits, rps, observed_s, noise)
    )
    broken = np.abs(level) > LEVEL_BREAK
    kept = np.where(changed, CHANGED_KEPT, np.where(broken, BREAK_KEPT, IDLE_KEPT))[:, None]
    row = np.flatnonzero(seen)
    hit, hit_kept = bins[row], np.where(changed, CHANGED_KEPT, HIT_KEPT)[row]
    tables = []
    for table, value in (
        (fits.weight, np.ones_like(rps)),
        (fits.load, rps),
        (fits.time, observed_s),
    ):
        new = np.where(seen[:, None], table * kept, table)
        new[row, hit] = hit_kept * table[row, hit] + (more * value)[row]
        tables.append(new)
    weight, load, time = tables
    found = _fit(weight, load, time, x0, _quickest_s(weight, time, kin))
    station = _misfit_of_stations(weight, load, time, stations)
    used = np.where(
        weight > _LEAST_WEIGHT * more[:, None], load / np.maximum(weight, 1e-12), np.nan
    )
    apart = _spread(used) > _TOLD_APART
    ahead = 0.5 * (station - found.misfit)
    margin = np.where(known_capacity, KNOWN_MARGIN, UNKNOWN_MARGIN) - KEPT_MARGIN * fits.chosen
    better = ahead > margin
    count = np.where(changed, 1.0, fits.count + seen)
    now = _at(found.base_s, found.rise_s, rps / x0)
    off = np.abs(np.log(np.where(seen, observed_s, now) / now) - level)
    true = (off < np.log(CHANGED_RATIO)) | (off < CHANGED_SIGMA * np.sqrt(noise))
    count = np.where(true, count, 0.0)
    chosen = apart & better & (count >= LEAST_COUNT)
    return PowerFits(
        scale,
        weight,
        load,
        time,
        np.where(seen, bins, fits.newest),
        count,
        np.where(chosen, np.where(broken, BREAK_KEPT * level, level), 0.0),
        chosen,
        found.base_s,
        found.rise_s,
    )


def curves(fits: PowerFits) -> PowerCurves:
    """Return each provider's most probable curve."""
    level = np.exp(fits.level)
    return PowerCurves(
        chosen=fits.chosen,
        base_s=np.maximum(level * fits.base_s, 1e-6),
        rise_s=level[:, None] * fits.rise_s,
        scale_rps=np.where(np.isfinite(fits.scale_rps), fits.scale_rps, 1.0),
        exponents=EXPONENTS,
    )


def _at(base_s: Floats, rise_s: Floats, ratio: Floats) -> Floats:
    """(J,) the curve at that load over x0, s, > 0."""
    rise: Floats = (rise_s * ratio[:, None] ** np.array(EXPONENTS)).sum(axis=1)
    return np.maximum(base_s + rise, 1e-9)


def _stay(fits: PowerFits, rps: Floats, bins: Ints) -> Ints:
    """(J,) the bin that was hit last where the load is nearly what it was there, else its own.

    A load that is held is only counted differently from tick to tick; spread over several
    bins, that noise would look like a range of loads with one latency, and flatten the curve.
    """
    row, last = np.arange(len(bins)), np.maximum(fits.newest, 0)
    weight = fits.weight[row, last]
    held = np.where(weight > 0.0, fits.load[row, last] / np.maximum(weight, 1e-12), 1e12)
    near = np.abs(np.log(np.maximum(rps, 1e-9) / held)) < STAY_LOG
    return np.where((fits.newest >= 0) & near, last, bins)


def _contradicted(fits: PowerFits, bins: Ints, observed_s: Floats, noise: Floats) -> Bools:
    """(J,) whether the latency is not what it was at this very load."""
    row = np.arange(len(bins))
    weight = fits.weight[row, bins]
    known = weight > _LEAST_WEIGHT / MODEL_NOISE
    before = np.where(known, fits.time[row, bins] / np.maximum(weight, 1e-12), 1.0)
    off = np.abs(np.log(np.where(known, np.maximum(observed_s, 1e-9), 1.0) / before))
    sigma = np.sqrt(noise + 1.0 / np.maximum(weight, 1e-9))
    changed: Bools = known & (off > np.log(CHANGED_RATIO)) & (off > CHANGED_SIGMA * sigma)
    return changed


def _not_monotone(fits: PowerFits, rps: Floats, observed_s: Floats, noise: Floats) -> Bools:
    """(J,) whether the provider was slower at less load than now, or quicker at more.

    Response times grow with load, whatever the curve: one that contradicts that has changed.
    """
    known = fits.weight > 0.0
    weight = np.where(known, fits.weight, 1.0)
    load, time = fits.load / weight, np.where(known, fits.time / weight, 1.0)
    off = np.log(np.maximum(observed_s, 1e-9))[:, None] - np.log(time)
    limit = np.maximum(
        np.log(CHANGED_RATIO), CHANGED_SIGMA * np.sqrt(noise[:, None] + 1.0 / weight)
    )
    quicker = (load < rps[:, None] / _ASIDE) & (-off > limit)
    slower = (load > rps[:, None] * _ASIDE) & (off > limit)
    changed: Bools = np.logical_or.reduce(known & (quicker | slower), axis=1)
    return changed


@dataclass(frozen=True, slots=True)
class _Fit:
    base_s: Floats  # (J,)
    rise_s: Floats  # (J, G)
    misfit: Floats  # (J,) weighted sum of squared relative errors, of the best


def _quickest_s(weight: Floats, time: Floats, kin: Ints) -> Floats:
    """(J,) the quickest mean response time of any load of any provider of the same kind, s.

    Where a provider was never without load, that is the best hint at what it needs without any.
    NaN where nothing was measured.
    """
    sure = weight > _LEAST_WEIGHT / MODEL_NOISE
    own = np.where(sure, time / np.maximum(weight, 1e-12), np.inf).min(axis=1)
    best = np.full(int(kin.max(initial=-1)) + 1, np.inf)
    together = kin >= 0
    np.minimum.at(best, kin[together], own[together])
    if together.any():
        own = np.where(together, best[np.maximum(kin, 0)], own)
    return np.where(np.isfinite(own), own, np.nan)


def _fit(weight: Floats, load: Floats, time: Floats, x0: Floats, idle_s: Floats) -> _Fit:
    """Least squares over each provider's bins for every exponent, averaged by likelihood.

    ``idle_s`` (J,) counts as one more bin, without load, known to within ``KIN_SIGMA``.
    """
    t0 = np.where(np.isfinite(idle_s), idle_s, 1.0)[:, None]
    w0 = np.where(np.isfinite(idle_s), 1.0 / KIN_SIGMA**2, 0.0)[:, None]
    x = load / np.maximum(weight, 1e-12) / x0[:, None]
    t = np.where(weight > 0.0, time / np.maximum(weight, 1e-12), 1.0)
    x, t = np.hstack([x, np.zeros_like(t0)]), np.hstack([t, t0])
    weight = np.hstack([np.minimum(weight, _BIN_WEIGHT_MAX), w0])
    w = weight / t**2
    n1, t1 = w.sum(axis=1), (w * t).sum(axis=1)
    safe = np.maximum(n1, 1e-300)
    bases, rises, misfits = [], [], []
    for exponent in EXPONENTS:
        f = np.where(weight > 0.0, x**exponent, 0.0)
        nf, nff, tf = (w * f).sum(axis=1), (w * f * f).sum(axis=1), (w * f * t).sum(axis=1)
        spread = np.maximum(nff - nf**2 / safe, 1e-9 * np.maximum(nff, 1e-300))
        rise = np.maximum((tf - nf * t1 / safe) / spread, 0.0)
        base = (t1 - rise * nf) / safe
        # A curve that would start below zero goes through it instead.
        below = base <= 0.0
        rise = np.where(below, tf / np.maximum(nff, 1e-300), rise)
        base = np.where(below, 0.0, base)
        bases.append(base)
        rises.append(rise)
        misfits.append((w * (base[:, None] + rise[:, None] * f - t) ** 2).sum(axis=1))
    misfit = np.stack(misfits, axis=1)
    best = misfit.min(axis=1)
    # Steep is likelier beforehand: what grows with load is a queue. Over a narrow range of loads
    # all exponents fit alike, and their plain average would be too flat beyond it.
    likely = np.array(EXPONENTS) * np.exp(-0.5 * (misfit - best[:, None]))
    likely /= likely.sum(axis=1, keepdims=True)
    return _Fit(
        (likely * np.stack(bases, axis=1)).sum(axis=1), likely * np.stack(rises, axis=1), best
    )


def _misfit_of_stations(weight: Floats, load: Floats, time: Floats, stations: Stations) -> Floats:
    """(J,) the same sum for the stations, each scaled to fit as well as it can."""
    known = weight > 0.0
    x = np.where(known, load / np.maximum(weight, 1e-12), 0.0)
    t = np.where(known, time / np.maximum(weight, 1e-12), 1.0)
    j, bins = x.shape
    spread = Stations(
        np.repeat(stations.service_s, bins),
        np.repeat(stations.servers, bins),
        np.repeat(stations.kappa, bins),
        np.repeat(stations.variability, bins),
        np.repeat(stations.tail_ratio, bins),
    )
    guess = latency.mean_s(spread, x.ravel()).reshape(j, bins)
    w = np.minimum(weight, _BIN_WEIGHT_MAX)
    ratio = guess / t
    scale = (w * ratio).sum(axis=1) / np.maximum((w * ratio * ratio).sum(axis=1), 1e-12)
    misfit: Floats = (w * (scale[:, None] * ratio - 1.0) ** 2).sum(axis=1)
    return misfit


def _spread(loads: Floats) -> Floats:
    """(J,) highest over lowest load of the bins that count; 1 without any."""
    none = np.isnan(loads)
    high = np.where(none, 0.0, loads).max(axis=1)
    low = np.where(none, np.inf, loads).min(axis=1)
    return np.where(high > 0.0, high / np.maximum(low, 1e-9), 1.0)
