"""The rows of the table of targets that the laboratory can judge."""

from typing import Final

import numpy as np

from bench.lab.figures import DELAYED, INSTANT
from bench.lab.found import OURS, Found
from bench.lab.layout import TIMEOUT_S
from bench.lab.targets import INSTANT_LIMITS, Row

LATENCY_ONLY: Final = ("least_request", "wrr_a58", "l3", "greedy_fastest")
STEP_LIKE: Final = ("step", "degraded_15", "price_spike", "outage", "bimodal")
"""Worlds with one lasting change, from which one can converge."""
HARM_POSSIBLE: Final = ("hidden_bottleneck", "liar", "retry_storm")
"""Worlds in which load may do a provider harm that no report of it tells."""
_CHEAPER: Final = 25.0
_REVERTS_MOST: Final = 2.0


def targets(found: Found, delay: int = 2) -> list[Row]:
    """Every target that these runs can judge."""
    if delay not in found.delays:
        return []
    rows = [_late(found, d) for d in found.delays]
    rows += [_instant(found, world) for world in INSTANT_LIMITS if found.of(delay, world)]
    if found.rivals(delay, found.worlds(delay)[0]):
        rows += [
            _better(found, delay),
            _faster(found, delay),
            _cheaper(found, delay),
            _slo(found, delay),
        ]
    return [
        *rows,
        *[_converged(found, d) for d in found.delays],
        _overshoot(found, delay),
        _flips(found, delay, "steady", 4.0),
        _flips(found, delay, "event", 12.0),
        *_faults(found, delay),
        _coverage(found, delay),
        *[row for d in found.delays for row in _false_reverts(found, d)],
        *[_explained(found, d) for d in found.delays],
    ]


def _verdict(missed: list[str], all_: int) -> str:
    return f"held in {all_ - len(missed)} of {all_} worlds" + (
        f"; not in {', '.join(missed)}" if missed else ""
    )


def _late(found: Found, delay: int) -> Row:
    worlds = found.worlds(delay)
    regret = {w: 100.0 * found.mean(delay, w, OURS, "regret_delayed") for w in worlds}
    missed = [f"{w} ({v:.1f} %)" for w, v in regret.items() if not v <= 5.0]
    return Row(
        "3-late",
        f"median {np.median(list(regret.values())):.1f} %; {_verdict(missed, len(worlds))}",
        not missed,
        found.command(delay),
        f"D = {delay}",
    )


def _instant(found: Found, world: str) -> Row:
    values = 100.0 * found.seeds(2, world, OURS, "regret_instant")
    late = 100.0 * found.mean(2, world, DELAYED, "regret_instant")
    return Row(
        f"3-{world}",
        f"{np.mean(values):.1f} % ({values.min():.1f} to {values.max():.1f}); "
        f"of these {late:.1f} are the delay's",
        bool(np.mean(values) <= INSTANT_LIMITS[world]),
        found.command(2),
    )


def _better(found: Found, delay: int) -> Row:
    missed = []
    worlds = found.worlds(delay)
    for world in worlds:
        rival, cost = found.best(delay, world, "cost_ms")
        mine = found.mean(delay, world, OURS, "cost_ms")
        if not mine < cost:
            missed.append(f"{world} ({rival} {100.0 * (mine / cost - 1.0):.1f} % better)")
    return Row("4-objective", _verdict(missed, len(worlds)), not missed, found.command(delay))


def _faster(found: Found, delay: int) -> Row:
    """Against the rivals that are no dearer (2 %), time with a second for each failure."""

    def time_ms(world: str, policy: str) -> float:
        failed = found.mean(delay, world, policy, "failed_ratio")
        return found.mean(delay, world, policy, "latency_ms") + 1e3 * TIMEOUT_S * failed

    missed, rivals, worlds = [], 0, found.worlds(delay)
    for world in worlds:
        usd, mine = found.mean(delay, world, OURS, "usd_per_million"), time_ms(world, OURS)
        for policy in found.rivals(delay, world):
            if found.mean(delay, world, policy, "usd_per_million") > 1.02 * usd:
                continue
            rivals += 1
            if time_ms(world, policy) <= mine:
                missed.append(f"{world} ({policy}: {time_ms(world, policy):.0f} to {mine:.0f} ms)")
    return Row(
        "4-faster",
        f"{rivals} such policies in {len(worlds)} worlds"
        + (f"; faster are {', '.join(missed)}" if missed else "; none is faster"),
        not missed,
        found.command(delay),
    )


def saved_percent(found: Found, delay: int, world: str) -> tuple[float, float] | None:
    """Dollars below the cheapest latency-only policy as fast as ours: ours, the clairvoyant's.

    As fast is a p99 that is no more than 10 % above ours; None where no such policy is. The
    clairvoyant minimises the objective, not dollars: it says what was to be had without giving
    anything else away.
    """
    usd, p99 = (found.mean(delay, world, OURS, n) for n in ("usd_per_million", "p99_ms"))
    alike = [
        found.mean(delay, world, p, "usd_per_million")
        for p in LATENCY_ONLY
        if p in found.policies(delay, world) and found.mean(delay, world, p, "p99_ms") <= 1.1 * p99
    ]
    if not alike:
        return None
    best = found.mean(delay, world, INSTANT, "usd_per_million")
    return 100.0 * (1.0 - usd / min(alike)), 100.0 * (1.0 - best / min(alike))


def _cheaper(found: Found, delay: int) -> Row:
    each = {w: saved_percent(found, delay, w) for w in found.worlds(delay)}
    known = {w: pair for w, pair in each.items() if pair is not None}
    command = found.command(delay)
    if not known:
        return Row("4-dollars", "no latency-only policy reached our p99 anywhere", None, command)
    missed = [
        f"{w} ({mine:.0f} of {best:.0f} %)" for w, (mine, best) in known.items() if mine < _CHEAPER
    ]
    saved, possible = np.array(list(known.values())).T
    return Row(
        "4-dollars",
        f"{saved.min():.0f} to {saved.max():.0f} % less, median {np.median(saved):.0f}; the "
        f"instant clairvoyant itself saves {possible.min():.0f} to {possible.max():.0f} %, median "
        f"{np.median(possible):.0f}; {_verdict(missed, len(saved))} (ours of the clairvoyant's)",
        not missed,
        command,
    )


def slo_seconds(found: Found, delay: int, world: str) -> tuple[float, str, float, str, float]:
    """SLO-violation seconds: ours; the best rival by objective; the rival with the fewest."""
    best, _ = found.best(delay, world, "cost_ms")
    fewest, least = found.best(delay, world, "slo_minutes")
    ours, best_s = (60.0 * found.mean(delay, world, p, "slo_minutes") for p in (OURS, best))
    return ours, best, best_s, fewest, 60.0 * least


def _slo(found: Found, delay: int) -> Row:
    """The best policy is the one of target 4: the one with the lowest objective."""
    worlds = found.worlds(delay)
    missed, dearer = [], 0
    for world in worlds:
        ours, best, best_s, _, fewest_s = slo_seconds(found, delay, world)
        if not ours <= 0.25 * best_s:
            missed.append(f"{world} ({ours:.2g} s to {best_s:.2g} s of {best})")
        dearer += ours <= 0.25 * fewest_s
    return Row(
        "6-slo",
        f"best by objective, as in target 4: {_verdict(missed, len(worlds))}. Against the fewest "
        f"of anyone, whatever it costs: in {dearer} of {len(worlds)}; seconds are below",
        not missed,
        found.command(delay),
    )


def _converged(found: Found, delay: int) -> Row:
    worlds = [w for w in found.worlds(delay) if w in STEP_LIKE]
    ticks = {w: float(np.median(found.seeds(delay, w, OURS, "converged_ticks"))) for w in worlds}
    missed = [f"{w} ({v:.0f})" for w, v in ticks.items() if not v <= delay + 4]
    command, case = found.command(delay), f"D = {delay}"
    if not worlds:
        return Row("5-converged", "no world of one lasting change was run", None, command, case)
    return Row("5-converged", _verdict(missed, len(worlds)), not missed, command, case)


def _overshoot(found: Found, delay: int) -> Row:
    values = {w: 100.0 * found.mean(delay, w, OURS, "overshoot") for w in found.worlds(delay)}
    values = {w: v for w, v in values.items() if not np.isnan(v)}
    command = found.command(delay)
    if not values:
        return Row("5-overshoot", "nothing that could overshoot was run", None, command)
    worst = max(values, key=lambda w: values[w])
    held = sum(v <= 10.0 for v in values.values())
    return Row(
        "5-overshoot",
        f"median {np.median(list(values.values())):.1f} %, most {values[worst]:.1f} % ({worst}); "
        f"held in {held} of {len(values)} worlds",
        held == len(values),
        command,
    )


def _flips(found: Found, delay: int, when: str, limit: float) -> Row:
    """Where the truth itself alternates, so does the delayed clairvoyant."""
    name, worlds = f"flips_per_route_hour_{when}", found.worlds(delay)
    ours, theirs = (
        {w: found.mean(delay, w, policy, name) for w in worlds} for policy in (OURS, DELAYED)
    )
    worst = max(ours, key=lambda w: ours[w])
    held = sum(v <= limit for v in ours.values())
    theirs_held = sum(v <= limit for v in theirs.values())
    return Row(
        f"5-flips-{when}",
        f"median {np.median(list(ours.values())):.1f}, most {ours[worst]:.1f} ({worst}); held in "
        f"{held} of {len(worlds)} worlds. The delayed clairvoyant: median "
        f"{np.median(list(theirs.values())):.1f}, most {max(theirs.values()):.1f}; held in "
        f"{theirs_held}",
        held == len(worlds),
        found.command(delay),
    )


def _faults(found: Found, delay: int) -> list[Row]:
    rows = []
    worlds, command = found.worlds(delay), found.command(delay)
    for world in ("telemetry_dropped", "telemetry_stale"):
        if world in worlds and "step" in worlds:
            more = 100.0 * (
                found.mean(delay, world, OURS, "regret_instant")
                - found.mean(delay, "step", OURS, "regret_instant")
            )
            rows.append(Row(f"7-{world}", f"{more:+.1f} points", more <= 3.0, command))
    if "liar" in worlds:
        share = 100.0 * found.seeds(delay, "liar", OURS, "liar_share")
        best = 100.0 * found.mean(delay, "liar", INSTANT, "liar_share")
        rows.append(
            Row(
                "7-liar",
                f"{share.mean():.1f} % (most {share.max():.1f}); the clairvoyant's is {best:.1f} %",
                bool(share.mean() <= 5.0),
                command,
            )
        )
    return rows


def _coverage(found: Found, delay: int) -> Row:
    values = {w: 100.0 * found.mean(delay, w, OURS, "coverage_90") for w in found.worlds(delay)}
    missed = [f"{w} ({v:.1f} %)" for w, v in values.items() if not 85.0 <= v <= 95.0]
    return Row(
        "8-coverage",
        f"{min(values.values()):.1f} to {max(values.values()):.1f} %; "
        + _verdict(missed, len(values)),
        not missed,
        found.command(delay),
    )


def reverts(found: Found, delay: int, world: str) -> tuple[float, float]:
    """Reverts, and routes pushed; sums over seeds."""
    back, pushed = (found.seeds(delay, world, OURS, name).sum() for name in ("reverts", "pushes"))
    return float(back), float(pushed)


def _false_reverts(found: Found, delay: int) -> list[Row]:
    """Every revert in a world in which no move is harmful is false."""
    worlds = [w for w in found.worlds(delay) if w not in HARM_POSSIBLE]
    if not worlds:
        return []
    counted = {w: reverts(found, delay, w) for w in worlds}
    back, pushed = np.sum(list(counted.values()), axis=0)
    percent = {w: 100.0 * b / max(p, 1.0) for w, (b, p) in counted.items()}
    worst = max(percent, key=lambda w: percent[w])
    missed = [f"{w} ({v:.2f} %)" for w, v in percent.items() if not v < _REVERTS_MOST]
    return [
        Row(
            "8-false",
            f"{back:.0f} in {pushed:.0f} pushes of a route ({100.0 * back / max(pushed, 1.0):.2f} "
            f"%), most in {worst} ({percent[worst]:.2f} %); {_verdict(missed, len(worlds))}",
            not missed,
            found.command(delay),
            f"laboratory's worlds without harm, D = {delay}",
        )
    ]


def _explained(found: Found, delay: int) -> Row:
    figures = [
        f["policies"][OURS]["figures"] for w in found.worlds(delay) for f in found.of(delay, w)
    ]
    pushes, without = (sum(f[name] for f in figures) for name in ("pushes", "unexplained"))
    off = max(f["terms_off_most"] for f in figures)
    return Row(
        "9-explained",
        f"{pushes:.0f} pushes of a route: largest relative difference {off:.0e}; the terms of "
        f"{without:.0f} pushes ({100.0 * without / max(pushes, 1.0):.2f} %) are those of a plan "
        "that was not what was pushed",
        off <= 0.01 and without == 0,
        found.command(delay),
        f"D = {delay}",
    )
