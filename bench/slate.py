"""A published case: how much of a chain to offload to another region, found online.

SLATE (NSDI 2026), "how much to offload": frontend -> a -> b -> c -> d, the whole chain in west and
in east, one decision at frontend -> a. Each service answers in k x^n + b milliseconds at x
requests/s; an offloaded request pays the one-way latency twice.

``python -m bench.slate --one-way-ms 25 --loads 100,200 --json`` prints, for each load, the
requests/s kept at west and the tick at which that had settled. The engine is the real one: it
starts with everything at west (or as ``--start-share`` says), knows no coefficient, and learns
from the counts and latencies of sampled requests that sidecars would report.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.arguments import comma_separated, command, positive_integer, real
from bench.output import dumped
from xds_server.core.tables import Floats
from xds_server.engine.loop import tick
from xds_server.engine.problem import build_problem
from xds_server.engine.state import initial_state
from xds_server.engine.types import Group
from xds_server.model.ids import GroupKey, Locality
from xds_server.model.snapshot import Overlay
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, PairWindow, ProviderLoad
from xds_server.model.template import Call, Profile, Template
from xds_server.model.topology import (
    Address,
    Application,
    EngineSettings,
    Mesh,
    Mode,
    Price,
    Provider,
    ServerSettings,
    Service,
    TelemetrySettings,
)

COEFFICIENTS = (
    (3.5694e-10, 8.28917),
    (3.5146e-10, 7.13791),
    (4.3178e-10, 11.41196),
    (2.0290e-11, 0.76399),
)
"""k and b of each service."""
PUBLISHED = {100: 100, 200: 200, 300: 300, 400: 315, 500: 345, 600: 375, 700: 420, 800: 460}
"""Requests/s kept at west by west's load, as published for 25 ms one way."""
REGIONS = ("west", "east")
MOST_RPS = 1e6
"""Each request of a tick is drawn by itself; more than this take too long and too much memory."""
MOST_COEFFICIENT = 1e6
MOST_EXPONENT = 8.0
WINDOW_TICKS = 2
SETTLED_RPS = 5.0
"""A load has settled once it stays within this of where it ends (the mean of the last 10 ticks)."""
AVERAGED_TICKS = 10
DEADLINE = 20
"""Ticks within which the answer is to be found."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found for one load."""

    kept_rps: float  # at west in the end
    early_rps: float  # at west after ``DEADLINE`` ticks
    settled: int  # tick from which that stayed


@dataclass(frozen=True, slots=True)
class Chain:
    """Services in a row; the latency of one region's chain at x requests/s."""

    rise_ms: tuple[float, ...]
    base_ms: tuple[float, ...]
    exponent: float

    def latency_s(self, rps: float) -> float:
        """Mean response time of the whole chain."""
        return 1e-3 * float(sum(self.rise_ms) * rps**self.exponent + sum(self.base_ms))


@dataclass(frozen=True, slots=True)
class Case:
    """One load to be answered."""

    chain: Chain
    one_way_ms: float
    west_rps: float
    east_rps: float
    start_share: float
    ticks: int
    jitter_ratio: float  # standard deviation of one response time over its mean
    seed: int


@dataclass(slots=True)
class Sidecars:
    """Where the weights are in force; starts with what the operator configured."""

    shares: dict[str, Floats]

    def publish(self, overlay: Overlay, now_s: float) -> None:
        """Take weights over."""
        for group, services in overlay.weights.items():
            weights = np.array([services["a"][f"a-{region}"] for region in REGIONS], dtype=float)
            self.shares[group.locality.region] = weights / weights.sum()

    def renew(self, now_s: float) -> None:
        """Weights stay in force anyway: nothing here takes longer than their TTL."""


def answer(case: Case) -> Answer:
    """Find out online how much to keep at west."""
    mesh = _mesh(case)
    groups = [
        Group(GroupKey("frontend", "all", Locality(region)), frozenset({region}), "web", None, 0.0)
        for region in REGIONS
    ]
    problem = build_problem(mesh, {p.name: p.endpoints for p in mesh.providers.values()}, groups)
    state = initial_state(problem)
    start = np.array([case.start_share, 1.0 - case.start_share])
    sidecars = Sidecars({"west": start, "east": start[::-1].copy()})
    # The operator's baseline is one split for all; these sidecars begin with their own.
    for p, (r, j) in enumerate(zip(problem.pairs.route, problem.pairs.provider, strict=True)):
        region = problem.routes[r].group.locality.region
        name = problem.providers[j]
        state.shares[p] = sidecars.shares[region][REGIONS.index(name.removeprefix("a-"))]
    rng = np.random.default_rng(case.seed)
    slots: list[_Slot] = []
    kept = []
    for t in range(case.ticks):
        slots = [*slots[-WINDOW_TICKS + 1 :], _observe(case, sidecars.shares, rng)]
        tick(
            state,
            _window(slots),
            _no_load(problem.providers),
            sidecars,
            mesh.engine,
            mesh.mode,
            now_s=float(t + 1),
            elapsed_s=1.0,
        )
        kept.append(case.west_rps * float(sidecars.shares["west"][0]))
    end = float(np.mean(kept[-AVERAGED_TICKS:]))
    away = np.flatnonzero(np.abs(np.array(kept) - end) > SETTLED_RPS)
    early = kept[min(DEADLINE, case.ticks) - 1]
    return Answer(end, early, int(away[-1] + 2) if len(away) else 1)


@dataclass(frozen=True, slots=True)
class _Slot:
    """One tick of the four (callers, provider) pairs, callers first."""

    requests: Floats  # (4,)
    latency_sum_s: Floats  # (4,)
    hist: Floats  # (4, B + 1)


def _observe(case: Case, shares: dict[str, Floats], rng: np.random.Generator) -> _Slot:
    """Sample one second of requests, as sidecars would count them."""
    demand = {"west": case.west_rps, "east": case.east_rps}
    rates = np.array([[demand[c] * shares[c][p] for p in range(2)] for c in REGIONS])
    means = [case.chain.latency_s(float(rate)) for rate in rates.sum(axis=0)]
    spread = np.sqrt(np.log(1.0 + case.jitter_ratio**2))
    bounds = np.array(LATENCY_BUCKETS_MS) / 1e3
    requests, sums, hists = [], [], []
    for c, caller in enumerate(REGIONS):
        for p, provider in enumerate(REGIONS):
            count = int(rng.poisson(rates[c, p]))
            times = means[p] * rng.lognormal(-(spread**2) / 2, spread, count)
            times += 0.0 if caller == provider else 2e-3 * case.one_way_ms
            requests.append(float(count))
            sums.append(float(times.sum()))
            hists.append(np.bincount(np.searchsorted(bounds, times), minlength=len(bounds) + 1))
    return _Slot(np.array(requests), np.array(sums), np.array(hists, dtype=np.float64))


_NODE_ROW = np.array([0, 0, 1, 1])
_PROVIDER_ROW = np.array([0, 1, 0, 1])
_PROVIDERS = tuple(f"a-{region}" for region in REGIONS)


def _window(slots: list[_Slot]) -> PairWindow:
    requests = np.sum([s.requests for s in slots], axis=0)
    zeros = np.zeros(4)
    return PairWindow(
        window_s=float(WINDOW_TICKS),
        nodes=REGIONS,
        providers=_PROVIDERS,
        node_row=_NODE_ROW,
        provider_row=_PROVIDER_ROW,
        covered_s=np.full(4, float(len(slots))),
        requests=requests,
        errors=zeros,
        latency_sum_s=np.sum([s.latency_sum_s for s in slots], axis=0),
        latency_count=requests,
        latency_hist=np.sum([s.hist for s in slots], axis=0),
        active=zeros,
        rx_bytes=zeros,
        tx_bytes=zeros,
        age_s=np.full(4, 0.1),
    )


def _no_load(providers: tuple[str, ...]) -> ProviderLoad:
    blank = np.full(len(providers), np.nan)
    return ProviderLoad(providers, blank, blank, blank, blank)


def errors_rps(kept: dict[float, list[float]], early: dict[float, list[float]]) -> dict[str, float]:
    """Mean differences to what was published, requests/s, over those loads that were.

    Of the means over seeds, as published; after ``DEADLINE`` ticks likewise; and of each seed by
    itself, whose errors cannot cancel out.
    """
    known = [load for load in kept if load in PUBLISHED]
    if not known:
        return {}

    def of_means(found: dict[float, list[float]]) -> float:
        return float(np.mean([abs(np.mean(found[load]) - PUBLISHED[int(load)]) for load in known]))

    each = [abs(k - PUBLISHED[int(load)]) for load in known for k in kept[load]]
    return {
        "mean_error_rps": round(of_means(kept), 2),
        f"mean_error_after_{DEADLINE}_rps": round(of_means(early), 2),
        "mean_error_of_a_seed_rps": round(float(np.mean(each)), 2),
    }


def _mesh(case: Case) -> Mesh:
    providers = tuple(
        Provider(
            f"a-{region}",
            "a",
            locality=Locality(region),
            endpoints=(Address("127.0.0.1", 9000 + i),),
            price=Price(),
        )
        for i, region in enumerate(REGIONS)
    )
    template = Template(
        "web", (Call("a", "127.0.0.1:15001", timeout_s=10.0),), (Profile("all", cost_weight=0.0),)
    )
    return Mesh(
        "slate",
        Mode.ENFORCE,
        EngineSettings(),
        TelemetrySettings(),
        {"a": Service("a", providers)},
        {"web": template},
        {"frontend": Application("frontend", template)},
        ServerSettings(),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.slate", description=(__doc__ or "").split("\n\n")[0]
    )
    rps = real(0.0, MOST_RPS, "requests/s")
    parser.add_argument("--one-way-ms", type=real(0.0, 1e4, "ms"), default=25.0)
    parser.add_argument(
        "--loads",
        type=comma_separated(rps),
        default=tuple(map(float, PUBLISHED)),
        help=f"west's, requests/s, e.g. 100,200; up to {MOST_RPS:,.0f}",
    )
    parser.add_argument(
        "--east-rps", type=rps, default=100.0, help=f"east's own load, up to {MOST_RPS:,.0f}"
    )
    parser.add_argument(
        "--coefficients", type=_coefficients, default=COEFFICIENTS, help="k:b per service, ms"
    )
    parser.add_argument("--exponent", type=real(1.0, MOST_EXPONENT), default=4.0)
    parser.add_argument(
        "--start-share", type=real(0.0, 1.0), default=1.0, help="of west kept at west"
    )
    parser.add_argument("--ticks", type=positive_integer, default=40)
    parser.add_argument("--jitter-ratio", type=real(0.0, 10.0), default=0.5)
    parser.add_argument("--seeds", type=positive_integer, default=5)
    parser.add_argument("--json", action="store_true")
    return parser


def _coefficients(text: str) -> tuple[tuple[float, float], ...]:
    """Services in a row, ``k:b`` each; alike services may be in it."""
    number = real(0.0, MOST_COEFFICIENT, "ms")
    found = []
    for part in text.split(","):
        words = part.split(":")
        if len(words) != 2:
            raise argparse.ArgumentTypeError(f"{part!r}: k:b is allowed, as in 3.5e-10:8.3")
        found.append((number(words[0]), number(words[1])))
    return tuple(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, answer, print."""
    parser = _parser()
    options = parser.parse_args(arguments)
    pairs = options.coefficients
    chain = Chain(tuple(k for k, _ in pairs), tuple(b for _, b in pairs), options.exponent)
    found = {
        load: [
            answer(
                Case(
                    chain,
                    options.one_way_ms,
                    load,
                    options.east_rps,
                    options.start_share,
                    options.ticks,
                    options.jitter_ratio,
                    seed,
                )
            )
            for seed in range(options.seeds)
        ]
        for load in options.loads
    }
    kept = {load: [a.kept_rps for a in each] for load, each in found.items()}
    early = {load: [a.early_rps for a in each] for load, each in found.items()}
    settled = {load: [a.settled for a in each] for load, each in found.items()}
    result: dict[str, object] = {
        "kept_at_west": [round(float(np.mean(each)), 1) for each in kept.values()],
        "ticks": [int(np.median(each)) for each in settled.values()],
    }
    standard = options.one_way_ms == 25.0 and options.coefficients == COEFFICIENTS
    if standard and options.exponent == 4.0 and options.east_rps == 100.0:
        result |= errors_rps(kept, early)
    result["command"] = command("bench.slate", parser, options)
    if options.json:
        print(dumped(result))
        return
    for key, value in result.items():
        print(f"{key:16} {value}")


if __name__ == "__main__":
    main()
