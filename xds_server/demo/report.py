"""What was measured, as numbers: pure functions over samples, counts and prices."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from xds_server.demo.load import Sample
from xds_server.demo.observe import Counts
from xds_server.demo.story import Event, Story
from xds_server.model.ids import ApplicationName, ProviderName, ServiceName

FAILED_AS_S: Final = 5.0
"""What a failed request counts as in quantiles over a whole run: the client's own time-out.
Leaving failures out would flatter whoever fails most."""
BEFORE_S: Final = 4
"""Seconds before an event over which a share is averaged."""
SMOOTH_S: Final = 2
"""Seconds over which a share is averaged while it is looked for."""
GRACE_S: Final = 3.0
"""After a provider's fault is over, for what was in flight and in its queue."""


@dataclass(frozen=True, slots=True)
class PriceChange:
    """From that second of the story on, a provider costs that."""

    at_s: float
    provider: ProviderName
    usd_per_million: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One run.

    requests, failed
        as the load generator saw them; ``unsent`` were kept back by its own limit.
    p50_ms, p95_ms, p99_ms
        over all requests, each failed one taken as ``FAILED_AS_S``.
    answered_p95_ms
        over those that did not fail: what is left to see when failures are looked away from.
    slo_violation_s
        (application, service, second) cells in which the p95 of that second's requests,
        failed ones infinitely slow, exceeds the application's SLO.
    usd_per_million
        what all requests that sidecars sent cost, at the provider's price in that second,
        per million requests that callers got an answer to.
    """

    requests: int
    failed: int
    unsent: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    answered_p95_ms: float
    slo_violation_s: int
    usd_per_million: float


@dataclass(frozen=True, slots=True)
class EventResult:
    """How the affected provider's share of its service followed an event.

    ``share_before``: mean of the ``BEFORE_S`` seconds before. ``share_after``: mean of the
    event's second half. ``ticks_to_converge``: seconds from the event until the share,
    averaged over ``SMOOTH_S`` seconds, is at most a third of ``share_before``; None: never
    while it lasted. ``share_recovered``: mean of the last ``BEFORE_S`` seconds before the
    next event that concerns a provider or the controller.
    """

    name: str
    at_s: float
    share_before: float
    share_after: float
    ticks_to_converge: int | None
    share_recovered: float


@dataclass(frozen=True, slots=True)
class DeadMan:
    """What happened without a controller; times in seconds, None: did not happen.

    ``back_to_baseline_s``: from SIGKILL until no sidecar has a weight of the engine.
    ``split_off_by``: largest distance of a provider's observed share from its baseline
    share between then and the restart. ``split_sigmas``: the same, in standard deviations
    of a split by chance. ``failed_while_down``: failed requests that started between kill
    and restart. ``resumed_s``: from restart until every sidecar has engine weights again.
    """

    killed_at_s: float
    back_to_baseline_s: float | None
    split_off_by: float | None
    split_sigmas: float | None
    failed_while_down: int
    resumed_s: float | None


def summarise(
    samples: Sequence[Sample],
    counts: Counts,
    prices: Sequence[PriceChange],
    slo_s: Mapping[tuple[ApplicationName, ServiceName], float],
    unsent: int = 0,
) -> Summary:
    """Return the figures of one run."""
    latencies = [FAILED_AS_S if s.failed else s.latency_s for s in samples]
    p50, p95, p99 = np.quantile(latencies, (0.5, 0.95, 0.99)) * 1e3 if latencies else (0.0,) * 3
    fine = [s.latency_s for s in samples if not s.failed]
    failed = len(samples) - len(fine)
    usd = cost_usd(counts, prices)
    return Summary(
        requests=len(samples),
        failed=failed,
        unsent=unsent,
        p50_ms=round(float(p50), 2),
        p95_ms=round(float(p95), 2),
        p99_ms=round(float(p99), 2),
        answered_p95_ms=round(float(np.quantile(fine, 0.95)) * 1e3, 2) if fine else 0.0,
        slo_violation_s=slo_violation_s(samples, slo_s),
        usd_per_million=round(usd / len(fine) * 1e6, 4) if fine else 0.0,
    )


def slo_violation_s(
    samples: Iterable[Sample], slo_s: Mapping[tuple[ApplicationName, ServiceName], float]
) -> int:
    """Return the number of (application, service, second) cells beyond their SLO."""
    cells: dict[tuple[ApplicationName, ServiceName, int], list[float]] = defaultdict(list)
    for s in samples:
        latency_s = math.inf if s.failed else s.latency_s
        cells[s.application, s.service, int(s.start_s)].append(latency_s)
    return sum(
        nearest_rank(latencies, 0.95) > slo_s[application, service]
        for (application, service, _), latencies in cells.items()
    )


def nearest_rank(values: Sequence[float], ratio: float) -> float:
    """Return the quantile that is one of the values; infinite ones are allowed."""
    return sorted(values)[max(0, math.ceil(ratio * len(values)) - 1)]


def cost_usd(counts: Counts, prices: Sequence[PriceChange]) -> float:
    """Return what all requests sent upstream cost, each at the price of its second."""
    return sum(
        n * price_at(prices, provider, second + 0.5) / 1e6
        for (second, _, provider), n in counts.sent.items()
    )


def price_at(prices: Sequence[PriceChange], provider: ProviderName, at_s: float) -> float:
    """Return the last price set by then."""
    current = 0.0
    for change in prices:
        if change.provider == provider and change.at_s <= at_s:
            current = change.usd_per_million
    return current


def share(
    counts: Counts, provider: ProviderName, rivals: Sequence[ProviderName], from_s: int, to_s: int
) -> float:
    """Return a provider's share of its service's requests in seconds [from_s, to_s)."""
    mine = total = 0.0
    for (second, _, name), n in counts.attempts.items():
        if from_s <= second < to_s and name in rivals:
            total += n
            mine += n if name == provider else 0.0
    return mine / total if total else 0.0


def event_result(
    event: Event, story: Story, counts: Counts, rivals: Sequence[ProviderName]
) -> EventResult:
    """Return how one provider's share followed its event."""
    start, end = round(event.at_s), round(event.until_s)
    before = share(counts, event.provider, rivals, max(0, start - BEFORE_S), start)
    ticks = None
    for tick in range(1, end - start + 1):
        to_s = start + tick
        now = share(counts, event.provider, rivals, max(start, to_s - SMOOTH_S), to_s)
        if now <= before / 3.0:
            ticks = tick
            break
    later = [e.at_s for e in story.events if e.at_s >= event.until_s]
    recovered_by = int(min(later, default=story.duration_s))
    recovered = share(
        counts, event.provider, rivals, max(end, recovered_by - BEFORE_S), recovered_by
    )
    after = share(counts, event.provider, rivals, (start + end) // 2, end)
    return EventResult(
        event.name, round(event.at_s, 1), round(before, 4), round(after, 4), ticks,
        round(recovered, 4),
    )  # fmt: skip


def split_distance(
    counts: Counts,
    baseline: Mapping[tuple[ApplicationName, ServiceName], Mapping[ProviderName, int]],
    from_s: int,
    to_s: int,
) -> tuple[float, float] | None:
    """Return how far splits are from the baseline at most: in shares, and in sigmas.

    None when there is no whole second, or no request, to judge by.
    """
    worst = sigmas = 0.0
    seen = False
    for (application, _), weights in baseline.items():
        n = {
            p: sum(counts.attempts.get((s, application, p), 0.0) for s in range(from_s, to_s))
            for p in weights
        }
        total, of = sum(n.values()), sum(weights.values())
        if total == 0.0:
            continue
        seen = True
        for provider, weight in weights.items():
            expected = weight / of
            off = abs(n[provider] / total - expected)
            worst = max(worst, off)
            sigmas = max(sigmas, off / max(1e-9, math.sqrt(expected * (1 - expected) / total)))
    return (worst, sigmas) if seen else None


def unexplained_failures(
    samples: Iterable[Sample],
    story: Story,
    counts: Counts,
    service_of: Mapping[ProviderName, ServiceName],
) -> int:
    """Return failed requests of services of which no provider was at fault.

    A provider is at fault during its event, ``GRACE_S`` longer, and as long as a sidecar
    keeps an endpoint of it ejected.
    """
    faults = [
        (service_of[e.provider], e.at_s, e.until_s + GRACE_S)
        for e in story.events
        if e.is_provider_fault
    ]
    ejected = {(service_of[p], second) for second, names in counts.ejected.items() for p in names}
    return sum(
        1
        for s in samples
        if s.failed
        and not any(
            # What was in flight when the fault began was hit by it too.
            service == s.service and a <= s.start_s + s.latency_s and s.start_s <= b
            for service, a, b in faults
        )
        and not any((s.service, int(s.start_s) + d) in ejected for d in (-1, 0, 1))
    )
