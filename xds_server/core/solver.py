"""The system optimum of all routes at once, through one price per provider.

    minimise  sum_r d_r <C_r, w_r> + sum_j x_j T_j(x_j) + sum_r tau_r d_r KL(w_r || w_r,now)
    over      w_r on the simplex of the route's allowed providers,  x = sum_r d_r w_r

With a price p_j on every provider's load the problem falls apart: each route answers with
w = softmax(log w_now - (C + p) / tau), each provider with the load x at which its marginal
latency m(x) = T + x T' is the price. What is left is concave and has J unknowns instead of P
shares: the dual (S. Boyd and L. Vandenberghe, Convex Optimization, 5.5). It is solved in x,
with p = m(x), so m is never inverted: Newton's direction, a line search on the dual's value, and
the duality gap as the proof.

Routes of different services share no provider, so the dual is a sum over blocks
(``core.blocks``), and each block has a direction, a step length and a gap of its own; one that
has converged is left alone, and only the stubborn are gone on with. The Hessian of a block,

    H = sum_r d_r / tau_r (diag(w_r) - w_r w_r^T),  and  (H + diag(1 / m')) dp = answer - x,

is formed and solved for as a whole: with V the matrix of columns sqrt(d_r / tau_r) w_r it is
diag(V V^T 1) - V V^T, since shares add up to 1. Blocks that are too wide or too sparse for that
take their direction from conjugate gradients that only multiply by the Hessian (J. Nocedal and
S. Wright, Numerical Optimization, 7.1).
"""

from dataclasses import dataclass, replace

import numpy as np

from xds_server.core import latency
from xds_server.core.blocks import Dense, blocks_of
from xds_server.core.latency import Stations
from xds_server.core.tables import Bools, Floats, Ints, Pairs

MAX_ITERATIONS = 50
GAP_RATIO = 2e-3
"""Relative duality gap at which iteration stops: well inside what models are worth."""
SHARE_FLOOR = 0.02
"""A small share could hardly grow by a multiplicative step; it starts from here."""
_BLOCK_PART = 0.5
"""Part of the gap ratio at which a block is done: then two solutions differ by no more than it."""
_CG_ITERATIONS = 6
_CG_TOLERANCE = 0.05
_SHORTEST_STEP = 2.0**-24
_ENOUGH = 1e-4
"""Part of the rise that the slope promises which a step has to keep (Armijo)."""
_LEAST_SLOPE = 1e-9
_PART_MIN, _PART_MAX = 0.3, 0.5
"""Least and largest part of a step that failed which is tried next."""
_LEAST_TAU_MS = 1e-6
_NEVER = -1e300
"""Logit of a pair that may not be used: its exponential is 0, and no sum of it is NaN."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Shares that minimise the step's objective, and the proof of how nearly."""

    shares: Floats  # (P,)
    price_ms: Floats  # (J,) marginal latency
    gap_ratio: float  # duality gap over the objective's magnitude, >= 0
    iterations: int  # of the block that took most


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
    gap_ratio : relative duality gap of a block at which iteration stops there

    Returns
    -------
    Solution; shares are finite for any finite input.
    """
    tau_ms = np.maximum(tau_ms, _LEAST_TAU_MS)
    shares = np.zeros(len(pairs.route))
    # Whom no route may use stands idle.
    price_ms = 1e3 * latency.marginal_s(stations, np.zeros(pairs.providers))[0]
    blocks, gap, scale, iterations = blocks_of(pairs), 0.0, 0.0, 1
    for block in blocks.dense:
        field = _field(block, allowed, shares_now, demand_rps, fixed_ms, tau_ms, stations)
        done = _climb(field, gap_ratio)
        shares[block.own_pair] = done.shares.ravel()[block.own_cell]
        price_ms[block.provider[block.provided]] = done.price_ms[block.provided]
        gap, scale = gap + float(done.gap.sum()), scale + float(done.scale.sum())
        iterations = max(iterations, done.iterations)
    if (rest := blocks.sparse) is not None:
        step = _Step(
            rest.pairs,
            allowed[rest.own_pair],
            np.log(np.maximum(shares_now[rest.own_pair], SHARE_FLOOR)),
            demand_rps[rest.route][rest.pairs.route],
            fixed_ms[rest.own_pair],
            tau_ms[rest.route][rest.pairs.route],
            stations.rows(rest.provider),
        )
        point, taken = _climb_sparse(step, shares_now[rest.own_pair], gap_ratio)
        shares[rest.own_pair], price_ms[rest.provider] = point.shares, point.price_ms
        gap, scale, iterations = gap + point.gap, scale + point.scale, max(iterations, taken)
    shares *= allowed  # where nobody may serve, all that was masked is as good as each other
    return Solution(shares, price_ms, gap / max(scale, 1e-12), iterations)


# -- dense blocks ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Points:
    """The duals of B blocks at loads ``rps``: prices, the routes' answer, and what is missing."""

    rps: Floats  # (K, B) x
    price_ms: Floats  # (K, B) m(x)
    slope_ms: Floats  # (K, B) m'(x) > 0
    shares: Floats  # (K, B, N) the routes' answer to the prices; until the next evaluation
    answer_rps: Floats  # (K, B) the load that answer makes
    dual: Floats  # (B,) over that of no price
    gap: Floats  # (B,) primal at the answer - dual, >= 0
    scale: Floats  # (B,) magnitude of the objective

    def take(self, some: Ints) -> "_Points":
        """Return the points of some blocks."""
        return _Points(
            self.rps.take(some, axis=1),
            self.price_ms.take(some, axis=1),
            self.slope_ms.take(some, axis=1),
            self.shares.take(some, axis=1),
            self.answer_rps.take(some, axis=1),
            self.dual[some],
            self.gap[some],
            self.scale[some],
        )

    def put(self, where: Ints, others: "_Points") -> None:
        """Replace the points of some blocks."""
        self.rps[:, where], self.price_ms[:, where] = others.rps, others.price_ms
        self.slope_ms[:, where], self.shares[:, where] = others.slope_ms, others.shares
        self.answer_rps[:, where], self.dual[where] = others.answer_rps, others.dual
        self.gap[where], self.scale[where] = others.gap, others.scale


@dataclass(frozen=True, slots=True)
class _Field:
    """The data of B blocks; cells without a pair have a logit of ``_NEVER``."""

    logits: Floats  # (K, B, N) log w_now - C / tau
    cost: Floats  # (K, B, N) d C
    per_tau: Floats  # (B, N) 1 / tau
    demand: Floats  # (B, N) 0 where there is no route, or nobody may serve it
    stiff: Floats  # (B, N) d tau
    log_now: Floats  # (B, N) log of the sum of exp(logits)
    start_rps: Floats  # (K, B)
    stations: Stations  # (K * B,)
    buffer: Floats  # (K, B, N) where shares are written: new memory costs more than the sums

    def take(self, some: Ints) -> "_Field":
        """Return the data of some blocks."""
        k, b = self.start_rps.shape
        row = np.arange(k * b).reshape(k, b).take(some, axis=1).ravel()
        # Not by [:, some], which would turn the axes over in memory.
        logits = self.logits.take(some, axis=1)
        return _Field(
            logits,
            self.cost.take(some, axis=1),
            self.per_tau[some],
            self.demand[some],
            self.stiff[some],
            self.log_now[some],
            self.start_rps.take(some, axis=1),
            self.stations.rows(row),
            np.empty_like(logits),
        )

    def at(self, rps: Floats) -> _Points:
        """Evaluate the duals; one pass over the cells."""
        x, shape = rps.ravel(), rps.shape
        mean, marginal, slope = latency.mean_and_marginal_s(self.stations, x)
        price = 1e3 * marginal
        priced = price.reshape(shape)
        np.multiply(priced[:, :, None], self.per_tau, out=self.buffer)
        shares, log_total = _softmax(np.subtract(self.logits, self.buffer, out=self.buffer))
        answer = np.einsum("kbn,bn->kb", shares, self.demand)
        here = 1e3 * x * mean - price * x
        y = answer.ravel()
        busy = 1e3 * y * latency.mean_s(self.stations, y)
        there = busy - price * y
        # Against the logarithms at no price: their own size would drown what steps change.
        routes = np.einsum("bn,bn->b", self.stiff, log_total - self.log_now)
        return _Points(
            rps,
            priced,
            np.maximum(1e3 * slope, _LEAST_SLOPE).reshape(shape),
            shares,
            answer,
            here.reshape(shape).sum(axis=0) - routes,
            np.maximum((there - here).reshape(shape).sum(axis=0), 0.0),
            busy.reshape(shape).sum(axis=0) + np.abs(np.einsum("kbn,kbn->b", shares, self.cost)),
        )

    def direction(self, points: _Points) -> tuple[Floats, Floats]:
        """Newton's direction in loads, (K, B), and the rise of the dual along it, (B,).

        Prices are scaled by the root of m', so that what is solved is I + a semidefinite matrix.
        """
        v = (points.shares * np.sqrt(self.demand * self.per_tau)).transpose(1, 0, 2)
        products = v @ v.transpose(0, 2, 1)  # (B, K, K)
        root = np.sqrt(points.slope_ms).T  # (B, K)
        k = np.arange(root.shape[1])
        system = -root[:, :, None] * products * root[:, None, :]
        system[:, k, k] += 1.0 + root**2 * products.sum(axis=2)
        missing = points.answer_rps - points.rps
        found = np.linalg.solve(system, (root * missing.T)[:, :, None])[:, :, 0]
        return (found / root).T, np.einsum("kb,bk->b", missing, root * found)


def _softmax(logits: Floats) -> tuple[Floats, Floats]:
    """Shares over axis 0, in place of the logits, and the logarithm of the sum."""
    top = logits.max(axis=0)
    logits -= top
    np.exp(logits, out=logits)
    total = logits.sum(axis=0)
    logits *= 1.0 / total
    return logits, top + np.log(total)


def _field(
    block: Dense,
    allowed: Bools,
    shares_now: Floats,
    demand_rps: Floats,
    fixed_ms: Floats,
    tau_ms: Floats,
    stations: Stations,
) -> _Field:
    usable = allowed[block.pair] & block.present
    now = shares_now[block.pair]
    served = usable.any(axis=0) & block.routed
    demand = np.where(served, demand_rps[block.route], 0.0)
    tau = tau_ms[block.route]
    cost = fixed_ms[block.pair]
    logits = np.log(np.maximum(now, SHARE_FLOOR)) - cost / tau
    logits[~usable] = _NEVER
    now[~block.present] = 0.0
    cost *= demand
    _, log_now = _softmax(logits.copy())
    return _Field(
        logits,
        cost,
        1.0 / tau,
        demand,
        demand * tau,
        log_now,
        np.einsum("kbn,bn->kb", now, demand),
        stations.rows(block.provider.ravel()),
        np.empty_like(logits),
    )


@dataclass(frozen=True, slots=True)
class _Climbed:
    """Where B blocks came to rest."""

    shares: Floats  # (K, B, N)
    price_ms: Floats  # (K, B)
    gap: Floats  # (B,)
    scale: Floats  # (B,)
    iterations: int = 1

    def put(self, where: Ints, points: _Points) -> None:
        """Take over the points of some blocks."""
        self.shares[:, where], self.price_ms[:, where] = points.shares, points.price_ms
        self.gap[where], self.scale[where] = points.gap, points.scale


def _climb(field: _Field, gap_ratio: float) -> _Climbed:
    """Raise the dual of each block until its gap is small enough, or no step gains."""
    points = field.at(field.start_rps)
    blocks = len(points.dual)
    done = _Climbed(
        np.empty_like(points.shares),
        np.empty_like(points.price_ms),
        np.empty(blocks),
        np.empty(blocks),
    )
    rows, length, stuck = np.arange(blocks), np.ones(blocks), np.zeros(blocks, dtype=bool)
    for iteration in range(1, MAX_ITERATIONS + 1):
        goes_on = (points.gap > _BLOCK_PART * gap_ratio * points.scale) & ~stuck
        if iteration == MAX_ITERATIONS or not goes_on.any():
            done.put(rows, points)
            break
        if not goes_on.all():
            ended, left = np.flatnonzero(~goes_on), np.flatnonzero(goes_on)
            done.put(rows[ended], points.take(ended))
            field, points = field.take(left), points.take(left)
            rows, length = rows[left], length[left]
        points, length, stuck = _ascend(field, points, np.minimum(2.0 * length, 1.0))
    return replace(done, iterations=iteration)


def _ascend(field: _Field, points: _Points, length: Floats) -> tuple[_Points, Floats, Bools]:
    """Go along Newton's direction as far as each dual rises, halving from ``length`` (B,).

    Loads are moved first to where the new price would put them if the marginal were
    straight; a load below 0 is 0, whose price is the bare service time.

    Returns
    -------
    the points, the lengths, and (B,) where no step gains: numerically at the top
    """
    loads, rise = field.direction(points)
    tried = field.at(np.maximum(points.rps + length * loads, 0.0))
    low = np.flatnonzero(~(tried.dual >= points.dual + _ENOUGH * length * rise))
    while len(low):
        # To where the parabola through what is known is highest.
        short = points.dual[low] + length[low] * rise[low] - tried.dual[low]
        best = 0.5 * length[low] * rise[low] / np.maximum(short, 1e-300)
        length[low] *= np.clip(best, _PART_MIN, _PART_MAX)
        length[low[length[low] < _SHORTEST_STEP]] = 0.0
        few = field.take(low)
        tried.put(low, few.at(np.maximum(points.rps[:, low] + length[low] * loads[:, low], 0.0)))
        enough = points.dual[low] + _ENOUGH * length[low] * rise[low]
        low = low[(length[low] > 0.0) & ~(tried.dual[low] >= enough)]
    return tried, length, length == 0.0


# -- the rest ----------------------------------------------------------------------------


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


def _climb_sparse(step: _Step, shares_now: Floats, gap_ratio: float) -> tuple[_Point, int]:
    """Raise the dual until the gap is small enough, or no step gains; and in how many steps."""
    point = step.at(step.pairs.sum_by_provider(step.demand * shares_now))
    iterations, length = 1, 1.0
    while iterations < MAX_ITERATIONS and point.gap > gap_ratio * point.scale:
        better, length = _ascend_sparse(step, point, min(2.0 * length, 1.0))
        iterations += 1
        if better is None:  # no step in this direction gains: numerically at the top
            break
        point = better
    return point, iterations


def _ascend_sparse(step: _Step, point: _Point, length: float) -> tuple[_Point | None, float]:
    """Go along Newton's direction as far as the dual rises, as ``_ascend`` does."""
    prices = step.direction(point)
    loads = prices / point.slope_ms
    rise = float((point.answer_rps - point.rps) @ prices)
    while length >= _SHORTEST_STEP:
        tried = step.at(np.maximum(point.rps + length * loads, 0.0))
        if tried.dual >= point.dual + _ENOUGH * length * rise:
            return tried, length
        length *= 0.5
    return None, length
