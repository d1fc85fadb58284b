"""Sources outside of the process: followed, lost, found again; and what follows from prices."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.e2e.envoy import eventually
from tests.scenario.world import mesh as scenario_mesh
from tests.unit.test_services_view import MESH, NO_ESTIMATES, World
from xds_server.app.endpoints import Endpoints
from xds_server.app.follow import BACK_OFF_S, follow
from xds_server.app.prices import Prices, with_prices
from xds_server.engine.problem import build_problem
from xds_server.engine.types import Group
from xds_server.errors import AdapterError
from xds_server.model.ids import GroupKey, Locality
from xds_server.model.services import Reading
from xds_server.model.snapshot import Node
from xds_server.model.telemetry import LoadReport
from xds_server.model.topology import (
    Address,
    DiscoverySource,
    Egress,
    Mesh,
    Price,
    PriceSource,
    Provider,
    Service,
)
from xds_server.registry.registry import Registry
from xds_server.registry.services import Directory, service_views
from xds_server.registry.tariffs import Tariff, Tariffs


class QuickClock:
    """Its sleepers wake at once; it remembers how long they meant to sleep."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    def now_s(self) -> float:
        return 100.0

    def wall_s(self) -> float:
        return 0.0

    async def sleep_s(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)
        await asyncio.sleep(0.002)


class Script:
    """A source whose watches do one step each."""

    def __init__(self, *steps: object) -> None:
        self.steps = list(steps)

    async def watch(self) -> AsyncIterator[int]:
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, Exception):
            raise step
        if isinstance(step, int):
            yield step
            return
        await asyncio.get_running_loop().create_future()


async def until(condition: Callable[[], bool]) -> None:
    await eventually("it has come", condition)


LOST = AdapterError("lost", retryable=True)


async def test_a_lost_source_is_watched_again_later_and_later_until_it_speaks() -> None:
    clock, taken, lost, opened = QuickClock(), list[int](), list[AdapterError](), []

    def open_source() -> Script:
        opened.append(Script(*[LOST] * 7, 1, LOST, 2))
        return opened[-1]

    task = asyncio.create_task(follow(clock, open_source, taken.append, lost.append))
    await until(lambda: taken == [1, 2])
    task.cancel()
    assert len(opened) == 1  # it may remember what it said
    assert len(lost) == 8
    assert clock.slept_s[:8] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, BACK_OFF_S[0]]


async def test_a_source_that_cannot_work_is_let_go() -> None:
    lost: list[AdapterError] = []
    never = AdapterError("never", retryable=False)
    async with asyncio.timeout(10.0):
        await follow(QuickClock(), lambda: Script(never), lambda _: None, lost.append)
    assert lost == [never]


async def test_a_bug_is_said_and_does_not_end_the_watch() -> None:
    taken: list[int] = []
    with capture_logs() as logs:
        task = asyncio.create_task(
            follow(QuickClock(), lambda: Script(KeyError("x"), 3), taken.append, lambda _: None)
        )
        await until(lambda: taken == [3])
        task.cancel()
    assert [e["event"] for e in logs] == ["source.failed"]


def mesh_of(*providers: Provider) -> Mesh:
    base = scenario_mesh({})
    return replace(base, services={"search": Service("search", providers)})


async def test_files_are_found_beside_mesh_yaml_and_endpoints_follow_them(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"address": "10.0.0.1", "port": 1}]')
    source = DiscoverySource("file", {"path": "a.json", "refresh_s": 0.1})
    changes: list[None] = []
    endpoints = Endpoints(QuickClock(), lambda: changes.append(None), folder=tmp_path)
    endpoints.set_mesh(mesh_of(Provider("a", "search", discovery=source)))
    try:
        await until(lambda: endpoints.current == {"a": (Address("10.0.0.1", 1),)})
        with capture_logs() as logs:
            (tmp_path / "a.json").write_text('[\n{"address": "10.0.0.1"}]')
            await until(lambda: bool(logs))
        assert logs[0]["event"] == "discovery.lost"
        assert f"{tmp_path}/a.json:2: 0.port" in logs[0]["reason"]
        assert endpoints.current == {"a": (Address("10.0.0.1", 1),)}
        (tmp_path / "a.json").write_text("[]")
        await until(lambda: endpoints.current == {"a": ()})
        assert len(changes) == 2
    finally:
        endpoints.stop()


# -- prices --------------------------------------------------------------------------

DECLARED = Price(0.4, 0.1, 0.01)


def priced(path: str, **more: object) -> Provider:
    source = PriceSource("file", {"path": path, "refresh_s": 0.1})
    return Provider("a", "search", price=DECLARED, price_source=source, **more)  # type: ignore[arg-type]


async def test_a_price_counts_from_when_it_is_said_until_its_source_is_another(
    tmp_path: Path,
) -> None:
    tariffs, changes = Tariffs(), list[None]()
    prices = Prices(QuickClock(), tmp_path, tariffs, lambda: changes.append(None))
    prices.set_mesh(mesh_of(priced("a.json")))
    try:
        assert tariffs.of("a") is None
        (tmp_path / "a.json").write_text('{"per_million_requests_usd": 0.2}')
        await until(lambda: tariffs.of("a") is not None)
        assert tariffs.of("a") == Tariff(Price(0.2, 0.1, 0.01), "file", 100.0)
        assert changes == []  # requests' price alone: the engine reads it each tick
        (tmp_path / "a.json").write_text('{"egress_per_gib_usd": 0.5}')
        await until(lambda: bool(changes))
        assert tariffs.of("a") == Tariff(Price(0.4, 0.1, 0.5), "file", 100.0)
        (tmp_path / "a.json").unlink()
        with capture_logs() as logs:
            await until(lambda: any(e["event"] == "price.lost" for e in logs))
        assert tariffs.of("a") is not None  # a price holds until it is changed
        prices.set_mesh(mesh_of(priced("b.json")))
        assert tariffs.of("a") is None
        prices.set_mesh(mesh_of(Provider("a", "search")))
        await asyncio.sleep(0)
        assert not [t for t in asyncio.all_tasks() if t.get_name().startswith("price ")]
    finally:
        prices.stop()


def test_the_engine_gets_other_prices_as_they_are_and_requests_as_declared() -> None:
    mesh, tariffs = mesh_of(priced("a"), Provider("b", "search")), Tariffs()
    assert with_prices(mesh, tariffs) is mesh
    tariffs.take("a", Tariff(Price(9.0, 8.0, 7.0), "http", 0.0))
    found = with_prices(mesh, tariffs).providers
    assert found["a"].price == Price(0.4, 8.0, 7.0)
    assert found["b"] == mesh.providers["b"]


def test_a_provider_speaks_of_its_price_before_its_source_does() -> None:
    tariffs = Tariffs()
    registry = Registry(
        {"a": "search", "b": "search", "c": "search"},
        slot_s=1.0,
        load_valid_s=30.0,
        tariffs=tariffs,
    )
    registry.node_connected(Node("n", "shop"), 0.0)
    tariffs.take("a", Tariff(Price(2.0), "http", 0.0))
    tariffs.take("b", Tariff(Price(0.0), "http", 0.0))
    registry.observe_load("n", [LoadReport("a", 0.5, 0.5, 3.0)], 0.0)
    assert list(registry.provider_load(1.0).price_per_million_usd)[:2] == [3.0, 0.0]
    load = registry.provider_load(31.0)  # what was announced is not fresh any more
    assert list(load.price_per_million_usd)[:2] == [2.0, 0.0]
    assert np.isnan(load.price_per_million_usd[2])


def test_services_show_whose_price_it_is_and_how_old() -> None:
    world, tariffs = World("a"), Tariffs()
    world.lease()
    tariffs.take("a", Tariff(Price(2.5, 0.25), "http", 4.0))

    def seen(now_s: float = 6.0):  # type: ignore[no-untyped-def]
        directory = Directory(MESH, world.found, world.leases, now_s, tariffs)
        views = service_views(directory, world.registry, NO_ESTIMATES)
        return next(p for s in views for p in s.providers if p.provider == "a")

    assert seen().price_per_million_usd == Reading(2.5, 2.0, "http", standard_error=0.0)
    assert seen().cost_usd_per_h.value == pytest.approx(10 * 3600 * 2.5 / 1e6 + 0.25)
    assert not seen(184.0).price_per_million_usd.stale
    assert seen(185.0).price_per_million_usd.stale  # three looks of a minute
    world.lease(price_per_million_usd=5.0)
    assert seen().price_per_million_usd == Reading(5.0, 2.0, "lease", standard_error=0.0)


CELLS = (
    Egress("east", "west", 0.1),
    Egress("east", "*", 0.2),
    Egress("*", "west", 0.3),
    Egress("*", "*", 0.4),
    Egress("south", "south", 0.5),
)


@pytest.mark.parametrize(
    ("cells", "origin", "to", "usd"),
    [
        (CELLS, "east", "west", 0.1),
        (CELLS, "east", "north", 0.2),
        (CELLS, "north", "west", 0.3),
        (CELLS, "north", "east", 0.4),
        (CELLS, "", "east", 0.4),
        (CELLS, "east", "east", 0.0),
        (CELLS, "south", "south", 0.5),
        (CELLS[:1], "north", "west", 0.01),
        ((), "east", "west", 0.01),
        ((), "east", "east", 0.0),
    ],
)
def test_egress_costs_what_the_cell_says_that_fits_best(
    cells: tuple[Egress, ...], origin: str, to: str, usd: float
) -> None:
    provider = Provider("a", "search", locality=Locality(origin), price=DECLARED)
    mesh = replace(mesh_of(provider), egress=cells)
    group = Group(GroupKey("shop", "steady", Locality(to)), frozenset({"n"}), "web", None, 0.0)
    problem = build_problem(mesh, {"a": (Address("10.0.0.1", 1),)}, [group])
    assert problem.egress_usd_per_byte[0] * 2**30 == pytest.approx(usd)
