"""What has been learned of providers, places and routes, and the curves that it stands for."""

from dataclasses import dataclass

import numpy as np

from xds_server.core import distance, latency, power
from xds_server.core.distance import Distances
from xds_server.core.estimate import ErrorCounts, LogFilter
from xds_server.core.latency import Stations
from xds_server.core.power import PowerFits
from xds_server.core.tables import Floats
from xds_server.engine.types import Problem

UNKNOWN_CV2 = 1.0
"""Squared coefficient of variation of response times that nobody has measured."""
UNKNOWN_SERVICE_S = 0.05
"""Service time of a provider that nobody has measured or declared, s."""
UNKNOWN_VARIANCE = 1.0
SILENT_RPS = 0.02
"""Less than this is none; its logarithm stands for zero."""


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
        return np.where(rps <= SILENT_RPS, 0.0, rps)

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
        variability=variability_of(models.cv2),
    )


def variability_of(cv2: Floats) -> Floats:
    """(J,) mean of the squared variations of arrivals, Poisson's 1, and of service times."""
    return 0.5 * (1.0 + cv2)
