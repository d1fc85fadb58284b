"""A mesh that answers: exact M/M/c stations with a backlog, seen through a noisy window.

Deliberately not the engine's own latency model (Sakasegawa): Erlang C for a station that
keeps up, and a fluid queue for one that does not.
"""

from dataclasses import dataclass, field

import numpy as np

from xds_server.engine.adopt import adopt
from xds_server.engine.loop import Tick, tick
from xds_server.engine.problem import build_problem
from xds_server.engine.state import EngineState, initial_state
from xds_server.engine.types import Group
from xds_server.model.ids import GroupKey, Locality
from xds_server.model.snapshot import Overlay
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, PairWindow, ProviderLoad
from xds_server.model.template import Call, Profile, Template
from xds_server.model.topology import (
    Address,
    Application,
    Capacity,
    EngineSettings,
    Mesh,
    Mode,
    Price,
    Provider,
    ServerSettings,
    Service,
    TelemetrySettings,
)

WINDOW_TICKS = 2


@dataclass
class Station:
    """The truth about one provider; tests change it while the world runs."""

    service_s: float
    servers: int
    price_usd_per_million: float = 1.0
    error_ratio: float = 0.0
    backlog: float = 0.0

    def respond_s(self, rps: float, dt_s: float) -> float:
        """Mean response time over the next ``dt_s``."""
        capacity = self.servers / self.service_s
        self.backlog = max(0.0, self.backlog + (rps - capacity) * dt_s)
        queue_s = self.backlog / capacity
        load = rps * self.service_s
        block = 1.0
        for k in range(1, self.servers + 1):
            block = load * block / (k + load * block)
        spare = self.servers - load
        if spare <= 0.05 * self.servers:
            return self.service_s + queue_s + 5.0 * self.service_s / self.servers
        queued = self.servers * block / (spare + load * block)
        return self.service_s + queue_s + queued * self.service_s / spare


@dataclass
class RecordingActuator:
    """Takes weights as sidecars would, and remembers when."""

    overlays: list[Overlay] = field(default_factory=list)
    renewals: int = 0

    def publish(self, overlay: Overlay, now_s: float) -> None:
        self.overlays.append(overlay)

    def renew(self, now_s: float) -> None:
        self.renewals += 1


def mesh(
    stations: dict[str, Station],
    *,
    baseline: dict[str, int] | None = None,
    profiles: tuple[Profile, ...] = (Profile("steady", latency_p95_s=0.3),),
    settings: EngineSettings = EngineSettings(min_share_ratio=0.02, max_shift_ratio=0.35),  # noqa: B008 - frozen
    region: dict[str, str] | None = None,
    standby: frozenset[str] = frozenset(),
    mode: Mode = Mode.ENFORCE,
    capacity: bool = True,
) -> Mesh:
    """One service ``search`` that one application ``shop`` calls."""
    providers = tuple(
        Provider(
            name,
            "search",
            locality=Locality((region or {}).get(name, "here")),
            endpoints=(Address("127.0.0.1", 9000 + i),),
            capacity=Capacity(s.servers / s.service_s, s.servers) if capacity else Capacity(),
            price=Price(s.price_usd_per_million),
            standby=name in standby,
            baseline_weight=0 if name in standby else (baseline or {}).get(name, 1),
        )
        for i, (name, s) in enumerate(stations.items())
    )
    template = Template("web", (Call("search", "127.0.0.1:15001", timeout_s=1.0),), profiles)
    return Mesh(
        "test",
        mode,
        settings,
        TelemetrySettings(),
        {"search": Service("search", providers)},
        {"web": template},
        {"shop": Application("shop", template)},
        ServerSettings(),
    )


class Plane:
    """The engine over a world, one tick at a time; time is in the test's hand."""

    def __init__(
        self, stations: dict[str, Station], rps: float, *, seed: int = 1, **options: object
    ) -> None:
        self.stations, self.rps = stations, rps
        self.mesh = mesh(stations, **options)  # type: ignore[arg-type]
        self.actuator = RecordingActuator()
        self.without: frozenset[str] = frozenset()  # providers without endpoints
        self.now_s = 0.0
        self.phase = self.mesh.templates["web"].profiles[-1].name
        self.state: EngineState = initial_state(self._problem(None))
        self.last: Tick | None = None
        self.silent = False
        self.report_s = 0  # interval of load reports (ORCA, LRS) with utilisations; 0: none
        self.rng = np.random.default_rng(seed)
        self._slots: list[dict[str, tuple[float, float, float, np.ndarray]]] = []
        self._reporting: dict[str, list[tuple[float, float, float]]] = {}
        self._reported: dict[str, tuple[float, float, float, float]] = {}

    @property
    def shares(self) -> dict[str, float]:
        """What sidecars do now: the newest published weights, else the baseline."""
        if self.actuator.overlays:
            # A group changes and is published within one tick: sidecars see both at once.
            (weights,) = self.actuator.overlays[-1].weights.values()
            service = weights["search"]
        else:
            service = {p.name: p.baseline_weight for p in self.mesh.services["search"].providers}
        total = sum(service.values())
        return {name: w / total for name, w in service.items()}

    def enter(self, phase: str) -> None:
        """Move the instance to another phase."""
        before, self.phase = self.phase, phase
        self.state = adopt(self.state, self._problem(before))
        (key,) = self.state.problem.group_keys
        assert key.phase == phase

    def step(self, ticks: int = 1) -> None:
        """Run the world and the engine for that many ticks of 1 s."""
        for _ in range(ticks):
            self._world()
            self.now_s += 1.0
            self.last = tick(
                self.state,
                self._window(),
                self._load(),
                self.actuator,
                self.mesh.engine,
                self.mesh.mode,
                now_s=self.now_s,
                elapsed_s=1.0,
            )

    def _problem(self, origin: str | None):  # type: ignore[no-untyped-def]
        group = Group(
            GroupKey("shop", self.phase, Locality("here")),
            frozenset({"n1"}),
            "web",
            origin,
            self.now_s,
        )
        endpoints = {
            p.name: () if p.name in self.without else p.endpoints
            for p in self.mesh.providers.values()
        }
        return build_problem(self.mesh, endpoints, [group], self._substitutes())

    def _substitutes(self) -> frozenset[str]:
        """Who of those on standby may be used."""
        return frozenset()

    def _world(self) -> None:
        bounds = np.array(LATENCY_BUCKETS_MS) / 1e3
        slot = {}
        for name, share in self.shares.items():
            station = self.stations[name]
            count = float(self.rng.poisson(self.rps * share))
            mean = station.respond_s(self.rps * share, 1.0)
            # Lognormal responses around the mean, c.v. 0.5.
            spread = np.sqrt(np.log(1.25))
            times = mean * self.rng.lognormal(-(spread**2) / 2, spread, int(count))
            hist = np.bincount(np.searchsorted(bounds, times), minlength=len(bounds) + 1)
            errors = float(self.rng.binomial(int(count), station.error_ratio))
            slot[name] = (count, errors, float(times.sum()), hist.astype(float))
            busy = min(1.0, self.rps * share * station.service_s / station.servers)
            if station.backlog > 0.0:
                busy = 1.0
            self._reporting.setdefault(name, []).append((count, errors, busy * count))
        if self.report_s and (round(self.now_s) + 1) % self.report_s == 0:
            self._report()
        self._slots = [*self._slots[-WINDOW_TICKS + 1 :], slot]

    def _window(self) -> PairWindow:
        names = tuple(self.stations)
        slots = [] if self.silent else self._slots
        columns = {
            i: np.array([sum(s[n][i] for s in slots) for n in names], dtype=float) for i in range(3)
        }
        empty = np.zeros(len(LATENCY_BUCKETS_MS) + 1)
        count = len(names)
        return PairWindow(
            window_s=float(WINDOW_TICKS),
            nodes=("n1",),
            providers=names,
            node_row=np.zeros(count, dtype=np.int64),
            provider_row=np.arange(count, dtype=np.int64),
            covered_s=np.full(count, float(len(slots))),
            requests=columns[0],
            errors=columns[1],
            latency_sum_s=columns[2],
            latency_count=columns[0],
            latency_hist=np.array([sum((s[n][3] for s in slots), empty) for n in names]),
            active=np.zeros(count),
            rx_bytes=columns[0] * 2000.0,
            tx_bytes=columns[0] * 100.0,
            age_s=np.full(count, np.inf if self.silent else 0.1),
        )

    def _report(self) -> None:
        """Sum up an interval, as Envoy does: utilisation is the mean over its requests."""
        for name, seconds in self._reporting.items():
            count, errors, busy = (sum(column) for column in zip(*seconds, strict=True))
            if count:
                rates = (count - errors) / self.report_s, errors / self.report_s
                self._reported[name] = (busy / count, *rates, count)
        self._reporting.clear()

    def _load(self) -> ProviderLoad:
        names = tuple(self.stations)
        blank = np.full(len(names), np.nan)
        prices = np.array([s.price_usd_per_million for s in self.stations.values()])
        said = np.array([self._reported.get(name, (np.nan,) * 4) for name in names])
        return ProviderLoad(names, said[:, 0], blank, prices, np.zeros(len(names)), *said[:, 1:].T)
