"""What chance may have done to a measurement: standard errors from counts alone.

Each is of the value that many more measurements of the same would give. None of them knows of a
source that is wrong, or of a world that changes meanwhile.
"""

import numpy as np

from xds_server.core.histogram import quantile_s
from xds_server.core.tables import Floats


def rate_error(counts_over_time2: Floats, window_s: float) -> Floats:
    """Return the standard error of a rate, 1/s, as if events came independently (Poisson).

    A count n over t seconds has the variance n, its rate n / t^2; rates that are added up add
    their variances. Of no event at all it is known that less than about one came.

    Parameters
    ----------
    counts_over_time2 : (...) sum of n / t^2 over all that is added up, 1/s^2
    window_s : that without any event one would have been seen in, > 0
    """
    return np.sqrt(np.maximum(counts_over_time2, 1.0 / window_s**2))


def ratio_error(part: Floats, whole: Floats) -> Floats:
    """Return the standard error of ``part / whole``, as if each had its own chance (binomial).

    As if two more of each kind had been seen: p = (part + 2) / (whole + 4), error
    sqrt(p (1 - p) / (whole + 4)); so no failure in ten attempts is not certainty (A. Agresti and
    B. A. Coull, "Approximate is better than exact", The American Statistician 52, 1998).

    Parameters
    ----------
    part : (...) >= 0; more than ``whole`` counts as all of it
    whole : (...) >= 0
    """
    p = (np.minimum(part, whole) + 2.0) / (whole + 4.0)
    return np.sqrt(p * (1.0 - p) / (whole + 4.0))


def quantile_error_s(hist: Floats, bounds_s: Floats, q: float) -> Floats:
    """Return the standard error of ``quantile_s(hist, bounds_s, q)``, s.

    Of n samples, the part below the true quantile is q with the error e = sqrt(q (1 - q) / n); half
    of the way from the quantile at q - e to the one at q + e is what that makes in seconds. Where a
    sample is inside of its bucket is not known: width / sqrt(12). The two add as variances.

    Parameters
    ----------
    hist : (..., B + 1) counts per bucket, the last above all bounds
    bounds_s : (B,) ascending upper bounds, s
    q : 0..1

    Returns
    -------
    (...) s; NaN without samples, and where the quantile is above all bounds.
    """
    n = hist.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        e = np.sqrt(q * (1.0 - q) / n)
    rank = np.stack([np.clip(q + sign * np.nan_to_num(e), 0.0, 1.0) for sign in (-1.0, 1.0)])
    low, high = (quantile_s(hist, bounds_s, r) for r in rank)
    bucket = (np.cumsum(hist, axis=-1) < (q * n)[..., None]).sum(axis=-1)
    widths = np.append(np.diff(bounds_s, prepend=0.0), np.nan)
    inside: Floats = np.hypot((high - low) / 2.0, widths[bucket] / np.sqrt(12.0))
    return inside
