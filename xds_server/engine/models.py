"""Provider models brought up to date with what was observed: the first half of ``evaluate``."""

from dataclasses import dataclass, replace

import numpy as np

from xds_server.core import distance, estimate, latency, power
from xds_server.core import stations as station_filter
from xds_server.core.distance import Distances
from xds_server.core.estimate import ErrorCounts, LogFilter
from xds_server.core.latency import Stations
from xds_server.core.power import PowerFits
from xds_server.core.tables import Floats
from xds_server.engine.types import Observation, Problem
from xds_server.model.telemetry import ProviderLoad

UNKNOWN_CV2 = 1.0
"""Squared coefficient of variation of response times that nobody has measured."""
CV2_MAX = 20.0
_CV2_SAMPLES = 2000.0
"""Responses after which a measured variation counts for more than what was believed."""
UNKNOWN_SERVICE_S = 0.05
"""Service time of a provider that nobody has measured or declared, s."""
UNKNOWN_VARIANCE = 1.0
_SILENT_RPS = 0.02
"""Less than this is none; its logarithm stands for zero."""
_CHANCE_SIGMA = 2.5
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
"""Less utilisation than this says nothing of capacity."""


@dataclass(frozen=True, slots=True)
class Models:
    """What was learned; axis 0 is J, except where stated."""

    service: LogFilter  # log seconds
    cv2: Floats  # squared coefficient of variation of one response time
    rps: Floats  # counted last; NaN before
    turned: Floats  # how much the load has changed of late, as a logarithm
    behind_s: Floats  # for how long windows will still hold what waited for a backlog
    capacity: LogFilter  # log requests/s; NaN where nobody said anything of it
    tail_ratio: Floats
    errors: ErrorCounts
    power: PowerFits
    distances: Distances  # (Q,)
    calibration: Floats  # (R,) factor on sigma
    demand: LogFilter  # (R,) log requests/s
    budget_pressure: Floats  # (R,) >= 1, factor on the price of money

    @property
    def demand_rps(self) -> Floats:
        """(R,) requests/s, smoothed; NaN where nothing was measured."""
        rps: Floats = np.exp(self.demand.mean)
        return np.where(rps <= _SILENT_RPS, 0.0, rps)

    @property
    def capacity_rps(self) -> Floats:
        """(J,) NaN where unknown."""
        rps: Floats = np.exp(self.capacity.mean)
        return rps

    @property
    def known(self) -> np.ndarray:
        """(J,) whether the service time is more than a guess."""
        return np.isfinite(self.service.mean)


def unknown_demand(routes: int) -> LogFilter:
    """Nothing was measured of any route."""
    blank, zeros = np.full(routes, np.nan), np.zeros(routes)
    return LogFilter(blank, np.full(routes, UNKNOWN_VARIANCE), blank, zeros, zeros, np.ones(routes))


def initial_models(problem: Problem) -> Models:
    """Know only priors."""
    providers, routes = problem.pairs.providers, problem.pairs.routes
    prior = np.log(problem.service_prior_s)
    zeros = np.zeros(providers)
    return Models(
        service=LogFilter(
            prior, np.full(providers, UNKNOWN_VARIANCE), prior, zeros, zeros, np.ones(providers)
        ),
        cv2=np.full(providers, UNKNOWN_CV2),
        rps=np.full(providers, np.nan),
        turned=zeros,
        behind_s=zeros,
        capacity=LogFilter(
            np.log(problem.capacity_prior_rps),
            np.full(providers, UNKNOWN_VARIANCE),
            np.full(providers, np.nan),
            zeros,
            zeros,
            np.ones(providers),
        ),
        tail_ratio=np.full(providers, 2.0),
        errors=ErrorCounts(zeros, zeros, zeros),
        power=power.no_fits(providers),
        distances=distance.no_distances(len(problem.places), len(problem.links)),
        calibration=np.ones(routes),
        demand=unknown_demand(routes),
        budget_pressure=np.ones(routes),
    )


def stations(problem: Problem, models: Models) -> Stations:
    """Return the latency curves that the models stand for."""
    mean = np.where(models.known, models.service.mean, np.log(UNKNOWN_SERVICE_S))
    return latency.station_of(
        np.exp(mean),
        models.capacity_rps,
        problem.servers,
        models.tail_ratio,
        power.curves(models.power) if models.power.chosen.any() else None,
        variability=_variability(models.cv2),
    )


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
    distances = distance.update(
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
    away = _mean_distance(problem, seen, distances)
    observed = np.maximum(seen.provider_latency_s - away, 1e-4)
    rps, samples = seen.provider_rps, np.nan_to_num(seen.provider_responses) * overlap
    heard = np.isfinite(observed) & (samples > 0.0)
    samples = np.where(heard, samples, 0.0)
    busy = by_provider(problem, load, load.utilisation_ratio)
    # What was answered, not what was asked: beyond saturation only the first is capacity.
    answered = np.minimum(seen.provider_responses / np.maximum(seen.provider_attempts, 1.0), 1.0)
    trust = samples / (samples + _CV2_SAMPLES)
    spread = np.clip(np.nan_to_num(seen.provider_cv2, nan=UNKNOWN_CV2), 0.1, CV2_MAX)
    cv2 = models.cv2 + trust * (spread - models.cv2)
    # A load that just changed is neither what latencies nor what utilisations were measured at.
    before = np.where(np.isfinite(models.rps), models.rps, rps)
    turned = np.abs(np.log(np.maximum(rps, 1.0) / np.maximum(before, 1.0)))
    turned = np.maximum(turned, models.turned * _TURN_KEPT)
    ended = (seen.provider_responses + seen.provider_errors) / np.maximum(
        seen.provider_attempts, 1.0
    )
    capacity = _capacity(
        models.capacity,
        rps * answered,
        rps * np.minimum(ended, 1.0),
        busy,
        samples,
        cv2,
        turned**2,
        elapsed_s,
    )
    capacity_rps = np.exp(capacity.mean)
    queue_s = backlog(stations(problem, models), capacity_rps, rps, seen.provider_active)
    behind_s = np.where(queue_s > 0.0, window_s, models.behind_s - elapsed_s)
    behind = behind_s > 0.0
    # Timeouts of a queue that still gets answers are the queue's, and cost as its wait does.
    late = behind & (answered > _LATE_ANSWERED)
    # While a backlog drains, responses are about the past.
    samples = np.where(behind, 0.0, samples)
    variability = _variability(cv2)
    start = _first_service(models, observed, rps, capacity_rps, problem.servers, samples > 0.0)
    service = station_filter.update(
        replace(models.service, mean=start),
        observed,
        rps,
        capacity_rps,
        problem.servers,
        variability,
        samples,
        cv2,
        _TURN_WEIGHT * turned**2,
        elapsed_s,
    )
    believed = np.exp(np.where(np.isfinite(service.mean), service.mean, np.log(UNKNOWN_SERVICE_S)))
    curves = latency.station_of(
        believed, capacity_rps, problem.servers, models.tail_ratio, variability=variability
    )
    wait = latency.wait_s(curves, rps)
    p95 = np.nan_to_num(seen.provider_p95_s - away, nan=0.0)
    tail = (p95 - latency.WAIT_P95_RATIO * wait) / believed
    tail_weight = np.where(np.isfinite(seen.provider_p95_s), samples / (samples + 50.0), 0.0)
    return replace(
        models,
        service=service,
        cv2=cv2,
        rps=rps,
        turned=turned,
        behind_s=behind_s,
        capacity=capacity,
        tail_ratio=models.tail_ratio + tail_weight * (np.clip(tail, 1.0, 10.0) - models.tail_ratio),
        errors=estimate.count_errors(
            models.errors,
            seen.provider_errors * overlap * np.where(late, _LATE_WEIGHT, 1.0),
            np.maximum(seen.provider_attempts, seen.provider_errors) * overlap,
            elapsed_s,
        ),
        power=power.update(
            models.power,
            _steady_rps(rps, planned_rps.mean(axis=0), window_s),
            observed,
            samples,
            (cv2 + _LOAD_NOISE * _elasticity(curves, models.power, rps) ** 2)
            / np.maximum(samples, 1.0)
            + _unsteadiness(planned_rps),
            curves,
            np.isfinite(capacity_rps),
            ~np.isfinite(busy),
        ),
        distances=distances,
    )


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
    log_rps = np.log(np.maximum(rps, 0.5 * _SILENT_RPS))
    count = np.where(measured, np.maximum(rps * window_s * overlap, 1.0), 0.0)
    start = np.where(measured & np.isnan(before.mean), log_rps, before.mean)
    filtered, _ = estimate.update(
        replace(before, mean=start), log_rps, count, np.ones_like(rps), elapsed_s
    )
    return filtered


def _first_service(
    models: Models,
    observed_s: Floats,
    rps: Floats,
    capacity_rps: Floats,
    servers: Floats,
    heard: np.ndarray,
) -> Floats:
    """(J,) log service time to start from: what is known, else what explains the first response."""
    new = heard & ~models.known
    if not new.any():
        return models.service.mean
    first = latency.infer_service_s(
        np.where(new, observed_s, 1.0), rps, capacity_rps, servers, _variability(models.cv2)
    )
    return np.where(new, np.log(np.maximum(first, 1e-6)), models.service.mean)


def _elasticity(curves: Stations, fits: PowerFits, rps: Floats) -> Floats:
    """(J,) by how many per cent the latency grows with one per cent of load."""
    curves = replace(curves, power=power.curves(fits))
    mean, marginal, _ = latency.mean_and_marginal_s(curves, rps)
    ratio: Floats = (marginal - mean) / mean
    return np.clip(ratio, _ELASTICITY_MIN, _ELASTICITY_MAX)


def _capacity(
    before: LogFilter,
    goodput_rps: Floats,
    ended_rps: Floats,
    busy: Floats,
    samples: Floats,
    cv2: Floats,
    doubt: Floats,
    elapsed_s: float,
) -> LogFilter:
    """Filter the rate at which a provider would be fully busy: its rate over its utilisation."""
    usable = np.isfinite(busy) & (busy > _BUSY_MIN) & (goodput_rps > 1.0)
    part = np.maximum(busy, _BUSY_MIN)
    least = np.log(np.where(usable, goodput_rps / part, 1.0))
    # A request that failed may have been served in vain, or not at all: what is believed
    # stands as long as it lies between the two.
    most = np.log(np.where(usable, np.maximum(ended_rps, goodput_rps) / part, 1.0))
    known = np.where(np.isfinite(before.mean), before.mean, least)
    measured = np.clip(known, least, most)
    start = np.where(np.isnan(before.mean) & usable, measured, before.mean)
    # Work that arrived is a sum of as many service times as there were requests.
    filtered, _ = estimate.update(
        replace(before, mean=start),
        measured,
        np.where(usable, samples, 0.0),
        1.0 + cv2,
        elapsed_s,
        CAPACITY_FLOOR + doubt,
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


def _variability(cv2: Floats) -> Floats:
    """(J,) mean of the squared variations of arrivals, Poisson's 1, and of service times."""
    return 0.5 * (1.0 + cv2)


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
