"""Quantiles of latency histograms."""

import numpy as np

from xds_server.core.tables import Floats


def quantile_s(hist: Floats, bounds_s: Floats, q: float | Floats) -> Floats:
    """Quantile of bucketed response times, interpolated log-linearly inside its bucket.

    Parameters
    ----------
    hist : (..., B + 1) counts per bucket, the last above all bounds
    bounds_s : (B,) ascending upper bounds, s
    q : 0..1, one or (...) of them

    Returns
    -------
    (...) s; NaN where nothing was counted. A quantile above the last bound is given as
    that bound.
    """
    # Buckets first, and added one by one: each step is over whole rows of memory.
    cumulative = np.array(np.moveaxis(hist, -1, 0), order="C")
    for b in range(1, len(cumulative)):
        cumulative[b] += cumulative[b - 1]
    total = cumulative[-1]
    below = np.sum(cumulative < q * total, axis=0, dtype=np.uint16)
    bucket = np.minimum(below.astype(np.int64), len(bounds_s) - 1)
    upper = bounds_s[bucket]
    lower = np.where(bucket > 0, bounds_s[np.maximum(bucket - 1, 0)], bounds_s[0] / 2.0)
    upto = np.take_along_axis(cumulative, bucket[None], axis=0)[0]
    inside = np.take_along_axis(hist, bucket[..., None], axis=-1)[..., 0]
    before = upto - inside
    part = np.clip((q * total - before) / np.maximum(inside, 1e-12), 0.0, 1.0)
    return np.where(total > 0.0, lower * (upper / lower) ** part, np.nan)


def squared_variation(hist: Floats, bounds_s: Floats) -> Floats:
    """Squared coefficient of variation of bucketed response times, each at its bucket's middle.

    Parameters
    ----------
    hist : (..., B + 1) counts per bucket, the last above all bounds
    bounds_s : (B,) ascending upper bounds, s

    Returns
    -------
    (...) variance over squared mean; NaN where nothing was counted
    """
    lower = np.concatenate([[bounds_s[0] / 2.0], bounds_s])
    upper = np.concatenate([bounds_s, [bounds_s[-1] * 1.4]])
    middle = np.sqrt(lower * upper)
    total = np.einsum("...b->...", hist)
    safe = np.maximum(total, 1e-12)
    # Not a matrix product, which would wake BLAS's threads for nothing.
    mean = np.einsum("...b,b->...", hist, middle) / safe
    square = np.einsum("...b,b->...", hist, middle**2) / safe
    ratio = square / np.maximum(mean, 1e-12) ** 2 - 1.0
    return np.where(total > 0.0, np.maximum(ratio, 0.0), np.nan)
