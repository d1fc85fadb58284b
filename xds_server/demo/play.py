"""One story from start to end: children up, load on, events as told, all measured."""

import asyncio
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import numpy as np

from xds_server.demo.load import Generator, Recorder, Target, make_session
from xds_server.demo.observe import Counts, Sidecars
from xds_server.demo.processes import Child, Processes
from xds_server.demo.report import DeadMan, PriceChange, split_distance
from xds_server.demo.story import Event, Kind, Story, arrivals_s
from xds_server.demo.view import REFRESH_S, Scene, View
from xds_server.demo.world import CLOSED_USERS, MEAN_S, PEAK_RPS, THINK_S, World, write_files

READY_S: Final = 30.0
RUNTIME_POLL_S: Final = 0.1
STATUS_POLL_S: Final = 1.0
PROBE_TIMEOUT: Final = aiohttp.ClientTimeout(total=0.8)


@dataclass(frozen=True, slots=True)
class Played:
    """All that one run measured."""

    recorder: Recorder
    counts: Counts
    prices: tuple[PriceChange, ...]
    dead_man: DeadMan
    pushes: int


class Play:
    """Plays a story in a world. ``processes`` belongs to the caller, who ends them."""

    def __init__(
        self,
        label: str,
        world: World,
        story: Story,
        seed: int,
        envoy: Path,
        processes: Processes,
        directory: Path,
        view: View,
    ) -> None:
        self._world, self._story, self._seed = world, story, seed
        self._envoy, self._processes, self._directory = envoy, processes, directory
        self._view, self._label = view, label
        self._recorder = Recorder()
        self._prices: list[PriceChange] = []
        self._mesh_path = directory / "mesh.yaml"

    async def run(self) -> Played:
        """Play it; DemoError when a child dies that should not."""
        endpoints = {p.name: len(p.endpoints) for p in self._world.mesh.providers.values()}
        async with make_session() as load, aiohttp.ClientSession() as admin:
            self._admin = admin
            self._sidecars = Sidecars(admin, self._world.instances, endpoints)
            self._scene = Scene(
                self._label, self._world, self._story, self._recorder, self._sidecars, self._prices
            )
            await self._set_up()
            self._started_s = self._scene.started_s = time.monotonic() + 0.2
            async with asyncio.TaskGroup() as outer:
                background = [
                    outer.create_task(self._processes.watch()),
                    outer.create_task(self._watch_status()),
                    outer.create_task(self._show()),
                ]
                dead_man = await self._tell(load)
                for task in background:
                    task.cancel()
        return Played(
            self._recorder,
            self._sidecars.counts,
            tuple(self._prices),
            dead_man,
            sum(self._sidecars.pushes.values()),
        )

    async def _tell(self, load: aiohttp.ClientSession) -> DeadMan:
        """Run load, observation and events together until the story is over."""
        generator = Generator(load, self._recorder, self._started_s)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sidecars.follow(self._started_s, self._story.duration_s))
            self._load(generator, group)
            for event in self._story.events:
                if event.kind is not Kind.CONTROLLER_KILLED:
                    group.create_task(self._happen(event))
            dead_man = group.create_task(self._lose_controller())
        return dead_man.result()

    def _load(self, generator: Generator, group: asyncio.TaskGroup) -> None:
        """Start the load; the seed of each stream depends on its place alone."""
        until_s = self._story.duration_s
        for i, instance in enumerate(self._world.instances):
            for j, (service, port) in enumerate(instance.listeners.items()):
                url = f"http://127.0.0.1:{port}/{service}"
                target = Target(instance.application, instance.name, service, url)
                rng = np.random.default_rng((self._seed, i, j))
                peak_rps = PEAK_RPS[instance.application, service]
                arrivals = arrivals_s(rng, peak_rps, self._story.load_ratio, until_s)
                group.create_task(generator.open_loop(target, arrivals.tolist()))
                for user in range(CLOSED_USERS):
                    own = np.random.default_rng((self._seed, i, j, user))
                    group.create_task(generator.closed_loop(target, own, THINK_S, until_s))

    async def _set_up(self) -> None:
        """Start everything and wait for it; sidecars last, so that they start afresh."""
        self._view.say(f"{self._label}: starting providers, controller and sidecars ...")
        write_files(self._world, self._directory)
        providers = [self._start_provider(name, 0) for name in MEAN_S]
        controller = self._start_controller()
        async with asyncio.TaskGroup() as group:
            for name, child in zip(MEAN_S, providers, strict=True):
                group.create_task(self._ready(child, f"{self._control(name)}/state"))
            group.create_task(self._ready(controller, f"{self._world.admin_url}/healthz"))
        for name in MEAN_S:
            price = self._world.mesh.providers[name].price.per_million_requests_usd
            self._prices.append(PriceChange(0.0, name, price))
        envoys = [(i, self._start_envoy(i.name)) for i in self._world.instances]
        async with asyncio.TaskGroup() as group:
            for instance, child in envoys:
                group.create_task(self._ready(child, f"{instance.admin_url}/ready"))

    def _start_provider(self, name: str, life: int) -> Child:
        seed = 1000 * self._seed + 100 * life + 10 * list(MEAN_S).index(name)
        return self._processes.start(name, self._world.provider_command(name, seed))

    def _start_controller(self) -> Child:
        command = [sys.executable, "-m", "xds_server", "serve", "-c", str(self._mesh_path)]
        return self._processes.start("controller", command)

    def _start_envoy(self, name: str) -> Child:
        config = str(self._directory / f"{name}.yaml")
        options = ("--concurrency", "1", "--disable-hot-restart", "-l", "warn")
        return self._processes.start(name, [str(self._envoy), "-c", config, *options])

    async def _ready(self, child: Child, url: str) -> None:
        async def probe() -> bool:
            try:
                async with self._admin.get(url, timeout=PROBE_TIMEOUT) as response:
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                return False

        await self._processes.ready(child, probe, READY_S)

    def _control(self, name: str) -> str:
        return f"http://127.0.0.1:{self._world.controls[name]}"

    async def _at(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self._started_s + at_s - time.monotonic()))

    async def _happen(self, event: Event) -> None:
        """Do one event when its time comes, and undo it when its time is over."""
        begin, end = {
            Kind.LOAD: (_nothing, None),
            Kind.SLOWER: (self._slower, self._as_fast),
            Kind.DEARER: (self._dearer, self._as_cheap),
            Kind.PROVIDER_KILLED: (self._kill_provider, self._revive_provider),
        }[event.kind]
        await self._at(event.at_s)
        self._view.say(f"  {event.at_s:5.1f} s  {event.name}")
        await begin(event)
        if end is not None:
            await self._at(event.until_s)
            self._view.say(f"  {event.until_s:5.1f} s  {event.provider} is itself again")
            await end(event)

    async def _slower(self, event: Event) -> None:
        await self._set(event.provider, mean_s=MEAN_S[event.provider] * event.factor)

    async def _as_fast(self, event: Event) -> None:
        await self._set(event.provider, mean_s=MEAN_S[event.provider])

    async def _dearer(self, event: Event) -> None:
        await self._set_price(event.provider, self._listed_usd(event.provider) * event.factor)

    async def _as_cheap(self, event: Event) -> None:
        await self._set_price(event.provider, self._listed_usd(event.provider))

    def _listed_usd(self, name: str) -> float:
        return self._world.mesh.providers[name].price.per_million_requests_usd

    async def _set_price(self, name: str, usd: float) -> None:
        await self._set(name, price_usd=usd)
        self._prices.append(PriceChange(self._scene.now_s(), name, usd))

    async def _set(self, name: str, **changes: float) -> None:
        async with self._admin.post(f"{self._control(name)}/set", json=changes) as response:
            response.raise_for_status()

    def _child(self, name: str) -> Child:
        return next(c for c in self._processes.children if c.name == name)

    async def _kill_provider(self, event: Event) -> None:
        await self._processes.kill(self._child(event.provider))

    async def _revive_provider(self, event: Event) -> None:
        child = self._start_provider(event.provider, 1)
        await self._ready(child, f"{self._control(event.provider)}/state")

    async def _lose_controller(self) -> DeadMan:
        """Kill the controller, watch the sidecars, start it again, watch them again."""
        event = self._story.of(Kind.CONTROLLER_KILLED)
        await self._at(event.at_s)
        self._view.say(f"  {event.at_s:5.1f} s  {event.name}")
        killed_s = self._scene.controller_killed_s = time.monotonic()
        killed_at_s = self._scene.now_s()
        await self._processes.kill(self._child("controller"))
        self._scene.controller_killed_s = killed_s  # an answer under way may have reset it
        back_s = await self._runtime_until(_no_weights, self._started_s + event.until_s)
        await self._at(event.until_s)
        self._view.say(f"  {event.until_s:5.1f} s  the controller is started again")
        restarted_s = time.monotonic()
        self._start_controller()
        resumed_s = await self._runtime_until(
            _all_weights, self._started_s + self._story.duration_s
        )
        split = self._split(back_s, restarted_s)
        down = (killed_at_s, restarted_s - self._started_s)
        failed = sum(s.failed and down[0] <= s.start_s < down[1] for s in self._recorder.samples)
        return DeadMan(
            killed_at_s=round(killed_at_s, 2),
            back_to_baseline_s=None if back_s is None else round(back_s - killed_s, 2),
            split_off_by=None if split is None else round(split[0], 4),
            split_sigmas=None if split is None else round(split[1], 2),
            failed_while_down=failed,
            resumed_s=None if resumed_s is None else round(resumed_s - restarted_s, 2),
        )

    async def _runtime_until(
        self, wanted: Callable[[list[dict[str, str]]], bool], until_s: float
    ) -> float | None:
        """Return the time when all sidecars' weights were first as wanted; None: too late."""
        while time.monotonic() < until_s:
            runtime = await self._sidecars.read_runtime()
            if wanted([dict(keys) for keys in runtime.values()]):
                return time.monotonic()
            await asyncio.sleep(RUNTIME_POLL_S)
        return None

    def _split(self, back_s: float | None, restarted_s: float) -> tuple[float, float] | None:
        if back_s is None:
            return None
        mesh = self._world.mesh
        baseline = {
            (a, s): {p.name: p.baseline_weight for p in mesh.services[s].providers}
            for a, s in self._world.services()
        }
        first = math.ceil(back_s - self._started_s)
        return split_distance(
            self._sidecars.counts, baseline, first, int(restarted_s - self._started_s)
        )

    async def _watch_status(self) -> None:
        """Ask the controller what it thinks, for the view alone; nothing is judged by it."""
        while True:
            try:
                url = f"{self._world.admin_url}/v1/status"
                async with self._admin.get(url, timeout=PROBE_TIMEOUT) as response:
                    self._scene.status = await response.json() if response.ok else None
                    self._scene.controller_killed_s = None
            except (aiohttp.ClientError, TimeoutError, ValueError):
                self._scene.status = None
            await asyncio.sleep(STATUS_POLL_S)

    async def _show(self) -> None:
        while True:
            if self._scene.now_s() >= 0.0:
                self._view.show(self._scene)
            await asyncio.sleep(REFRESH_S)


async def _nothing(_: Event) -> None:
    """The load follows the story by itself."""


def _no_weights(runtime: list[dict[str, str]]) -> bool:
    return not any(runtime)


def _all_weights(runtime: list[dict[str, str]]) -> bool:
    return all(runtime)
