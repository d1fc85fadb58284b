import numpy as np
import pytest
from scipy.optimize import minimize

from bench.lab.clairvoyant import GAP_RATIO, Oracle, erlang_c_wait, expected_ms
from bench.lab.feed import Feed, draw_noise
from bench.lab.layout import make_layout
from bench.lab.truth import Truth, draw_arrivals, quantile_s
from bench.lab.worlds import make_world


def first_only(world):
    """Shares that give every route's requests to the first of its providers."""
    pairs = world.layout.problem.pairs
    shares = np.where(pairs.provider == pairs.provider[pairs.starts][pairs.route], 1.0, 0.0)
    return shares / pairs.sum_by_route(shares)[pairs.route]


@pytest.fixture
def world():
    """A world in which nothing happens to queues."""
    return make_world("price_spike", make_layout("XS", 1), 1)


@pytest.mark.parametrize("rho", [0.3, 0.7, 0.85])
def test_mean_wait_is_what_queueing_theory_says(world, rho):
    layout = world.layout
    pairs = layout.problem.pairs
    shares = layout.problem.baseline_shares
    load = pairs.sum_by_provider(world.demand_rps[0][pairs.route] * shares)
    # Every station is slowed down to the same utilisation.
    world.slowness[:] = rho * layout.servers / (load * layout.service_s)
    truth = Truth(world)
    times, counts = np.zeros(pairs.providers), np.zeros(pairs.providers)
    for tick in range(40):
        slot = truth.run(tick, draw_arrivals(world, 7, tick), shares)
        own = slot.latency_sum_s - slot.latency_count * layout.rtt_s
        times += pairs.sum_by_provider(own)
        counts += pairs.sum_by_provider(slot.latency_count)
    service = layout.service_s * world.slowness[0]
    theory = np.array(
        [
            s * (1.0 + (1.0 + world.service_cv2) / 2.0 * erlang_c_wait(int(c), np.array(rho)))
            for s, c in zip(service, layout.servers, strict=True)
        ]
    )
    assert np.sum(times) / np.sum(counts) == pytest.approx(
        float(np.sum(theory * counts) / np.sum(counts)), rel=0.06
    )


def test_erlang_c_knows_the_single_server():
    rho = np.array([0.1, 0.5, 0.9])
    assert erlang_c_wait(1, rho) == pytest.approx(rho / (1.0 - rho))


def test_what_is_sent_is_answered_or_in_flight(world):
    truth = Truth(world)
    shares = world.layout.problem.baseline_shares
    sent = answered = 0.0
    for tick in range(10):
        slot = truth.run(tick, draw_arrivals(world, 1, tick), shares)
        sent += slot.requests.sum()
        answered += slot.latency_count.sum()
        assert slot.latency_hist.sum() == slot.latency_count.sum()
    assert sent == answered + truth.active.sum()
    assert truth.detail.sum() == sent


def test_arrivals_do_not_depend_on_the_policy(world):
    pairs = world.layout.problem.pairs
    counts = []
    for shares in (world.layout.problem.baseline_shares, first_only(world)):
        truth = Truth(world)
        slots = [truth.run(t, draw_arrivals(world, 3, t), shares) for t in range(3)]
        counts.append([pairs.sum_by_route(s.requests) for s in slots])
    assert np.array_equal(counts[0], counts[1])


def test_an_overloaded_station_answers_no_more_than_it_can(world):
    layout, shares = world.layout, first_only(world)
    world.slowness[:] = 10.0
    truth = Truth(world)
    pairs = layout.problem.pairs
    answered = [
        pairs.sum_by_provider(truth.run(t, draw_arrivals(world, 1, t), shares).latency_count)
        for t in range(10)
    ]
    capacity = layout.servers / layout.service_s / 10.0
    assert np.all(np.mean(answered[3:], axis=0) <= 1.25 * capacity)
    assert quantile_s(truth.detail[9], 0.9) == pytest.approx(layout.timeout_s, rel=0.06)


def test_retries_come_back_as_attempts():
    layout = make_layout("XS", 1)
    world = make_world("retry_storm", layout, 1, ticks=20)
    world.error_ratio[:] = 0.5
    truth = Truth(world)
    shares = layout.problem.baseline_shares
    sent = [truth.run(t, draw_arrivals(world, 1, t), shares).requests.sum() for t in range(12)]
    # 1 + 1/2 + 1/4 attempts for each request.
    assert np.mean(sent[4:]) == pytest.approx(1.75 * world.demand_rps[0].sum(), rel=0.1)


def test_least_request_takes_the_emptier_provider(world):
    equal, least = Truth(world), Truth(world, least_request=True)
    shares = world.layout.problem.baseline_shares
    waits = []
    for truth in (equal, least):
        for tick in range(10):
            truth.run(tick, draw_arrivals(world, 1, tick), shares)
        waits.append(quantile_s(truth.detail[5:10].sum(axis=0), 0.99))
    assert waits[1] < waits[0]


def test_the_optimum_is_that_of_scipy(world):
    layout = world.layout
    pairs = layout.problem.pairs
    oracle = Oracle(world)
    found = oracle.solve(0)
    assert oracle.gap_ratio <= GAP_RATIO
    best = expected_ms(world, 0, found)

    def cost(logits):
        raised = np.exp(logits - logits.max())
        return expected_ms(world, 0, raised / pairs.sum_by_route(raised)[pairs.route])

    small = minimize(cost, np.log(found + 1e-3), method="L-BFGS-B", options={"maxiter": 5})
    assert best <= small.fun * 1.002
    assert best < expected_ms(world, 0, layout.problem.baseline_shares)


def test_lost_stale_and_dark_reports_look_that_way():
    layout = make_layout("XS", 1)
    seen = {}
    for name in ("telemetry_stale", "telemetry_blackout", "telemetry_dropped"):
        world = make_world(name, layout, 1, ticks=160)
        truth, feed = Truth(world), Feed(world)
        begin = max(world.faults.stale[0], world.faults.blackout[0], 20)
        for tick in range(begin - 3, begin + 6):
            slot = truth.run(tick, draw_arrivals(world, 1, tick), layout.problem.baseline_shares)
            seen[name] = feed.see(tick, slot, draw_noise(world, 1, tick))
    assert seen["telemetry_stale"].age_s.min() > 5.0
    assert seen["telemetry_stale"].requests.sum() > 0.0
    assert seen["telemetry_blackout"].requests.sum() == 0.0
    assert set(np.unique(seen["telemetry_dropped"].covered_s)) <= {0.0, 1.0, 2.0}
    assert seen["telemetry_dropped"].covered_s.mean() < 1.9
