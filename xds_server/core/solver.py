"""The system optimum of all routes at once, through one price per provider.

    minimise  sum_r d_r <C_r, w_r> + sum_j x_j T_j(x_j) + sum_r tau_r d_r KL(w_r || w_r,now)
    over      w_r on the simplex of the route's allowed providers,  x = sum_r d_r w_r

At the optimum the price of a provider is its marginal latency p = T + x T', and every
route's shares follow from the prices alone: w = softmax(log w_now - (C + p) / tau). So the
unknowns are J prices instead of P shares. They are found by a diagonally preconditioned
fixed point with Anderson acceleration (D. G. Anderson, J. ACM 12(4), 1965).
"""

from dataclasses import dataclass

import numpy as np

from xds_server.core import latency
from xds_server.core.latency import Stations
from xds_server.core.tables import Bools, Floats, Pairs

MAX_ITERATIONS = 30
TOLERANCE_RATIO = 1e-4
"""Largest relative error of any used price at which iteration stops."""
_DEPTH = 3
SHARE_FLOOR = 1e-4
"""A share of 0 could never grow again by a multiplicative step; it starts from here."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Shares that minimise the step's objective, and the proof of how nearly."""

    shares: Floats  # (P,)
    price_ms: Floats  # (J,) marginal latency
    gap_ratio: float  # Frank-Wolfe gap over the objective, >= 0
    iterations: int


def softmax_by_route(pairs: Pairs, logits: Floats, allowed: Bools) -> Floats:
    """(P,) shares that sum to 1 over each route's allowed pairs; all 0 where none is."""
    masked = np.where(allowed, logits, -np.inf)
    top = pairs.max_by_route(masked)
    finite = np.where(np.isfinite(top), top, 0.0)
    raised = np.exp(masked - finite[pairs.route])
    total = pairs.sum_by_route(raised)
    shares: Floats = raised / np.maximum(total, 1e-300)[pairs.route]
    return shares


def solve(
    pairs: Pairs,
    allowed: Bools,
    shares_now: Floats,
    demand_rps: Floats,
    fixed_ms: Floats,
    tau_ms: Floats,
    stations: Stations,
) -> Solution:
    """Find the next shares.

    Parameters
    ----------
    allowed : (P,) which pairs may carry traffic
    shares_now : (P,) commanded shares
    demand_rps : (R,) >= 0
    fixed_ms : (P,) cost of a request apart from the provider's latency
    tau_ms : (R,) > 0, reluctance to move

    Returns
    -------
    Solution; shares are finite for any finite input.
    """
    anchor = np.log(np.maximum(shares_now, SHARE_FLOOR))
    tau = np.maximum(tau_ms, 1e-6)[pairs.route]
    demand = demand_rps[pairs.route]

    def respond(price: Floats) -> tuple[Floats, Floats]:
        """Shares under prices, and the step to better prices."""
        shares = softmax_by_route(pairs, anchor - (fixed_ms + price[pairs.provider]) / tau, allowed)
        flow = demand * shares
        rps = pairs.sum_by_provider(flow)
        marginal, slope = latency.marginal_s(stations, rps)
        sensitivity = pairs.sum_by_provider(flow * (1.0 - shares) / tau)
        residual = 1e3 * marginal - price
        return shares, residual / (1.0 + sensitivity * 1e3 * slope)

    price = 1e3 * latency.marginal_s(stations, pairs.sum_by_provider(demand * shares_now))[0]
    shares, step = respond(price)
    steps: list[Floats] = []
    prices: list[Floats] = []
    iterations = 1
    while iterations < MAX_ITERATIONS:
        if np.max(np.abs(step) / np.maximum(price, 1e-6), initial=0.0) <= TOLERANCE_RATIO:
            break
        prices, steps = [*prices[-_DEPTH:], price], [*steps[-_DEPTH:], step]
        price = np.maximum(_anderson(prices, steps), 0.0)
        shares, step = respond(price)
        iterations += 1
    gap = frank_wolfe_gap(
        pairs, allowed, shares, shares_now, demand_rps, fixed_ms, tau_ms, stations
    )
    return Solution(shares, price, gap, iterations)


def _anderson(prices: list[Floats], steps: list[Floats]) -> Floats:
    """Combine past iterates so that their combined step is least."""
    latest_price, latest_step = prices[-1], steps[-1]
    if len(steps) == 1:
        return latest_price + latest_step
    step_changes = np.stack([latest_step - s for s in steps[:-1]], axis=1)
    price_changes = np.stack([latest_price - p for p in prices[:-1]], axis=1)
    gram = step_changes.T @ step_changes
    ridge = 1e-10 * np.trace(gram) + 1e-30
    mix = np.linalg.solve(gram + ridge * np.eye(len(gram)), step_changes.T @ latest_step)
    accelerated: Floats = latest_price + latest_step - (price_changes + step_changes) @ mix
    # A wild combination is worse than the plain step.
    usable = np.all(np.isfinite(accelerated)) and np.linalg.norm(mix, 1) < 1e4
    return accelerated if usable else latest_price + latest_step


def frank_wolfe_gap(
    pairs: Pairs,
    allowed: Bools,
    shares: Floats,
    shares_now: Floats,
    demand_rps: Floats,
    fixed_ms: Floats,
    tau_ms: Floats,
    stations: Stations,
) -> float:
    """Upper bound on how far ``shares`` is from the step's optimum, relative to its cost.

    The objective is convex, so the best vertex under its gradient bounds what any other
    plan could gain (M. Jaggi, "Revisiting Frank-Wolfe", ICML 2013).
    """
    demand = demand_rps[pairs.route]
    flow = demand * shares
    rps = pairs.sum_by_provider(flow)
    marginal_ms = 1e3 * latency.marginal_s(stations, rps)[0]
    tau = np.maximum(tau_ms, 1e-6)[pairs.route]
    drift = np.log(np.maximum(shares, 1e-300)) - np.log(np.maximum(shares_now, SHARE_FLOOR))
    gradient = fixed_ms + marginal_ms[pairs.provider] + tau * (drift + 1.0)
    best = -pairs.max_by_route(np.where(allowed, -gradient, -np.inf))
    served = pairs.sum_by_route(shares)
    gap = float(
        np.sum(
            demand_rps * np.where(served > 0.0, pairs.sum_by_route(shares * gradient) - best, 0.0)
        )
    )
    cost = float(np.abs(flow) @ np.abs(fixed_ms) + 1e3 * (rps @ latency.mean_s(stations, rps)))
    return max(gap, 0.0) / max(cost, 1e-12)
