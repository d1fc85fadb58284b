"""The demo's arithmetic on synthetic data."""

import math

import pytest

from xds_server.demo.load import Sample
from xds_server.demo.observe import Counts, parse_runtime, parse_stats
from xds_server.demo.report import (
    FAILED_AS_S,
    DeadMan,
    EventResult,
    PriceChange,
    Summary,
    event_result,
    nearest_rank,
    price_at,
    slo_violation_s,
    split_distance,
    summarise,
    unexplained_failures,
)
from xds_server.demo.story import Event, Kind, Story
from xds_server.demo.verdicts import judge

SLO = {("checkout", "search"): 0.15}
PROVIDERS = ("search-east", "search-west")
SERVICE_OF = {"search-east": "search", "search-west": "search", "payments-main": "payments"}
STORY = Story(
    60.0,
    (
        Event("brown-out", Kind.SLOWER, 10.0, 20.0, "search-east", 6.0),
        Event("dearer", Kind.DEARER, 30.0, 38.0, "search-west", 8.0),
        Event("dies", Kind.PROVIDER_KILLED, 40.0, 46.0, "payments-main"),
        Event("controller", Kind.CONTROLLER_KILLED, 50.0, 55.0),
    ),
)


def sample(start_s: float, latency_s: float = 0.05, status: int = 200) -> Sample:
    return Sample(start_s, latency_s, status, "checkout", "search", "search-east")


def counts_of(shares: dict[int, float], per_s: float = 100.0) -> Counts:
    """East's share in each second; west has the rest."""
    counts = Counts()
    for second, share in shares.items():
        for name, part in (("search-east", share), ("search-west", 1.0 - share)):
            counts.attempts[second, "checkout", name] = per_s * part
            counts.sent[second, "checkout", name] = per_s * part
    return counts


def test_a_second_violates_the_slo_when_its_p95_does() -> None:
    calm = [sample(0.5, 0.1) for _ in range(19)]
    assert slo_violation_s([*calm, sample(0.9, 1.0)], SLO) == 0  # one in twenty is allowed
    assert slo_violation_s([*calm, sample(0.9, 1.0), sample(0.9, 1.0)], SLO) == 1


def test_a_failed_request_is_infinitely_slow() -> None:
    assert slo_violation_s([sample(0.5, 0.001, status=503)], SLO) == 1
    assert slo_violation_s([sample(0.5, 0.001, status=0)], SLO) == 1
    assert slo_violation_s([sample(0.5, 0.001, status=404)], SLO) == 0


def test_each_second_and_each_service_is_a_cell_of_its_own() -> None:
    slow = [sample(t, 1.0) for t in (0.1, 0.2, 1.1, 5.0)]
    assert slo_violation_s(slow, SLO) == 3


def test_nearest_rank_is_one_of_the_values() -> None:
    assert nearest_rank([3.0, 1.0, math.inf], 0.5) == 3.0
    assert nearest_rank([1.0], 0.95) == 1.0


def test_a_run_counts_failures_into_its_quantiles() -> None:
    samples = [sample(0.0, 0.1) for _ in range(90)] + [sample(0.0, 0.0, 503) for _ in range(10)]
    summary = summarise(samples, counts_of({0: 1.0}), [], SLO, unsent=3)
    assert (summary.requests, summary.failed, summary.unsent) == (100, 10, 3)
    assert summary.p50_ms == 100.0
    assert summary.p99_ms == 1e3 * FAILED_AS_S
    assert summary.answered_p95_ms == 100.0


def test_cost_is_what_was_sent_at_the_price_of_its_second_per_answer() -> None:
    counts = counts_of({0: 1.0, 1: 1.0})
    prices = [
        PriceChange(0.0, "search-east", 1.0),
        PriceChange(0.0, "search-west", 9.0),
        PriceChange(1.0, "search-east", 8.0),
    ]
    assert price_at(prices, "search-east", 0.9) == 1.0
    assert price_at(prices, "search-east", 1.0) == 8.0
    # 100 at 1 and 100 at 8; half of the callers' requests failed, and are paid for.
    samples = [sample(0.0) for _ in range(100)] + [sample(0.0, status=503) for _ in range(100)]
    assert summarise(samples, counts, prices, SLO).usd_per_million == pytest.approx(9.0)


def test_no_requests_cost_nothing() -> None:
    assert summarise([], Counts(), [], SLO) == Summary(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0, 0.0)


def test_convergence_counts_ticks_until_two_thirds_are_gone() -> None:
    shares = dict.fromkeys(range(10), 0.45)
    shares |= {10: 0.45, 11: 0.3, 12: 0.15, 13: 0.05} | dict.fromkeys(range(14, 20), 0.02)
    shares |= dict.fromkeys(range(20, 60), 0.4)
    result = event_result(STORY.events[0], STORY, counts_of(shares), PROVIDERS)
    # Averages of two seconds: .45, .375, .225, .1.
    assert result.ticks_to_converge == 4
    assert result.share_before == pytest.approx(0.45)
    assert result.share_after == pytest.approx(0.02)
    assert result.share_recovered == pytest.approx(0.4)


def test_a_share_that_stays_never_converges() -> None:
    result = event_result(
        STORY.events[0], STORY, counts_of(dict.fromkeys(range(60), 0.5)), PROVIDERS
    )
    assert result.ticks_to_converge is None
    assert result.share_after == pytest.approx(0.5)


def test_a_split_is_as_far_from_the_baseline_as_its_worst_provider() -> None:
    counts = counts_of(dict.fromkeys(range(4), 0.5))
    baseline = {("checkout", "search"): {"search-east": 60, "search-west": 40}}
    off, sigmas = split_distance(counts, baseline, 0, 4) or (0.0, 0.0)
    assert off == pytest.approx(0.1)
    assert sigmas == pytest.approx(0.1 / math.sqrt(0.6 * 0.4 / 400))
    assert split_distance(counts, baseline, 4, 4) is None


def test_failures_are_explained_by_a_fault_of_their_own_service_only() -> None:
    assert unexplained_failures([sample(15.0, status=503)], STORY, Counts(), SERVICE_OF) == 0
    assert unexplained_failures([sample(22.0, status=503)], STORY, Counts(), SERVICE_OF) == 0
    assert unexplained_failures([sample(30.0, status=503)], STORY, Counts(), SERVICE_OF) == 1
    # payments-main is dead at 42 s: that is no excuse for search
    assert unexplained_failures([sample(42.0, status=503)], STORY, Counts(), SERVICE_OF) == 1


def test_failures_while_a_sidecar_ejects_an_endpoint_are_the_providers() -> None:
    counts = Counts()
    counts.ejected[30].add("search-east")
    assert unexplained_failures([sample(30.5, status=503)], STORY, counts, SERVICE_OF) == 0
    assert unexplained_failures([sample(33.5, status=503)], STORY, counts, SERVICE_OF) == 1


def test_statistics_are_read_by_provider() -> None:
    body = {
        "stats": [
            {"name": "cluster.search-east.upstream_rq_total", "value": 7},
            {"name": "cluster.search-east.membership_healthy", "value": 2},
            {"histograms": {}},
        ]
    }
    assert parse_stats(body) == {
        "search-east": {"upstream_rq_total": 7.0, "membership_healthy": 2.0}
    }


def test_only_the_weights_layer_counts_as_the_engines() -> None:
    key = "routing.checkout.search.search-east"
    entries = {
        key: {"layer_values": ["", "4500", ""], "final_value": "4500"},
        "routing.checkout.search.search-west": {"layer_values": ["1", "", ""]},
        "flags.checkout.x": {"layer_values": ["", "true", ""]},
    }
    assert parse_runtime({"layers": ["static", "weights", "admin"], "entries": entries}) == {
        key: "4500"
    }
    assert parse_runtime({"layers": ["static"], "entries": entries}) == {}


GOOD = Summary(100, 0, 0, 30.0, 100.0, 150.0, 100.0, 5, 0.6)
BAD = Summary(100, 20, 0, 40.0, 300.0, 900.0, 200.0, 50, 0.7)
RESULTS = (
    EventResult("brown-out", 10.0, 0.45, 0.02, 3, 0.4),
    EventResult("dearer", 25.0, 0.5, 0.1, 4, 0.4),
    EventResult("dies", 40.0, 0.6, 0.02, 2, 0.6),
)
DEAD_MAN = DeadMan(50.0, 4.2, 0.02, 1.1, 0, 2.5)


def test_every_claim_holds_when_the_numbers_do() -> None:
    verdicts = judge(STORY, GOOD, BAD, RESULTS, DEAD_MAN, 0, 4.0)
    assert [v.held for v in verdicts] == [True] * 10


def test_a_claim_that_the_numbers_deny_does_not_hold() -> None:
    silent = DeadMan(50.0, None, None, None, 1, None)
    never = tuple(EventResult(r.name, r.at_s, 0.5, 0.5, None, 0.1) for r in RESULTS)
    verdicts = judge(STORY, BAD, GOOD, never, silent, 2, 4.0)
    assert [v.held for v in verdicts] == [False] * 10


def test_a_weight_that_expires_too_late_or_into_another_split_does_not_hold() -> None:
    late = judge(STORY, GOOD, BAD, RESULTS, DeadMan(50.0, 5.1, 0.02, 1.1, 0, 2.5), 0, 4.0)
    skewed = judge(STORY, GOOD, BAD, RESULTS, DeadMan(50.0, 4.2, 0.3, 9.0, 0, 2.5), 0, 4.0)
    for verdicts in (late, skewed):
        assert [v.claim for v in verdicts if not v.held] == [
            "controller dies: every Envoy returns to the baseline by itself"
        ]


def test_a_short_run_leaves_claims_unjudged_but_judges_the_dead_man() -> None:
    events = tuple(
        Event(e.name, e.kind, e.at_s, e.at_s + 2.0, e.provider) for e in STORY.events[:3]
    )
    short = Story(30.0, (*events, STORY.events[3]))
    verdicts = judge(short, BAD, GOOD, RESULTS, DEAD_MAN, 0, 4.0)
    judged = [v.claim for v in verdicts if v.held is not None]
    assert len(judged) == 3
    assert all("control" in claim for claim in judged)
