"""What the engine considered, chose, expected and got; axis 0 (R) is the route."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from xds_server.model.ids import ProviderName, RouteKey
from xds_server.model.telemetry import Floats, Ints

Bools = NDArray[np.bool_]


class Move(StrEnum):
    """The kinds of candidate."""

    HOLD = "hold"
    REWEIGHT = "reweight"
    LAST_GOOD = "last_good"
    REQUIRED = "required"  # whatever it gains: floors are fed, and who is masked is left


class HoldReason(StrEnum):
    """Why a route keeps the weights that it has, but for what is required."""

    NONE = ""
    NO_TELEMETRY = "no telemetry"
    NO_DEMAND = "no demand"
    ONE_PROVIDER = "one provider"
    NO_PROVIDER = "no provider allowed"
    GAIN_BELOW_COST = "gain below switching cost"
    DEADBAND = "change below deadband"
    OBSERVING = "mode observe measures only"
    FRAGILE = "would not survive the loss of its largest provider"
    FROZEN = "what gained was reverted, and is frozen"
    RISKY = "simulated: riskier than to hold"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What simulation says a candidate would do, per route and in total."""

    cost_ms: Floats  # (R,) objective per request, milliseconds-equivalent
    latency_s: Floats  # (R,) mean response time
    latency_p95_s: Floats  # (R,)
    usd_per_million: Floats  # (R,) requests, price and egress
    sigma_s: Floats  # (R,) standard deviation of ``latency_s``
    total: float  # demand-weighted objective, ms-equivalent per second


@dataclass(frozen=True, slots=True)
class Candidate:
    """One proposed set of shares for every (route, provider) pair."""

    move: Move
    shares: Floats  # (P,) sum to 1 over each route


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A provider that delays its callers, by its congestion rent x (p - T)."""

    provider: ProviderName
    utilisation_ratio: float
    rent_ms_per_s: float
    delays: tuple[RouteKey, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen shares, per route and pair, with the reason for every hold."""

    now_s: float
    move: Ints  # (R,) index into ``MOVES``
    reason: Ints  # (R,) index into ``HOLD_REASONS``
    shares: Floats  # (P,)
    wanted: Floats  # (P,) where to go on from: the plan, also where it is not worth a push yet
    chosen: Forecast  # of ``shares``
    hold: Forecast
    gain_ms: Floats  # (R,) of the best plan, less what the move itself costs
    doubt_ms: Floats  # (R,) what that has to exceed
    gap_ratio: float  # the solver's duality gap, relative
    iterations: int
    fragile: Bools  # (R,) its SLO would not survive the loss of its largest provider

    @property
    def hold_reason(self) -> tuple[HoldReason, ...]:
        """(R,) the reasons by name."""
        return tuple([HOLD_REASONS[code] for code in self.reason.tolist()])


MOVES: tuple[Move, ...] = tuple(Move)
HOLD_REASONS: tuple[HoldReason, ...] = tuple(HoldReason)


@dataclass(frozen=True, slots=True)
class Reverted:
    """A route that was put back, since its move did harm."""

    route: RouteKey
    row: int  # of the route
    at_s: float
    moved_at_s: float  # last move before
    before_s: float  # mean response time before the move
    predicted_s: float  # with it
    observed_s: float
    z: float  # standard deviations that it was slower than predicted
    p_value: float  # of being so much slower than before by chance
    frozen: tuple[ProviderName, ...]  # who had gained, and may not for ``frozen_s``
    frozen_s: float

    @property
    def because(self) -> str:
        """Say it in a line."""
        before, predicted, observed = (
            f"{1e3 * s:.1f}" for s in (self.before_s, self.predicted_s, self.observed_s)
        )
        return (
            f"reverted: {observed} ms where {predicted} were predicted and {before} were before; "
            f"frozen for {self.frozen_s:g} s: {', '.join(self.frozen)}"
        )


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Forecasts beside what happened, one tick or more later; axis 0 (K) is the route."""

    route: Ints  # (K,) row of the route
    predicted_s: Floats  # (K,)
    sigma_s: Floats  # (K,)
    observed_s: Floats  # (K,)

    @property
    def z(self) -> Floats:
        """(K,) how many standard deviations the forecast was off; positive is slower."""
        z: Floats = (self.observed_s - self.predicted_s) / self.sigma_s
        return z


NO_OUTCOMES = Outcomes(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0), np.empty(0))
"""Nothing could be compared."""
