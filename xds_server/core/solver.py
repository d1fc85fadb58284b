"""The system optimum of all routes at once, through one price per provider.

    minimise  sum_r d_r <C_r, w_r> + sum_j x_j T_j(x_j) + sum_r tau_r d_r KL(w_r || w_r,now)
    over      w_r on the simplex of the route's allowed providers,  x = sum_r d_r w_r

With a price p_j on every provider's load the problem falls apart: each route answers with
w = softmax(log w_now - (C + p) / tau), each provider with the load x at which its marginal
latency m(x) = T + x T' is the price. What is left is concave and has J unknowns instead of P
shares: the dual (S. Boyd and L. Vandenberghe, Convex Optimization, 5.5). It is solved in x,
with p = m(x), so m is never inverted: Newton's direction by conjugate gradients that only
multiply by the Hessian, a line search on the dual's value, and the duality gap as the proof.
"""

from dataclasses import dataclass

import numpy as np

from xds_server.core import latency
from xds_server.core.latency import Stations
from xds_server.core.tables import Bools, Floats, Pairs

MAX_ITERATIONS = 50
GAP_RATIO = 2e-3
"""Relative duality gap at which iteration stops: well inside what models are worth."""
SHARE_FLOOR = 0.02
"""A small share could hardly grow by a multiplicative step; it starts from here."""
_CG_ITERATIONS = 6
_CG_TOLERANCE = 0.05
_SHORTEST_STEP = 2.0**-14
_LEAST_SLOPE = 1e-9


@dataclass(frozen=True, slots=True)
class Solution:
    """Shares that minimise the step's objective, and the proof of how nearly."""

    shares: Floats  # (P,)
    price_ms: Floats  # (J,) marginal latency
    gap_ratio: float  # duality gap over the objective's magnitude, >= 0
    iterations: int


@dataclass(frozen=True, slots=True)
class _Point:
    """The dual at loads ``rps``: prices, the routes' answer, and what is missing."""

    rps: Floats  # (J,) x
    price_ms: Floats  # (J,) m(x)
    slope_ms: Floats  # (J,) m'(x) > 0
    shares: Floats  # (P,) the routes' answer to the prices
    answer_rps: Floats  # (J,) the load that answer makes
    dual: float
    gap: float  # primal at the answer - dual, >= 0
    scale: float  # magnitude of the objective


@dataclass(frozen=True, slots=True)
class _Step:
    """The step's data; all (P,) except ``stations``."""

    pairs: Pairs
    allowed: Bools
    anchor: Floats  # log of the shares now
    demand: Floats
    fixed_ms: Floats
    tau_ms: Floats
    stations: Stations

    def at(self, rps: Floats) -> _Point:
        """Evaluate the dual; one pass over the pairs."""
        pairs = self.pairs
        marginal, slope = latency.marginal_s(self.stations, rps)
        price, slope = 1e3 * marginal, np.maximum(1e3 * slope, _LEAST_SLOPE)
        logits = self.anchor - (self.fixed_ms + price[pairs.provider]) / self.tau_ms
        shares, log_total = softmax_by_route(pairs, logits, self.allowed)
        flow = self.demand * shares
        answer = pairs.sum_by_provider(flow)
        starts = pairs.starts
        # Sums, not dot products: a dot product wakes BLAS's threads for nothing.
        routes = float(np.sum((self.demand * self.tau_ms)[starts] * log_total))
        here = 1e3 * rps * latency.mean_s(self.stations, rps) - price * rps
        there = 1e3 * answer * latency.mean_s(self.stations, answer) - price * answer
        gap = float(np.sum(there - here))
        scale = abs(float(np.sum(there + price * answer))) + abs(
            float(np.sum(flow * self.fixed_ms))
        )
        return _Point(
            rps, price, slope, shares, answer, float(np.sum(here)) - routes, max(gap, 0.0), scale
        )

    def direction(self, point: _Point) -> Floats:
        """Newton's direction in prices: (H + 1 / m') dp = answer - x, by preconditioned CG.

        H is minus the derivative of the answer by the prices,
        sum_r d_r / tau_r (diag(w) - w w^T): positive semidefinite, never formed.
        """
        pairs, shares = self.pairs, point.shares
        stiffness = 1.0 / point.slope_ms
        flow = self.demand * shares / self.tau_ms
        preconditioner = pairs.sum_by_provider(flow * (1.0 - shares)) + stiffness

        def times(v: Floats) -> Floats:
            spread = v[pairs.provider]
            mean = pairs.sum_by_route(shares * spread)[pairs.route]
            return pairs.sum_by_provider(flow * (spread - mean)) + stiffness * v

        residual = point.answer_rps - point.rps
        found = np.zeros_like(residual)
        z = residual / preconditioner
        along, energy = z, float(residual @ z)
        enough = _CG_TOLERANCE**2 * energy
        for _ in range(_CG_ITERATIONS):
            if energy <= enough or energy <= 0.0:
                break
            bent = times(along)
            length = energy / float(along @ bent)
            found, residual = found + length * along, residual - length * bent
            z = residual / preconditioner
            energy, before = float(residual @ z), energy
            along = z + (energy / before) * along
        return found


def softmax_by_route(pairs: Pairs, logits: Floats, allowed: Bools) -> tuple[Floats, Floats]:
    """Shares in proportion to exp(logits) over each route's allowed pairs.

    Returns
    -------
    (P,) shares that sum to 1 over a route, all 0 where no pair is allowed; and (R,) the
    logarithm of the sum, 0 where none is.
    """
    masked = np.where(allowed, logits, -np.inf)
    top = pairs.max_by_route(masked)
    served = np.isfinite(top)
    top = np.where(served, top, 0.0)
    raised = np.exp(masked - top[pairs.route])
    total = np.where(served, pairs.sum_by_route(raised), 1.0)
    return raised / total[pairs.route], top + np.log(total)


def solve(
    pairs: Pairs,
    allowed: Bools,
    shares_now: Floats,
    demand_rps: Floats,
    fixed_ms: Floats,
    tau_ms: Floats,
    stations: Stations,
    *,
    gap_ratio: float = GAP_RATIO,
) -> Solution:
    """Find the next shares.

    Parameters
    ----------
    allowed : (P,) which pairs may carry traffic
    shares_now : (P,) commanded shares
    demand_rps : (R,) >= 0
    fixed_ms : (P,) cost of a request apart from the provider's latency
    tau_ms : (R,) > 0, reluctance to move
    gap_ratio : relative duality gap at which iteration stops

    Returns
    -------
    Solution; shares are finite for any finite input.
    """
    step = _Step(
        pairs,
        allowed,
        np.log(np.maximum(shares_now, SHARE_FLOOR)),
        demand_rps[pairs.route],
        fixed_ms,
        np.maximum(tau_ms, 1e-6)[pairs.route],
        stations,
    )
    point = step.at(pairs.sum_by_provider(step.demand * shares_now))
    iterations, length = 1, 1.0
    while iterations < MAX_ITERATIONS and point.gap > gap_ratio * point.scale:
        better, length = _ascend(step, point, min(2.0 * length, 1.0))
        iterations += 1
        if better is None:  # no step in this direction gains: numerically at the top
            break
        point = better
    return Solution(point.shares, point.price_ms, point.gap / max(point.scale, 1e-12), iterations)


def _ascend(step: _Step, point: _Point, length: float) -> tuple[_Point | None, float]:
    """Go along Newton's direction as far as the dual rises, halving from ``length``.

    Loads are moved first to where the new price would put them if the marginal were
    straight; a load below 0 is 0, whose price is the bare service time.
    """
    prices = step.direction(point)
    loads = prices / point.slope_ms
    rise = float((point.answer_rps - point.rps) @ prices)
    while length >= _SHORTEST_STEP:
        tried = step.at(np.maximum(point.rps + length * loads, 0.0))
        if tried.dual >= point.dual + 1e-4 * length * rise:
            return tried, length
        length *= 0.5
    return None, length
