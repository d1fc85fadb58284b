"""The Discovery contract, on what the configuration names and on a DNS server of our own."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from adapters.discovery import DnsDiscovery, StaticDiscovery, open_discovery
from adapters.testing.discovery import DEADLINE_S, ChangingDiscoveryContract, DiscoveryContract
from xds_server.errors import AdapterError
from xds_server.model.topology import Address, DiscoverySource, Provider

NAME = "search.west.example."
SRV_NAME = "_http._tcp.west.example."
PORT = 9110


class LoopbackDns(asyncio.DatagramProtocol):
    """Answers from ``records`` over UDP; any other name does not exist."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.ttl_s = 0
        self.rcode = dns.rcode.NOERROR
        self.failing: set[str] = set()  # kinds that are answered with SERVFAIL
        self.silent = False
        self.asked: list[tuple[str, str]] = []
        self._transport: asyncio.DatagramTransport | None = None
        self._news = asyncio.Event()

    @property
    def address(self) -> Address:
        assert self._transport is not None
        return Address(*self._transport.get_extra_info("sockname")[:2])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # In Python 3.11 a selector's datagram transport is no DatagramTransport by type.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        asked = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append(asked)
        self._news.set()
        if not self.silent:
            assert self._transport is not None
            self._transport.sendto(self._answer(query, *asked).to_wire(), addr)

    def _answer(self, query: dns.message.Message, name: str, kind: str) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        response.set_rcode(self.rcode)
        if kind in self.failing:
            response.set_rcode(dns.rcode.SERVFAIL)
            return response
        for alias in self.records.get((name, "CNAME"), []):
            response.answer.append(dns.rrset.from_text(name, self.ttl_s, "IN", "CNAME", alias))
            name = alias
        found = self.records.get((name, kind), [])
        if found:
            response.answer.append(dns.rrset.from_text(name, self.ttl_s, "IN", kind, *found))
        else:
            soa = f". . 1 1 1 1 {self.ttl_s}"
            response.authority.append(dns.rrset.from_text(".", self.ttl_s, "IN", "SOA", soa))
            if self.rcode == dns.rcode.NOERROR and name not in {n for n, _ in self.records}:
                response.set_rcode(dns.rcode.NXDOMAIN)
        return response

    async def wait_for_queries(self, count: int) -> None:
        """Return when that many more have come."""
        goal = len(self.asked) + count
        async with asyncio.timeout(DEADLINE_S):
            while len(self.asked) < goal:
                self._news.clear()
                await self._news.wait()


class DnsWorld:
    """A zone as the contract sees it."""

    def __init__(self, server: LoopbackDns, discovery: DnsDiscovery, *, srv: bool) -> None:
        self.server, self.discovery, self._srv = server, discovery, srv
        self.endpoints: tuple[Address, ...] = ()

    async def settle(self) -> None:
        await self.server.wait_for_queries(12)  # more than two whole look-ups

    def set_answering(self, answering: bool) -> None:
        self.server.silent = not answering

    def set_endpoints(self, *endpoints: Address) -> None:
        self.endpoints = endpoints
        records: dict[tuple[str, str], list[str]] = {}
        for i, endpoint in enumerate(endpoints):
            name = f"e{i}.west.example." if self._srv else NAME
            kind = "AAAA" if ":" in endpoint.host else "A"
            records.setdefault((name, kind), []).append(endpoint.host)
            if self._srv:
                target = f"10 5 {endpoint.port} {name}"
                records.setdefault((SRV_NAME, "SRV"), []).append(target)
        self.server.records = records


@pytest.fixture
async def server() -> AsyncIterator[LoopbackDns]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        LoopbackDns, local_addr=("127.0.0.1", 0)
    )
    yield protocol
    transport.close()


class StaticWorld:
    def __init__(self) -> None:
        self.endpoints = (Address("127.0.0.2", 9102), Address("127.0.0.1", 9101)) * 2
        self.discovery = StaticDiscovery(self.endpoints)

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


class TestStaticDiscovery(DiscoveryContract):
    @pytest.fixture
    def world(self) -> StaticWorld:
        return StaticWorld()


class TestDnsDiscovery(ChangingDiscoveryContract):
    @pytest.fixture
    def world(self, server: LoopbackDns) -> DnsWorld:
        discovery = DnsDiscovery(
            NAME, PORT, refresh_min_s=0.01, nameserver=server.address, timeout_s=0.5
        )
        world = DnsWorld(server, discovery, srv=False)
        world.set_endpoints(*(Address(h, PORT) for h in ("127.0.0.2", "::1", "127.0.0.1")))
        return world


class TestSrvDiscovery(ChangingDiscoveryContract):
    @pytest.fixture
    def world(self, server: LoopbackDns) -> DnsWorld:
        discovery = DnsDiscovery(
            SRV_NAME, refresh_min_s=0.01, nameserver=server.address, timeout_s=0.5
        )
        world = DnsWorld(server, discovery, srv=True)
        world.set_endpoints(Address("127.0.0.2", 9112), Address("127.0.0.1", 9111))
        return world


class Pause:
    """Takes the place of sleep: remembers how long, and goes on at once, ``times`` times."""

    def __init__(self, times: int) -> None:
        self.asked_s: list[float] = []
        self._times = times

    async def __call__(self, duration_s: float) -> None:
        self.asked_s.append(duration_s)
        if len(self.asked_s) >= self._times:
            raise EndOfStoryError


class EndOfStoryError(Exception):
    pass


async def pause_after(server: LoopbackDns, ttl_s: int) -> float:
    """Return how long a watch waits after one look-up."""
    server.ttl_s = ttl_s
    pause = Pause(1)
    watch = DnsDiscovery(
        NAME, PORT, refresh_min_s=2.0, nameserver=server.address, sleep_s=pause
    ).watch()
    with pytest.raises(EndOfStoryError):
        async for _ in watch:
            pass
    return pause.asked_s[0]


@pytest.mark.parametrize(("ttl_s", "pause_s"), [(60, 60.0), (0, 2.0), (86400, 300.0)])
async def test_a_name_is_looked_up_again_after_its_ttl_within_bounds(
    server: LoopbackDns, ttl_s: int, pause_s: float
) -> None:
    server.records = {(NAME, "A"): ["127.0.0.1"], (NAME, "AAAA"): ["::1"]}
    assert await pause_after(server, ttl_s) == pause_s


async def test_a_name_that_does_not_exist_is_looked_up_again_after_the_zones_ttl(
    server: LoopbackDns,
) -> None:
    assert await pause_after(server, 30) == 30.0


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
async def test_a_server_that_fails_raises_and_says_which_name(
    server: LoopbackDns, rcode: dns.rcode.Rcode
) -> None:
    server.rcode = rcode
    watch = DnsDiscovery(NAME, PORT, nameserver=server.address, timeout_s=0.5).watch()
    with pytest.raises(AdapterError, match=r"search\.west\.example") as raised:
        await anext(watch)
    assert raised.value.retryable


@pytest.mark.parametrize("failing", ["A", "AAAA"])
async def test_an_answer_to_one_family_counts_although_the_other_fails(
    server: LoopbackDns, failing: str
) -> None:
    server.records = {(NAME, "A"): ["127.0.0.1"], (NAME, "AAAA"): ["::1"]}
    server.failing = {failing}
    watch = DnsDiscovery(NAME, PORT, nameserver=server.address, timeout_s=0.5).watch()
    there = Address("::1" if failing == "A" else "127.0.0.1", PORT)
    assert (await anext(watch)).endpoints == (there,)


async def test_a_family_that_begins_to_fail_keeps_what_it_had(server: LoopbackDns) -> None:
    server.records = {(NAME, "A"): ["127.0.0.1"], (NAME, "AAAA"): ["::1"]}
    watch = DnsDiscovery(
        NAME, PORT, refresh_min_s=0.01, nameserver=server.address, timeout_s=0.5
    ).watch()
    await anext(watch)
    server.failing = {"AAAA"}
    server.records = {(NAME, "A"): ["127.0.0.2"]}
    assert (await anext(watch)).endpoints == (Address("127.0.0.2", PORT), Address("::1", PORT))
    server.failing = set()
    assert (await anext(watch)).endpoints == (Address("127.0.0.2", PORT),)


async def test_an_empty_answer_to_one_family_is_not_enough_when_the_other_fails(
    server: LoopbackDns,
) -> None:
    server.records = {(NAME, "AAAA"): ["::1"]}
    server.failing = {"AAAA"}
    watch = DnsDiscovery(NAME, PORT, nameserver=server.address, timeout_s=0.5).watch()
    with pytest.raises(AdapterError, match="AAAA"):
        await anext(watch)


async def test_srv_records_of_the_lowest_priority_count(server: LoopbackDns) -> None:
    server.records = {
        (SRV_NAME, "SRV"): ["20 0 9002 b.example.", "10 0 9001 a.example.", "10 0 9003 c.example."],
        ("a.example.", "A"): ["127.0.0.1"],
        ("b.example.", "A"): ["127.0.0.2"],
    }
    watch = DnsDiscovery(SRV_NAME, nameserver=server.address).watch()
    assert (await anext(watch)).endpoints == (Address("127.0.0.1", 9001),)
    assert ("b.example.", "A") not in server.asked


async def test_an_srv_record_without_a_target_means_that_there_is_none(
    server: LoopbackDns,
) -> None:
    server.records = {(SRV_NAME, "SRV"): ["0 0 0 ."]}
    watch = DnsDiscovery(SRV_NAME, nameserver=server.address).watch()
    assert (await anext(watch)).endpoints == ()


async def test_aliases_are_followed(server: LoopbackDns) -> None:
    server.records = {(NAME, "CNAME"): ["a.example."], ("a.example.", "A"): ["127.0.0.1"]}
    watch = DnsDiscovery(NAME.rstrip("."), PORT, nameserver=server.address).watch()
    assert (await anext(watch)).endpoints == (Address("127.0.0.1", PORT),)


@pytest.mark.parametrize(("name", "port"), [("a.example", None), ("_http._tcp.a.example", 80)])
def test_a_port_is_given_exactly_where_records_carry_none(name: str, port: int | None) -> None:
    with pytest.raises(AdapterError) as raised:
        DnsDiscovery(name, port)
    assert not raised.value.retryable


async def test_a_provider_with_endpoints_is_discovered_from_them() -> None:
    discovery = open_discovery(Provider("p", "s", endpoints=(Address("127.0.0.1", 9101),)), Path())
    assert (await anext(discovery.watch())).endpoints == (Address("127.0.0.1", 9101),)


async def test_a_provider_with_dns_is_discovered_by_its_options(server: LoopbackDns) -> None:
    server.records = {(NAME, "A"): ["127.0.0.1"]}
    options = {"name": NAME, "port": PORT, "refresh_min_s": 1.0, "nameserver": server.address}
    discovery = open_discovery(
        Provider("p", "s", discovery=DiscoverySource("dns", options)), Path()
    )
    assert (await anext(discovery.watch())).endpoints == (Address("127.0.0.1", PORT),)


def test_an_adapter_that_does_not_exist_is_refused() -> None:
    provider = Provider("p", "s", discovery=DiscoverySource("consul"))
    with pytest.raises(AdapterError, match="consul") as raised:
        open_discovery(provider, Path())
    assert not raised.value.retryable
