"""A status and an explanation with one of everything that an operator can meet."""

import math
from dataclasses import replace

from xds_server.model.decision import HoldReason, Move
from xds_server.model.explanation import Explanation, Option, ProviderTerm, Verdict
from xds_server.model.ids import GroupKey, Locality, RouteKey
from xds_server.model.slow import SlowStatus
from xds_server.model.status import (
    BandStatus,
    BottleneckStatus,
    NodeStatus,
    ProviderStatus,
    RouteStatus,
    ShareStatus,
    Status,
    TypeStatus,
)

TYPES = (
    TypeStatus("CDS", "a1b2c3d4e5", "a1b2c3d4e5", 0, "", 0.0, silent=False),
    TypeStatus("LDS", "bad0bad0", "good", 2, "duplicate listener", 0.0, silent=False),
    TypeStatus("RDS", "77~1", "77~1", 1, "no domains", 0.0, silent=False, refused=("shop.a",)),
    TypeStatus("CDS", "78", "77", 0, "", 7.0, silent=True, lacks=("a", "b")),
    TypeStatus("RTDS", "77", "76", 0, "", 31.0, silent=True),
)
NODE = NodeStatus(
    node_id="checkout-1",
    application="checkout",
    locality="us-east-1/a",
    phase="peak_usage",
    phase_s=75.0,
    age_s=3700.0,
    protocol="delta",
    weights_via="rtds",
    telemetry_age_s=0.4,
    rps=82.5,
    error_ratio=0.01,
    latency_p95_ms=180.0,
    types=TYPES,
    behaviour=(BandStatus("call_rate_rps", "search", 150.0, 2.0, 120.0, "breach"),),
    waiting_for=("search-new",),
)
ROUTE = RouteStatus(
    application="checkout",
    phase="peak_usage",
    locality="us-east-1/a",
    service="search",
    instances=1,
    demand_rps=82.5,
    latency_ms=None,
    latency_p95_ms=250.0,
    slo_p95_ms=200.0,
    predicted_latency_ms=math.nan,
    usd_per_million=0.4,
    move="hold",
    hold_reason="gain below switching cost",
    providers=(
        ShareStatus("search-east", 7500, 0.75, 0.6, 0.74, ""),
        ShareStatus("search-west", 2500, 0.25, 0.4, None, ""),
        ShareStatus("search-managed", 0, 0.0, 0.0, None, "standby"),
    ),
)
STATUS = Status(
    mesh="shop",
    mode="enforce",
    uptime_s=3725.0,
    ticks=3700,
    last_tick_age_s=0.3,
    last_tick_ms=2.4,
    config_path="mesh.yaml",
    config_error="mesh.yaml:3: mode: unknown",
    inert_keys=("history: the history adapter will use it",),
    nodes=(NODE,),
    routes=(ROUTE,),
    providers=(
        ProviderStatus("search-east", "search", 2, 60.0, 20.0, 45.0, 0.0, 0.9, math.inf, 0.4),
    ),
    bottlenecks=(BottleneckStatus("search-east", 0.9, 430.0),),
    slow=(
        SlowStatus("substitute", "search-managed", "in", "", "leave", "9 ms there", 75.0),
        SlowStatus("scale", "search-east", "2", "3", "", "3 instead of 2 gain 1 $/h", 0.0),
    ),
)


def _term(provider: str, share: float, latency_ms: float, rent_ms: float, **more: object):
    total = latency_ms + 4.0
    term = ProviderTerm(
        provider=provider,
        share=share,
        baseline_share=0.5,
        observed_share=share,
        allowed=True,
        excluded_because="",
        latency_ms=latency_ms,
        queueing_ms=2.0,
        queueing_rent_ms=rent_ms,
        distance_ms=0.0,
        backlog_ms=0.0,
        error_ms=0.5,
        price_ms=1.0,
        egress_ms=0.5,
        geography_ms=0.0,
        slo_ms=0.0,
        total_ms=total,
        marginal_ms=total + rent_ms,
        usd_per_million=0.5,
        verdict=Verdict.SETTLED,
        optimum_share=share,
        floor_share=0.02,
        short_ms=0.0,
        short_usd_per_million=0.0,
        ticks=None,
    )
    return replace(term, **more)


EXPLANATION = Explanation(
    route=RouteKey(GroupKey("checkout", "peak_usage", Locality("us-east-1", "a")), "search"),
    decided_at_s=12.0,
    move=Move.REWEIGHT,
    hold_reason=HoldReason.NONE,
    demand_rps=82.5,
    predicted_latency_ms=24.0,
    observed_latency_ms=math.nan,
    gain_ms=3.5,
    doubt_ms=1.2,
    gain_terms={"latency": 2.0, "queueing": 1.5, "rent": 1.0, "price": -0.8, "switching": -0.2},
    options=(
        Option(Move.REWEIGHT, 0.3, 3.5, 290.0, chosen=True, lost_because=""),
        Option(Move.REWEIGHT, 0.15, 2.5, 205.0, False, "the mesh would cost 85 ms/s more"),
    ),
    next_provider="search-west",
    terms=(
        _term("search-east", 0.7, 20.0, 9.0, verdict=Verdict.FALLING, optimum_share=0.5, ticks=3),
        _term(
            "search-far",
            0.02,
            40.0,
            1.0,
            verdict=Verdict.NOT_WORTH,
            optimum_share=0.02,
            short_ms=4.2,
            short_usd_per_million=0.31,
        ),
        _term("search-west", 0.28, 26.0, 1.0, verdict=Verdict.RISING, optimum_share=0.48, ticks=3),
        _term(
            "search-managed",
            0.0,
            5.0,
            0.0,
            allowed=False,
            excluded_because="standby",
            verdict=Verdict.EXCLUDED,
            optimum_share=0.0,
        ),
    ),
    no_candidates={"search-mini": "lacks vectors"},
)
