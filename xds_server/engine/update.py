"""Models brought up to date with what one window says: the first half of ``evaluate``."""

from dataclasses import dataclass, replace

import numpy as np

from xds_server.core import distance, estimate, latency, power
from xds_server.core import stations as station_filter
from xds_server.core.blocks import kin_of
from xds_server.core.distance import Distances
from xds_server.core.estimate import LogFilter
from xds_server.core.latency import Stations
from xds_server.core.power import PowerFits
from xds_server.core.tables import Floats
from xds_server.engine.models import (
    SILENT_RPS,
    UNKNOWN_CV2,
    UNKNOWN_SERVICE_S,
    Models,
    stations,
    variability_of,
)
from xds_server.engine.types import Observation, Problem
from xds_server.model.telemetry import ProviderLoad

CV2_MAX = 20.0
_CV2_SAMPLES = 2000.0
"""Responses after which a measured variation counts for more than what was believed."""
_CHANCE_SIGMA = 3.0
CAPACITY_FLOOR = 0.07**2
"""Relative variance of a rate over a utilisation that no number of samples removes."""
_LATE_ANSWERED, _LATE_WEIGHT = 0.3, 0.1
_TURN_KEPT = 0.5
_TURN_WEIGHT = 0.25
_BACKLOG_RATIO, _BACKLOG_SERVICE = 3.0, 0.5
"""In usual waits and in service times."""
_LOAD_NOISE = 0.2
"""Variance of a load that was partly smoothed, over that of a single tick's count."""
_ELASTICITY_MIN, _ELASTICITY_MAX = 1.0, 4.0
_BUSY_MIN = 0.05
"""Less utilisation than this says only that the capacity is not lower than it would make it."""
_BUSY_ERROR = 0.01
"""What rounding or work of its own may hide of it."""
_BUSY_RPS = 1.0
"""And fewer requests/s say nothing."""


def update_models(
    problem: Problem,
    models: Models,
    seen: Observation,
    load: ProviderLoad,
    planned_rps: Floats,
    window_s: float,
    *,
    overlap: float,
    elapsed_s: float,
) -> Models:
    """Explain observed response times by distances and service times; take in utilisation.

    Parameters
    ----------
    planned_rps : (K, J) load that each plan in force during the window should have given
    overlap : part of the window that is new, 0..1: each sample may count once
    elapsed_s : since the last update
    """
    distances = _distances(problem, models, seen, overlap, elapsed_s)
    heard = _hear(problem, models, seen, load, distances, overlap, elapsed_s)
    capacity = _capacity(models.capacity, heard, elapsed_s)
    capacity_rps = np.exp(capacity.mean)
    queue_s = backlog(stations(problem, models), capacity_rps, heard.rps, seen.provider_active)
    behind_s = np.where(queue_s > 0.0, window_s, models.behind_s - elapsed_s)
    # While a backlog drains, responses are about the past.
    samples = np.where(behind_s > 0.0, 0.0, heard.samples)
    service = _service(problem, models, heard, capacity_rps, samples, elapsed_s)
    believed = np.exp(np.where(np.isfinite(service.mean), service.mean, np.log(UNKNOWN_SERVICE_S)))
    curves = latency.station_of(
        believed,
        capacity_rps,
        problem.servers,
        models.tail_ratio,
        variability=variability_of(heard.cv2),
    )
    # Timeouts of a queue that still gets answers are the queue's, and cost as its wait does.
    late = (behind_s > 0.0) & (heard.answered_ratio > _LATE_ANSWERED)
    return replace(
        models,
        service=service,
        cv2=heard.cv2,
        rps=heard.rps,
        turned=heard.turned,
        behind_s=behind_s,
        capacity=capacity,
        tail_ratio=_tails(models.tail_ratio, seen, heard, curves, samples),
        errors=estimate.count_errors(
            models.errors,
            seen.provider_errors * overlap * np.where(late, _LATE_WEIGHT, 1.0),
            np.maximum(seen.provider_attempts, seen.provider_errors) * overlap,
            elapsed_s,
        ),
        power=power.update(
            models.power,
            _steady_rps(heard.rps, planned_rps.mean(axis=0), window_s),
            heard.observed_s,
            samples,
            (heard.cv2 + _LOAD_NOISE * _elasticity(curves, models.power, heard.rps) ** 2)
            / np.maximum(samples, 1.0)
            + _unsteadiness(planned_rps),
            curves,
            np.isfinite(capacity_rps),
            ~np.isfinite(heard.busy_ratio),
            kin_of(problem.pairs).block,
        ),
        distances=distances,
    )


@dataclass(frozen=True, slots=True)
class _Heard:
    """What one window says of each provider; axis 0 is J."""

    rps: Floats  # attempts/s
    answered_ratio: Floats  # of the attempts, 0..1
    samples: Floats  # new responses
    observed_s: Floats  # mean response time without the distance; NaN: none
    away_s: Floats  # the distance in it
    busy_ratio: Floats  # as the provider says; NaN: nothing
    busy: "_Busy"  # what it did while it was so busy
    cv2: Floats  # squared variation of response times, brought up to date
    turned: Floats  # how much the load has changed of late, as a logarithm


@dataclass(frozen=True, slots=True)
class _Busy:
    """The work behind a utilisation; axis 0 is J."""

    succeeded_rps: Floats
    ended_rps: Floats  # succeeded or failed
    samples: Floats  # requests that this tick adds to what is known
    count: Floats  # requests that the rates are of
    doubt: Floats  # variance of the logarithm of the rates as those of that time


def _hear(
    problem: Problem,
    models: Models,
    seen: Observation,
    load: ProviderLoad,
    distances: Distances,
    overlap: float,
    elapsed_s: float,
) -> _Heard:
    away = _mean_distance(problem, seen, distances)
    observed = np.maximum(seen.provider_latency_s - away, 1e-4)
    rps, samples = seen.provider_rps, np.nan_to_num(seen.provider_responses) * overlap
    samples = np.where(np.isfinite(observed), samples, 0.0)
    attempts = np.maximum(seen.provider_attempts, 1.0)
    ended = (seen.provider_responses + seen.provider_errors) / attempts
    trust = samples / (samples + _CV2_SAMPLES)
    spread = np.clip(np.nan_to_num(seen.provider_cv2, nan=UNKNOWN_CV2), 0.1, CV2_MAX)
    # A load that just changed is neither what latencies nor what utilisations were measured at.
    before = np.where(np.isfinite(models.rps), models.rps, rps)
    turned = np.abs(np.log(np.maximum(rps, 1.0) / np.maximum(before, 1.0)))
    turned = np.maximum(turned, models.turned * _TURN_KEPT)
    answered = np.minimum(seen.provider_responses / attempts, 1.0)
    window = _Busy(
        rps * answered,
        rps * np.minimum(ended, 1.0),
        samples,
        np.nan_to_num(seen.provider_responses),
        turned**2,
    )
    return _Heard(
        rps=rps,
        answered_ratio=answered,
        samples=samples,
        observed_s=observed,
        away_s=away,
        busy_ratio=by_provider(problem, load, load.utilisation_ratio),
        busy=_behind_utilisation(problem, load, window, elapsed_s),
        cv2=models.cv2 + trust * (spread - models.cv2),
        turned=turned,
    )


def _behind_utilisation(
    problem: Problem, load: ProviderLoad, window: _Busy, elapsed_s: float
) -> _Busy:
    """Take rates that were counted over the utilisation's own time, else those of the window.

    A load report is seconds old. Divided into the rate of now, which the engine may have changed
    since, its utilisation would make a capacity that was never there.
    """
    if load.succeeded_rps is None or load.failed_rps is None or load.ended_count is None:
        return window
    succeeded = by_provider(problem, load, load.succeeded_rps)
    ended = succeeded + by_provider(problem, load, load.failed_rps)
    own = np.isfinite(ended)
    return _Busy(
        np.where(own, succeeded, window.succeeded_rps),
        np.where(own, ended, window.ended_rps),
        # A report stays for its interval: each tick adds but its part.
        np.where(own, succeeded * elapsed_s, window.samples),
        np.where(own, by_provider(problem, load, load.ended_count), window.count),
        np.where(own, 0.0, window.doubt),
    )


def _distances(
    problem: Problem, models: Models, seen: Observation, overlap: float, elapsed_s: float
) -> Distances:
    return distance.update(
        models.distances,
        problem.place_provider,
        problem.place_link,
        problem.place_home,
        problem.pairs.providers,
        seen.place_latency_s,
        seen.place_responses * overlap,
        models.cv2[problem.place_provider],
        elapsed_s,
    )


def _service(
    problem: Problem,
    models: Models,
    heard: _Heard,
    capacity_rps: Floats,
    samples: Floats,
    elapsed_s: float,
) -> LogFilter:
    variability = variability_of(heard.cv2)
    start, new = models.service.mean, (samples > 0.0) & ~models.known
    if new.any():  # it starts from what explains the first responses
        first = latency.infer_service_s(
            np.where(new, heard.observed_s, 1.0),
            heard.rps,
            capacity_rps,
            problem.servers,
            variability_of(models.cv2),
        )
        start = np.where(new, np.log(np.maximum(first, 1e-6)), start)
    return station_filter.update(
        replace(models.service, mean=start),
        heard.observed_s,
        heard.rps,
        capacity_rps,
        problem.servers,
        variability,
        samples,
        heard.cv2,
        _TURN_WEIGHT * heard.turned**2,
        elapsed_s,
    )


def _tails(
    before: Floats, seen: Observation, heard: _Heard, curves: Stations, samples: Floats
) -> Floats:
    """(J,) p95 of the service time over its mean: the measured p95 without the wait's."""
    wait = latency.wait_s(curves, heard.rps)
    p95 = np.nan_to_num(seen.provider_p95_s - heard.away_s, nan=0.0)
    tail = (p95 - latency.WAIT_P95_RATIO * wait) / curves.service_s
    weight = np.where(np.isfinite(seen.provider_p95_s), samples / (samples + 50.0), 0.0)
    return before + weight * (np.clip(tail, 1.0, 10.0) - before)


def backlog(curves: Stations, capacity_rps: Floats, rps: Floats, active: Floats) -> Floats:
    """(J,) wait for a queue that an overload left behind, beyond what the present load explains, s.

    Requests in flight beyond those in service are queued, and leave at the rate of the
    capacity. 0 where the capacity is not known.
    """
    queued = np.maximum(active - curves.servers, 0.0)
    known = np.isfinite(capacity_rps)
    wait = np.where(known, queued / np.where(known, np.maximum(capacity_rps, 1e-9), 1.0), 0.0)
    usual = latency.wait_s(curves, rps)
    # Queues come and go by chance; only one that chance does not make is a backlog.
    left_behind = wait > _BACKLOG_RATIO * usual + _BACKLOG_SERVICE * curves.service_s
    return np.where(left_behind, wait - usual, 0.0)


def update_demand(
    before: LogFilter,
    rps: Floats,
    window_s: float,
    overlap: float,
    measured: np.ndarray,
    elapsed_s: float,
) -> LogFilter:
    """Filter what routes ask for: by the counts' own error, and at once where it jumps.

    Parameters
    ----------
    rps : (R,) requests/s counted over ``window_s``
    measured : (R,) where the count is fresh; elsewhere demand stays as it was
    """
    log_rps = np.log(np.maximum(rps, 0.5 * SILENT_RPS))
    count = np.where(measured, np.maximum(rps * window_s * overlap, 1.0), 0.0)
    start = np.where(measured & np.isnan(before.mean), log_rps, before.mean)
    filtered, _ = estimate.update(
        replace(before, mean=start), log_rps, count, np.ones_like(rps), elapsed_s
    )
    return filtered


def _elasticity(curves: Stations, fits: PowerFits, rps: Floats) -> Floats:
    """(J,) by how many per cent the latency grows with one per cent of load."""
    curves = replace(curves, power=power.curves(fits))
    mean, marginal, _ = latency.mean_and_marginal_s(curves, rps)
    ratio: Floats = (marginal - mean) / mean
    return np.clip(ratio, _ELASTICITY_MIN, _ELASTICITY_MAX)


def _capacity(before: LogFilter, heard: _Heard, elapsed_s: float) -> LogFilter:
    """Filter the rate at which a provider would be fully busy: its rate over its utilisation.

    What was answered counts, not what was asked: beyond saturation only the first is capacity.
    """
    busy, work = heard.busy_ratio, heard.busy
    usable = np.isfinite(busy) & (busy > 0.0) & (work.succeeded_rps > _BUSY_RPS)
    idle = busy < _BUSY_MIN
    part = np.where(idle, busy + _BUSY_ERROR, busy)
    least = np.log(np.where(usable, work.succeeded_rps / part, 1.0))
    # A request that failed may have been served in vain, or not at all: what is believed
    # stands as long as it lies between the two.
    most = np.log(np.where(usable, np.maximum(work.ended_rps, work.succeeded_rps) / part, 1.0))
    known = np.where(np.isfinite(before.mean), before.mean, least)
    # Less by what chance may have added, or else every lucky count would raise it a little more.
    least = np.where(idle, least - np.sqrt((1.0 + heard.cv2) / np.maximum(work.count, 1.0)), least)
    measured = np.clip(known, least, np.where(idle, np.inf, most))
    usable &= ~idle | (measured > known)
    start = np.where(np.isnan(before.mean) & usable, measured, before.mean)
    # Work that arrived is a sum of as many service times as there were requests.
    filtered, _ = estimate.update(
        replace(before, mean=start),
        measured,
        np.where(usable, work.samples, 0.0),
        1.0 + heard.cv2,
        elapsed_s,
        CAPACITY_FLOOR + work.doubt,
    )
    return filtered


def _steady_rps(rps: Floats, planned_rps: Floats, window_s: float) -> Floats:
    """(J,) the planned load where the counted one differs by no more than chance does.

    Counts scatter around the rate that queues answer to; as a regressor that scatter would
    flatten every curve (regression dilution). Where they differ by more, the count is right:
    weights were not in force, or others call the provider as well.
    """
    chance = _CHANCE_SIGMA * np.sqrt(np.maximum(rps, 1.0) / max(window_s, 1e-9))
    usable = np.isfinite(planned_rps) & (np.abs(rps - planned_rps) <= chance)
    return np.where(usable, planned_rps, rps)


def _unsteadiness(planned_rps: Floats) -> Floats:
    """(J,) relative variance of a mean that was taken over two loads as if over one.

    Curves are convex: what was measured while the load moved lies above them.
    """
    logs = np.log(np.maximum(np.nan_to_num(planned_rps, nan=1.0), 1e-6))
    spread: Floats = logs.max(axis=0) - logs.min(axis=0)
    return 0.25 * spread**2


def _mean_distance(problem: Problem, seen: Observation, distances: Distances) -> Floats:
    """(J,) network time in the provider's mean response, over those who called it."""
    j = problem.pairs.providers
    count = np.bincount(problem.place_provider, seen.place_responses, j)
    total = np.bincount(problem.place_provider, seen.place_responses * distances.rtt_s, j)
    mean: Floats = total / np.maximum(count, 1.0)
    return mean


def by_provider(problem: Problem, load: ProviderLoad, values: Floats) -> Floats:
    """(J,) a column of the load reports in the problem's order; NaN where absent."""
    if load.providers == problem.providers:
        return values
    index = {name: i for i, name in enumerate(load.providers)}
    rows = [index.get(name, -1) for name in problem.providers]
    padded = np.append(values, np.nan)
    taken: Floats = padded[np.array(rows, dtype=np.int64)]
    return taken
