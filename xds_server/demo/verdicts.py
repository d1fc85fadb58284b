"""The claims of the story, each judged by what was measured; or said to be not judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from xds_server.demo.report import FAILED_AS_S, DeadMan, EventResult, Summary
from xds_server.demo.story import Event, Kind, Story

TICKS_MAX: Final = 6
JUDGED_EVENT_S: Final = 6.0
"""Events shorter than this leave the engine no time; their claims are not judged."""
SPLIT_SIGMAS_MAX: Final = 4.0
JUDGED_RETURN_S: Final = 10.0
"""A provider that recovered is probed, believed and refilled, in that order."""
FACTOR_MIN: Final = 2.0
_P95: Final = f"p95 of all requests (failed: {FAILED_AS_S * 1e3:g} ms)"
DEARER_FALL_RATIO: Final = 0.5
"""A dearer provider keeps at most this part of its share: it still works, after all."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim. ``held`` is None when the run was too short to judge it."""

    claim: str
    measured: str
    target: str
    held: bool | None


def judge(
    story: Story,
    adaptive: Summary,
    static: Summary,
    results: Sequence[EventResult],
    dead_man: DeadMan,
    unexplained: int,
    weights_ttl_s: float,
) -> tuple[Verdict, ...]:
    """Return every claim with its verdict."""
    by_name = {r.name: r for r in results}
    slower, dearer, killed = (story.of(k) for k in (Kind.SLOWER, Kind.DEARER, Kind.PROVIDER_KILLED))
    long_enough = slower.until_s - slower.at_s >= JUDGED_EVENT_S
    returned = dearer.at_s - slower.until_s >= JUDGED_RETURN_S
    return (
        _falls(slower, by_name[slower.name]),
        _given_back(slower, by_name[slower.name], long_enough and returned),
        _dearer_falls(dearer, by_name[dearer.name]),
        _falls(killed, by_name[killed.name]),
        _to_baseline(dead_man, weights_ttl_s),
        _harmless(dead_man, unexplained),
        _resumed(dead_man),
        _factor(_P95, adaptive.p95_ms, static.p95_ms, "ms", long_enough),
        _factor(
            "SLO violation", adaptive.slo_violation_s, static.slo_violation_s, "s", long_enough
        ),
        _no_dearer(adaptive, static, long_enough),
    )


def _judged(event: Event, held: bool) -> bool | None:
    return held if event.until_s - event.at_s >= JUDGED_EVENT_S else None


def _falls(event: Event, r: EventResult) -> Verdict:
    ticks = "never" if r.ticks_to_converge is None else f"after {r.ticks_to_converge} ticks"
    return Verdict(
        f"{event.name}: its share falls by two thirds",
        f"{r.share_before:.0%} -> {r.share_after:.0%}, {ticks}",
        f"within {TICKS_MAX} ticks",
        _judged(event, r.ticks_to_converge is not None and r.ticks_to_converge <= TICKS_MAX),
    )


def _given_back(event: Event, r: EventResult, long_enough: bool) -> Verdict:
    return Verdict(
        f"{event.provider} recovered: it gets its share back",
        f"{r.share_recovered:.0%} of the calls, {r.share_before:.0%} before",
        "at least half",
        r.share_recovered >= 0.5 * r.share_before if long_enough else None,
    )


def _dearer_falls(event: Event, r: EventResult) -> Verdict:
    return Verdict(
        f"{event.name}: its share falls",
        f"{r.share_before:.0%} -> {r.share_after:.0%}",
        "to half or less",
        _judged(event, r.share_after <= DEARER_FALL_RATIO * r.share_before),
    )


def _to_baseline(dead_man: DeadMan, weights_ttl_s: float) -> Verdict:
    limit_s = weights_ttl_s + 1.0
    took = dead_man.back_to_baseline_s
    if took is None:
        measured = "not while it was away"
    elif dead_man.split_sigmas is None or dead_man.split_off_by is None:
        measured = f"{took:.1f} s; no whole second left to see the split"
    else:
        measured = f"{took:.1f} s; split within {dead_man.split_off_by:.1%} of the baseline"
    near = dead_man.split_sigmas is not None and dead_man.split_sigmas <= SPLIT_SIGMAS_MAX
    return Verdict(
        "controller dies: every Envoy returns to the baseline by itself",
        measured,
        f"within {limit_s:g} s, split as by chance",
        took is not None and took <= limit_s and near,
    )


def _harmless(dead_man: DeadMan, unexplained: int) -> Verdict:
    return Verdict(
        "no request fails because of the control plane",
        f"{dead_man.failed_while_down} while it was dead, "
        f"{unexplained} in the whole run without a provider's fault",
        "0 and 0",
        dead_man.failed_while_down == 0 and unexplained == 0,
    )


def _resumed(dead_man: DeadMan) -> Verdict:
    took = dead_man.resumed_s
    return Verdict(
        "controller returns: every Envoy has the engine's weights again",
        "not before the end" if took is None else f"{took:.1f} s after its start",
        "before the end",
        took is not None,
    )


def _factor(what: str, adaptive: float, static: float, unit: str, long_enough: bool) -> Verdict:
    times = f"{static / adaptive:.1f} times" if adaptive else "infinitely"
    return Verdict(
        f"{what}: adaptive beats static weights",
        f"{adaptive:g} {unit} against {static:g} {unit}, {times} better",
        f"at least {FACTOR_MIN:g} times",
        (static > 0 and static >= FACTOR_MIN * adaptive) if long_enough else None,
    )


def _no_dearer(adaptive: Summary, static: Summary, long_enough: bool) -> Verdict:
    return Verdict(
        "adaptive is no dearer than static weights",
        f"${adaptive.usd_per_million:.3f} against ${static.usd_per_million:.3f} per million",
        "no higher",
        adaptive.usd_per_million <= static.usd_per_million if long_enough else None,
    )
