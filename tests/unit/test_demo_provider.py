"""The demo's provider, as a real server on loopback."""

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from xds_server.demo.provider import (
    ORCA_HEADER,
    Endpoint,
    Gate,
    Settings,
    control_application,
    start,
)
from xds_server.demo.world import free_ports


class Provider:
    def __init__(self, settings: Settings, queue: int) -> None:
        self.settings = settings
        self.port, self.control = free_ports(2)
        self._queue = queue

    async def __aenter__(self) -> "Provider":
        endpoint = Endpoint("east", self.settings, self._queue, seed=1)
        self._runners = [
            await start(endpoint.application(), self.port),
            await start(control_application(self.settings), self.control),
        ]
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        for runner in self._runners:
            await runner.cleanup()

    async def get(self) -> aiohttp.ClientResponse:
        async with self._session.get(f"http://127.0.0.1:{self.port}/search") as response:
            await response.read()
            return response

    async def set(self, changes: object) -> tuple[int, dict[str, object]]:
        url = f"http://127.0.0.1:{self.control}/set"
        async with self._session.post(url, json=changes) as response:
            return response.status, await response.json()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with Provider(Settings(0.02, 2, 0.6), queue=2) as running:
        yield running


async def test_an_answer_carries_its_provider_and_its_load_by_orca(provider: Provider) -> None:
    response = await provider.get()
    assert response.status == 200
    assert response.headers["x-provider"] == "east"
    kind, _, values = response.headers[ORCA_HEADER].partition(" ")
    load = dict(pair.strip().split("=") for pair in values.split(","))
    assert kind == "TEXT"
    assert load["named_metrics.price_per_million_requests_usd"] == "0.6"
    assert 0.0 <= float(load["application_utilization"]) <= 1.0


async def test_what_does_not_fit_in_the_queue_is_refused(provider: Provider) -> None:
    responses = await asyncio.gather(*(provider.get() for _ in range(10)))
    statuses = sorted(r.status for r in responses)
    # Two are served at once and two wait; nothing is served before all ten have arrived.
    assert statuses.count(200) >= 4
    assert statuses.count(503) >= 1
    assert set(statuses) == {200, 503}


async def test_price_and_faults_change_while_it_runs(provider: Provider) -> None:
    status, state = await provider.set({"price_usd": 4.8, "failure_ratio": 1.0})
    assert (status, state["price_usd"]) == (200, 4.8)
    response = await provider.get()
    assert response.status == 500
    assert "price_per_million_requests_usd=4.8" in response.headers[ORCA_HEADER]


@pytest.mark.parametrize(
    "changes", [{"speed": 1}, {"mean_s": 0}, {"concurrency": 0}, {"mean_s": "fast"}, [1]]
)
async def test_a_bad_change_is_refused_and_nothing_changes(
    provider: Provider, changes: object
) -> None:
    status, body = await provider.set(changes)
    assert status == 400
    assert body["error"]
    assert provider.settings == Settings(0.02, 2, 0.6)


async def test_a_place_goes_to_whoever_waited_longest() -> None:
    gate = Gate(Settings(0.02, 1, 0.6), queue=2)
    assert await gate.enter(0.0)
    order: list[str] = []

    async def wait(name: str) -> None:
        assert await gate.enter(0.0)
        order.append(name)
        gate.leave(0.0)

    async with asyncio.TaskGroup() as group:
        group.create_task(wait("first"))
        group.create_task(wait("second"))
        await asyncio.sleep(0)
        assert not await gate.enter(0.0)
        gate.leave(0.0)
    assert order == ["first", "second"]


async def test_a_caller_that_gives_up_leaves_the_queue() -> None:
    gate = Gate(Settings(0.02, 1, 0.6), queue=1)
    assert await gate.enter(0.0)
    waiting = asyncio.create_task(gate.enter(0.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.leave(0.0)
    assert await gate.enter(0.0)


async def test_a_turn_that_came_to_a_cancelled_caller_is_passed_on() -> None:
    gate = Gate(Settings(0.02, 1, 0.6), queue=2)
    assert await gate.enter(0.0)
    gone, next_one = (asyncio.create_task(gate.enter(0.0)) for _ in range(2))
    await asyncio.sleep(0)
    gate.leave(0.0)  # its turn comes and it is cancelled before it runs
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await asyncio.wait_for(next_one, 1.0)


async def test_utilisation_is_the_busy_share_of_about_the_last_second() -> None:
    gate = Gate(Settings(0.02, 2, 0.6), queue=0)
    assert gate.utilisation_ratio(0.0) == 0.0
    assert await gate.enter(0.0)
    assert gate.utilisation_ratio(1.0) == pytest.approx(0.5 * (1 - 0.3679), rel=1e-3)
    assert gate.utilisation_ratio(20.0) == pytest.approx(0.5, rel=1e-3)
    gate.leave(20.0)
    assert gate.utilisation_ratio(40.0) == pytest.approx(0.0, abs=1e-3)


async def test_a_slower_provider_takes_longer(provider: Provider) -> None:
    await provider.set({"mean_s": 0.2})
    began_s = time.monotonic()
    await provider.get()
    assert time.monotonic() - began_s > 0.05
