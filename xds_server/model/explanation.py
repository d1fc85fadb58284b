"""Why a route has the weights that it has, in terms that add up; ms-equivalent per request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from xds_server.model.decision import HoldReason, Move
from xds_server.model.ids import ProviderName, RouteKey

GAIN_TERMS: Final = (
    "latency",  # without load, at the provider
    "queueing",  # the request's own wait
    "rent",  # what it adds to the waits of others
    "distance",  # network
    "backlog",  # wait for a queue that an overload left behind
    "error",
    "price",
    "egress",
    "geography",
    "slo",
    "switching",  # what the move itself costs: never positive
)
"""Terms of a gain, in the order in which people read them. Positive: the plan is better."""


class Verdict(StrEnum):
    """How a provider's share of a route compares with what it should be."""

    EXCLUDED = "excluded"
    NOT_WORTH = "not worth more"  # at its floor, and belongs there
    SETTLED = "has its share"
    RISING = "rising"  # on its way to more
    FALLING = "falling"


@dataclass(frozen=True, slots=True)
class ProviderTerm:
    """One provider of a route: what a request costs there, and what it lacks for more.

    ``total`` is latency + queueing + distance + backlog + error + price + egress + geography +
    slo. ``marginal`` adds the queueing rent: it is what the solver equalises.

    With the route's optimum (of it alone, while all other loads stay) a provider at its floor
    costs ``short_ms`` more than those that are used: it has to become that much faster, or
    ``short_usd_per_million`` cheaper, before it gets more.
    """

    provider: ProviderName
    share: float
    baseline_share: float
    observed_share: float
    allowed: bool
    excluded_because: str
    latency_ms: float
    queueing_ms: float
    queueing_rent_ms: float
    distance_ms: float
    backlog_ms: float
    error_ms: float
    price_ms: float
    egress_ms: float
    geography_ms: float
    slo_ms: float
    total_ms: float
    marginal_ms: float
    usd_per_million: float  # its price; egress is apart
    verdict: Verdict
    optimum_share: float
    floor_share: float
    short_ms: float  # 0 where the optimum uses it beyond its floor
    short_usd_per_million: float  # NaN: money does not count here
    ticks: int | None  # until its share is where it is going; None: it is not on its way


@dataclass(frozen=True, slots=True)
class Option:
    """A plan that the gate could choose."""

    move: Move
    moved_ratio: float  # of the route's traffic
    gain_ms: float  # of this route, per request, less what the move costs
    mesh_gain_ms_per_s: float  # of all routes together; NaN: of a way back
    chosen: bool
    lost_because: str  # "" where it is chosen


@dataclass(frozen=True, slots=True)
class Risk:
    """A route's response time over draws of what the models may be wrong by."""

    mean_ms: float
    worst_ms: float  # mean of the worst tenth of draws (CVaR10)
    breach_ratio: float  # of draws in which the p95 is above the SLO


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the transient simulation saw for a route that was to move."""

    part: float  # of the move that is made: 1 all of it, 0 none
    hold: Risk  # if nobody moves
    plan: Risk  # if all move as planned
    made: Risk  # with the parts of their moves that they make
    worse_ms: float  # what the worst tenth of draws costs more by the move as planned, to all


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a route has the weights that it has.

    ``gain_terms``, by ``GAIN_TERMS``, add up to ``gain_ms``: what the best plan gains against the
    shares held, per request, also where it was not followed. It is followed where that exceeds
    ``doubt_ms``. Of a way back (``last_good``) they are what the models, overruled, say of it.
    """

    route: RouteKey
    decided_at_s: float
    move: Move
    hold_reason: HoldReason
    demand_rps: float
    predicted_latency_ms: float
    observed_latency_ms: float
    gain_ms: float
    doubt_ms: float
    gain_terms: Mapping[str, float]
    options: tuple[Option, ...]  # the chosen one, then the runner-up, and so on
    next_provider: ProviderName | None  # that one more request should go to
    terms: tuple[ProviderTerm, ...] = ()
    no_candidates: Mapping[ProviderName, str] = field(default_factory=dict)  # and what they lack
    outlook: Outlook | None = None  # None: it was not to move
