"""Does the loop oscillate where what it sees is old? The linearised answer, at random meshes.

A tick maps commanded shares w and models to the next commanded shares: the step that ``generate``
proposes as a whole, w' = F(w, s), which looks at no measured load. What is old are the models: the
service time s that each provider is believed to have is inferred from response times, and these
belong to the load of D ticks ago. Were the models' curve the true one, what is inferred would not
depend on load at all, and delay would do nothing. It never is: here providers are exact M/M/c
queues (Erlang C) and the engine's curve is Sakasegawa's, so s moves with load, s = G(x). With K the
part of a surprise that a model takes over at a tick, the loop around its fixed point is

    log s[t+1] = (1 - K) log s[t] + K G' X w[t-D],    w[t+1] = A w[t] + C log s[t+1]

with A and C the derivatives of F by finite differences, and X from shares to loads. Its companion
matrix has (D + 1) copies of w and one of s; the loop is stable if all eigenvalues are within the
unit circle. K = 1 trusts a window at once, as no filter of the engine does.

What this leaves out. The gates (deadband, switching cost, doubt about turns) only ever hold. The
largest step does not bind near a fixed point. Reluctance grows with uncertainty, which is taken as
none. A capacity is a rate over the utilisation of the same time, so it does not depend on load
however old it is; it is taken as known. Distances, errors, power curves and demand are constant:
that what is demanded may react to latency is not looked at. A backlog is 0 at rest. The SLO's
penalty is left out, whose knee has no derivative worth the name. Beyond 90 % of capacity queues
have no rest that could be linearised. So this says that the engine does not set itself swinging;
that it does not under noise and change is for the laboratory (``bench.lab``, figure "flips").
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from tests.property.test_part import evaluation_of, mesh_of, problem_of
from xds_server.core import latency, solver
from xds_server.core.tables import Floats
from xds_server.engine.evaluate import TAU_RATIO
from xds_server.engine.generate import generate
from xds_server.engine.part import part_of, routes_by_service
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.topology import EngineSettings

DELAYS = (0, 2, 5)
LOADS = (0.3, 0.5, 0.7, 0.9)
GAINS = (0.2, 1.0)
MESHES = range(6)
SETTINGS = EngineSettings(min_share_ratio=0.002, max_shift_ratio=1.0)
EXACT = 1e-13
SMALL = 1e-5
COARSE = 1e-3
"""Differences of shares and of log s; what is inferred is known to 1e-7."""
TURNING_MAX = 0.9
MARGIN = 4.0
"""So many times as strong a reaction of the models has to be stable as well."""


def erlang_c_s(rps: Floats, service_s: Floats, servers: Floats) -> Floats:
    """(J,) mean response time of M/M/c queues, exactly."""
    found = np.empty_like(rps)
    for j, (x, s, c) in enumerate(zip(rps, service_s, servers, strict=True)):
        load, block = x * s, 1.0
        for k in range(1, int(c) + 1):
            block = load * block / (k + load * block)
        queued = c * block / (c - load * (1.0 - block))
        found[j] = s + queued * s / (c - load)
    return found


@dataclass
class Loop:
    """One service whose routes share providers; F and G as above."""

    problem: Problem
    evaluation: Evaluation
    true_s: Floats  # (J,) service times
    servers: Floats

    @property
    def capacity_rps(self) -> Floats:
        return self.servers / self.true_s

    def rps(self, shares: Floats) -> Floats:
        pairs = self.problem.pairs
        return pairs.sum_by_provider(self.evaluation.demand_rps[pairs.route] * shares)

    def inferred_s(self, rps: Floats) -> Floats:
        """G: the service time that explains a response time at that load, capacity known."""
        observed = erlang_c_s(rps, self.true_s, self.servers)
        ones = np.ones_like(rps)
        return latency.infer_service_s(observed, rps, self.capacity_rps, self.servers, ones)

    def at(self, shares: Floats, service_s: Floats) -> Evaluation:
        """What ``evaluate`` makes of these, without any uncertainty: it would slow the step."""
        ones, pairs = np.ones_like(service_s), self.problem.pairs
        curves = latency.station_of(service_s, self.capacity_rps, self.servers, 2.0 * ones)
        mean_s = latency.mean_s(curves, self.rps(shares))[pairs.provider] + self.evaluation.rtt_s
        tau_ms = TAU_RATIO * 1e3 * pairs.sum_by_route(shares * mean_s)
        return replace(
            self.evaluation, stations=curves, shares_now=shares, tau_ms=tau_ms, sigma_ratio=0 * ones
        )

    def step(self, shares: Floats, service_s: Floats) -> Floats:
        """F: the whole step that is proposed."""
        frozen = np.zeros(len(shares), dtype=bool)
        here = self.at(shares, service_s)
        return generate(self.problem, here, shares, frozen, SETTINGS).proposed[1].shares


def loop_of(seed: int, load: float) -> Loop:
    """Draw a service with three or four providers of 1 to 16 servers, called by several routes."""
    rng = np.random.default_rng(seed)
    whole = problem_of(*mesh_of(rng))
    sizes = {name: len(rows) for name, rows in routes_by_service(whole).items()}
    rows = routes_by_service(whole)[max(sizes, key=sizes.__getitem__)]
    part = part_of(whole, evaluation_of(rng, whole, load, slo_ratio=0.0), rows)
    problem, here = part.problem, part.evaluation
    allowed = np.ones_like(here.allowed)
    true_s, servers = here.stations.service_s, here.stations.servers
    demand = here.demand_rps * load * (servers / true_s).sum() / here.demand_rps.sum()
    error = np.zeros_like(here.error_ratio)
    evaluation = replace(here, allowed=allowed, demand_rps=demand, error_ratio=error)
    return Loop(problem, evaluation, true_s, servers)


def rest_of(loop: Loop) -> tuple[Floats, Floats]:
    """The fixed point: shares that the step keeps, under models that explain what they see."""
    shares = loop.capacity_rps[loop.problem.pairs.provider]
    shares = shares / loop.problem.pairs.sum_by_route(shares)[loop.problem.pairs.route]
    service_s = loop.inferred_s(loop.rps(shares))
    for _ in range(400):
        found = loop.step(shares, service_s)
        moved = np.abs(found - shares).max()
        shares = found
        service_s = 0.5 * (service_s + loop.inferred_s(loop.rps(shares)))
        if moved < 1e-9:
            break
    return shares, service_s


@dataclass(frozen=True)
class Linear:
    """The derivatives at a fixed point; shares in coordinates that keep each route's sum."""

    by_shares: Floats  # (n, n) A
    by_service: Floats  # (n, J) C, by log s
    inferred: Floats  # (J, n) G' X, log s by shares
    by_seen: Floats  # (n, n) by shares whose load is measured: 0 for the engine's step


def linear(loop: Loop, step: Callable[[Floats, Floats, Floats], Floats]) -> Linear:
    """Linearise ``step(shares, service_s, seen)`` by central differences."""
    shares, service_s = rest_of(loop)
    basis, free = _tangents(loop, shares)

    def slope(along: Callable[[Floats], Floats], columns: int, size: float) -> Floats:
        found = []
        for i in range(columns):
            change = np.zeros(columns)
            change[i] = size
            found.append((along(change) - along(-change)) / (2.0 * size))
        return np.array(found).T

    n, j = len(free), len(service_s)
    return Linear(
        slope(lambda v: step(shares + v @ basis, service_s, shares)[free], n, SMALL),
        slope(lambda v: step(shares, service_s * np.exp(v), shares)[free], j, SMALL),
        slope(lambda v: np.log(loop.inferred_s(loop.rps(shares + v @ basis))), n, COARSE),
        slope(lambda v: step(shares, service_s, shares + v @ basis)[free], n, SMALL),
    )


def _tangents(loop: Loop, shares: Floats) -> tuple[Floats, Floats]:
    """(n, P) from each route's largest share to each of its others, and (n,) the others' rows."""
    pairs = loop.problem.pairs
    largest = {
        r: rows[np.argmax(shares[rows])]
        for r in range(pairs.routes)
        for rows in (np.flatnonzero(pairs.route == r),)
    }
    free = np.array([p for p, r in enumerate(pairs.route) if p != largest[r]])
    basis = np.zeros((len(free), len(shares)))
    basis[np.arange(len(free)), free] = 1.0
    basis[np.arange(len(free)), [largest[r] for r in pairs.route[free]]] = -1.0
    return basis, free


def eigenvalues(found: Linear, gain: float, delay: int) -> Floats:
    """Of the companion matrix of (w[t], ..., w[t - delay], log s[t])."""
    n, j = found.by_service.shape
    size = n * (delay + 1) + j
    matrix = np.zeros((size, size))
    lagged = slice(n * delay, n * (delay + 1))
    # First the models take in what is old, then the step is made with them.
    matrix[-j:, -j:] = (1.0 - gain) * np.eye(j)
    matrix[-j:, lagged] += gain * found.inferred
    matrix[:n] = found.by_service @ matrix[-j:]
    matrix[:n, :n] += found.by_shares
    matrix[:n, lagged] += found.by_seen
    matrix[n : n * (delay + 1), : n * delay] = np.eye(n * delay)
    return np.linalg.eigvals(matrix)


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solve each step to the last digit: within its usual gap the solver keeps what it is given."""
    exact = partial(solver.solve, gap_ratio=EXACT)
    monkeypatch.setattr("xds_server.engine.generate.solver.solve", exact)


@pytest.mark.parametrize("load", LOADS)
def test_the_engines_step_is_stable_however_old_telemetry_is(load: float) -> None:
    for seed in MESHES:
        loop = loop_of(seed, load)
        found = linear(loop, lambda shares, service_s, _, loop=loop: loop.step(shares, service_s))
        for gain in GAINS:
            for delay in DELAYS:
                modes = eigenvalues(found, gain, delay)
                assert np.abs(modes).max() < 1.0, (seed, gain, delay)
                # What turns back and forth fades: a tenth is left of it after 22 ticks at most.
                turning = modes[(np.abs(modes.imag) > 1e-6) | (modes.real < -1e-6)]
                assert np.abs(turning).max(initial=0.0) < TURNING_MAX, (seed, gain, delay)


def _trusting(loop: Loop, tau_ratio: float) -> Callable[[Floats, Floats, Floats], Floats]:
    """A step of the same formula that takes prices at the loads it sees, and does not solve."""

    def step(shares: Floats, service_s: Floats, seen: Floats) -> Floats:
        here, pairs = loop.at(shares, service_s), loop.problem.pairs
        price_ms = 1e3 * latency.marginal_s(here.stations, loop.rps(seen))[0]
        anchor = np.log(np.maximum(shares, solver.SHARE_FLOOR))
        tau_ms = (tau_ratio / TAU_RATIO * here.tau_ms)[pairs.route]
        logits = anchor - (here.costs.total + price_ms[pairs.provider]) / tau_ms
        return solver.softmax_by_route(pairs, logits, here.allowed)[0]

    return step


# -- these can fail --------------------------------------------------------------------------


def test_models_that_reacted_many_times_as_strongly_would_let_it_oscillate() -> None:
    radii: dict[float, list[float]] = {MARGIN: [], 64.0: []}
    for seed in MESHES:
        loop = loop_of(seed, 0.5)
        found = linear(loop, lambda shares, service_s, _, loop=loop: loop.step(shares, service_s))
        for factor, of_meshes in radii.items():
            stronger = replace(found, inferred=factor * found.inferred)
            of_meshes.append(np.abs(eigenvalues(stronger, 1.0, max(DELAYS))).max())
    assert max(radii[MARGIN]) < 1.0
    assert max(radii[64.0]) > 1.0


def _trusting(loop: Loop, tau_ratio: float) -> Callable[[Floats, Floats, Floats], Floats]:
    """A step of the same formula that takes prices at the loads it sees, and does not solve.

    Without the floors, so its own fixed point is a little beside the engine's.
    """

    def step(shares: Floats, service_s: Floats, seen: Floats) -> Floats:
        here, pairs = loop.at(shares, service_s), loop.problem.pairs
        price_ms = 1e3 * latency.marginal_s(here.stations, loop.rps(seen))[0]
        anchor = np.log(np.maximum(shares, solver.SHARE_FLOOR))
        tau_ms = (tau_ratio / TAU_RATIO * here.tau_ms)[pairs.route]
        logits = anchor - (here.costs.total + price_ms[pairs.provider]) / tau_ms
        return solver.softmax_by_route(pairs, logits, here.allowed)[0]

    return step


def radii_of(load: float, tau_ratio: float, delay: int) -> Floats:
    """(M,) of every mesh, with a step that trusts what it sees."""
    found = []
    for seed in MESHES:
        loop = loop_of(seed, load)
        modes = eigenvalues(linear(loop, _trusting(loop, tau_ratio)), 1.0, delay)
        found.append(np.abs(modes).max())
    return np.array(found)


@pytest.mark.parametrize("delay", DELAYS)
def test_a_step_that_trusted_the_loads_it_sees_would_oscillate_near_capacity(delay: int) -> None:
    assert np.all(radii_of(0.9, TAU_RATIO, delay) > 1.0)


def test_one_that_hardly_hesitated_would_oscillate_at_less() -> None:
    assert np.median(radii_of(0.5, 0.05 * TAU_RATIO, 5)) > 1.0


def test_it_is_age_that_makes_such_a_step_oscillate() -> None:
    fresh, old = radii_of(0.5, TAU_RATIO, 0), radii_of(0.5, TAU_RATIO, 5)
    assert np.any((fresh < 1.0) & (old > 1.0))


def test_one_that_hardly_moved_would_not() -> None:
    assert np.all(radii_of(0.5, 100.0, 5) < 1.0)
