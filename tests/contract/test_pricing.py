"""The Pricing contract, on every source of prices."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapters.documents import Document, FileFeed, HttpFeed, read_price
from adapters.pricing import DocumentPricing, SchedulePricing, StaticPricing, open_pricing
from adapters.testing.pricing import AskedPricingContract, ChangingPricingContract, PricingContract
from tests.contract.servers import DocumentServer, serving_document
from tests.contract.test_document_discovery import Pace
from xds_server.errors import AdapterError
from xds_server.model.topology import Price, PriceSource, PriceWindow, Provider

DECLARED = Price(0.4, 0.1, 0.01)


class StaticWorld:
    def __init__(self) -> None:
        self.price = DECLARED
        self.pricing = StaticPricing(DECLARED)


class FileWorld:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.pricing = DocumentPricing(FileFeed(path, sleep_s=Pace()), DECLARED)
        self.set_price(Price(0.3, 0.2, 0.0))

    def set_price(self, price: Price) -> None:
        self.price = price
        beside = self.path.with_name("new")
        beside.write_text(json.dumps(asdict(price)))
        beside.rename(self.path)

    def set_answering(self, answering: bool) -> None:
        if answering:
            self.set_price(self.price)
        else:
            self.path.unlink()


class HttpWorld:
    def __init__(self, server: DocumentServer, *, tags: bool) -> None:
        self.server, self._tags = server, tags
        feed = HttpFeed(server.url, refresh_s=0.01, timeout_s=1.0)
        self.pricing = DocumentPricing(feed, DECLARED)
        self.set_price(Price(0.3, 0.2, 0.0))

    def set_price(self, price: Price) -> None:
        self.price = price
        self.server.body = json.dumps(asdict(price)).encode()
        self.server.tag = f'"{hash(price)}"' if self._tags else ""

    def set_answering(self, answering: bool) -> None:
        self.server.status = 200 if answering else 503


class Day:
    """A clock whose sleeper wakes when the test turns it."""

    def __init__(self, text: str) -> None:
        self.slept_s: list[float] = []
        self._wall_s = 0.0
        self._turned = asyncio.Event()
        self.turn(text)
        self._turned.clear()

    def turn(self, text: str) -> None:
        self._wall_s = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
        self._turned.set()

    def now_s(self) -> float:
        return self._wall_s

    def wall_s(self) -> float:
        return self._wall_s

    async def sleep_s(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)
        await self._turned.wait()
        self._turned.clear()


NIGHT = replace(DECLARED, per_million_requests_usd=0.1)


class ScheduleWorld:
    """``set_price`` waits for the time of day that has it."""

    def __init__(self) -> None:
        self.day = Day("2026-11-24T23:30")
        self.price = NIGHT
        windows = [
            PriceWindow("0 22 * * *", 8 * 3600.0, NIGHT),
            PriceWindow("0 12 * * *", 3600.0, Price(7.5, 0.1, 0.01)),
            PriceWindow("0 18 * * *", 3600.0, Price()),
        ]
        self.pricing = SchedulePricing(DECLARED, windows, self.day)

    def set_price(self, price: Price) -> None:
        self.price = price
        self.day.turn("2026-11-25T12:00" if price.per_million_requests_usd else "2026-11-25T18:59")

    def set_answering(self, answering: bool) -> None:
        raise NotImplementedError("nobody is asked")


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with serving_document() as served:
        yield served


class TestStatic(PricingContract):
    @pytest.fixture
    def world(self) -> StaticWorld:
        return StaticWorld()


class TestSchedule(ChangingPricingContract):
    @pytest.fixture
    async def world(self) -> ScheduleWorld:
        return ScheduleWorld()


class TestJsonFile(AskedPricingContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> FileWorld:
        return FileWorld(tmp_path / "price.json")


class TestYamlFile(AskedPricingContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> FileWorld:
        return FileWorld(tmp_path / "price.yaml")


class TestHttp(AskedPricingContract):
    @pytest.fixture
    def world(self, server: DocumentServer) -> HttpWorld:
        return HttpWorld(server, tags=False)


class TestHttpWithTags(AskedPricingContract):
    @pytest.fixture
    def world(self, server: DocumentServer) -> HttpWorld:
        return HttpWorld(server, tags=True)


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("2026-11-24T21:59:59", DECLARED),
        ("2026-11-24T22:00:00", NIGHT),
        ("2026-11-25T00:00:00", NIGHT),
        ("2026-11-25T05:59:59", NIGHT),
        ("2026-11-25T06:00:00", DECLARED),
        ("2026-11-28T23:00:00", Price(0.05)),  # a Saturday
    ],
)
async def test_a_window_holds_from_its_first_second_to_before_its_end(
    text: str, price: Price
) -> None:
    windows = [
        PriceWindow("0 0 * * 6", 86_400.0, Price(0.05)),
        PriceWindow("0 22 * * *", 8 * 3600.0, NIGHT),
    ]
    day = Day(text)
    assert await anext(SchedulePricing(DECLARED, windows, day).watch()) == price


async def test_a_schedule_looks_at_the_clock_at_whole_minutes() -> None:
    day = Day("2026-11-24T21:59:12")
    updates = SchedulePricing(DECLARED, [], day).watch()
    await anext(updates)
    more = asyncio.ensure_future(anext(updates))
    await asyncio.sleep(0)
    assert day.slept_s == [48.0]
    day.turn("2026-11-24T22:00")
    assert await more == DECLARED


async def test_a_price_is_confirmed_at_each_look(tmp_path: Path) -> None:
    world = FileWorld(tmp_path / "price.json")
    updates = world.pricing.watch()
    assert [await anext(updates) for _ in range(3)] == [world.price] * 3


async def test_a_fault_is_said_once_and_confirms_nothing(tmp_path: Path) -> None:
    path, pace = tmp_path / "price.yaml", Pace()
    path.write_text("per_million_requests_usd: 1\nper_request_usd: 1\n")
    pricing = DocumentPricing(FileFeed(path, sleep_s=pace), DECLARED)
    with pytest.raises(AdapterError, match=r"price\.yaml:2: per_request_usd: is not one of"):
        await anext(pricing.watch())
    again = asyncio.ensure_future(anext(pricing.watch()))
    await pace.wait_for_more(5)
    assert not again.done()
    path.write_text("per_million_requests_usd: 1\n")
    assert await again == replace(DECLARED, per_million_requests_usd=1.0)


@pytest.mark.parametrize(
    "text",
    [
        "[]", "{}", "null", "1", '{"usd": 1}',
        '{"per_million_requests_usd": -1}',
        '{"per_million_requests_usd": true}',
        '{"per_million_requests_usd": "1"}',
        '{"per_million_requests_usd": null}',
        '{"per_million_requests_usd": 1e13}',
        '{"per_million_requests_usd": 1' + "0" * 400 + "}",
        '{"per_million_requests_usd": NaN}',
        '{"per_million_requests_usd": Infinity}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_yaml", [True, False])
def test_what_is_no_price_is_refused(text: str, is_yaml: bool) -> None:
    with pytest.raises(AdapterError, match=r"^w:1: ") as raised:
        read_price(Document("w", text, is_yaml), DECLARED)
    assert raised.value.retryable


async def test_a_provider_is_priced_as_its_source_says(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"egress_per_gib_usd": 0.5}')
    day = Day("2026-11-24T23:00")
    windows = (PriceWindow("0 22 * * *", 7200.0, NIGHT),)
    for source, price in (
        (None, DECLARED),
        (PriceSource("schedule", {"windows": windows}), NIGHT),
        (PriceSource("file", {"path": "p.json"}), replace(DECLARED, egress_per_gib_usd=0.5)),
    ):
        provider = Provider("p", "s", price=DECLARED, price_source=source)
        assert await anext(open_pricing(provider, tmp_path, day).watch()) == price
    http = Provider("p", "s", price_source=PriceSource("http", {"url": "http://127.0.0.1:1/"}))
    assert isinstance(open_pricing(http, tmp_path, day), DocumentPricing)
    with pytest.raises(AdapterError, match="spot") as raised:
        open_pricing(Provider("p", "s", price_source=PriceSource("spot")), tmp_path, day)
    assert not raised.value.retryable
