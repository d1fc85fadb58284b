"""The Discovery contract on files and HTTP servers, and what is wrong with a document."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters.discovery import DocumentDiscovery, open_discovery
from adapters.documents import Document, FileFeed, HttpFeed, read_endpoints
from adapters.documents.feed import BYTES_MAX
from adapters.documents.parse import ENDPOINTS_MAX, YAML_BYTES_MAX
from adapters.testing.discovery import DEADLINE_S, ChangingDiscoveryContract
from tests.contract.servers import Counting, DocumentServer, serving_document
from xds_server.errors import AdapterError
from xds_server.model.topology import Address, DiscoverySource, Provider
from xds_server.ports import EndpointUpdate

ENDPOINTS = (Address("127.0.0.2", 9102), Address("::1", 9101), Address("127.0.0.1", 9101)) * 2
PIPE = Address("unix:/run/search.sock")


def written(*endpoints: Address) -> list[dict[str, Any]]:
    return [
        {"address": e.host} if e.is_pipe else {"address": e.host, "port": e.port} for e in endpoints
    ]


class Pace(Counting):
    """Takes the place of sleep, and counts."""

    async def __call__(self, duration_s: float) -> None:
        self.note(duration_s)
        await asyncio.sleep(0.005)


class FileWorld:
    def __init__(self, path: Path) -> None:
        self.path, self.pace = path, Pace()
        self.discovery = DocumentDiscovery(FileFeed(path, sleep_s=self.pace))
        self.set_endpoints(*ENDPOINTS)

    async def settle(self) -> None:
        await self.pace.wait_for_more(3)

    def set_endpoints(self, *endpoints: Address) -> None:
        self.endpoints = endpoints
        self.replace(json.dumps(written(*endpoints)))

    def set_answering(self, answering: bool) -> None:
        if answering:
            self.set_endpoints(*self.endpoints)
        else:
            self.path.unlink()

    def replace(self, text: str) -> None:
        """As editors do: another file takes the name."""
        beside = self.path.with_name("new")
        beside.write_text(text)
        beside.rename(self.path)


class HttpWorld:
    def __init__(self, server: DocumentServer, *, tags: bool) -> None:
        self.server, self._tags = server, tags
        self.discovery = DocumentDiscovery(HttpFeed(server.url, refresh_s=0.01, timeout_s=1.0))
        self.set_endpoints(*ENDPOINTS)

    async def settle(self) -> None:
        await self.server.wait_for_more(3)

    def set_endpoints(self, *endpoints: Address) -> None:
        self.endpoints = endpoints
        self.server.body = json.dumps({"endpoints": written(*endpoints)}).encode()
        self.server.tag = f'"{hash(endpoints)}"' if self._tags else ""

    def set_answering(self, answering: bool) -> None:
        self.server.status = 200 if answering else 503


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with serving_document() as served:
        yield served


class TestJsonFile(ChangingDiscoveryContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> FileWorld:
        return FileWorld(tmp_path / "search.json")


class TestYamlFile(ChangingDiscoveryContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> FileWorld:
        return FileWorld(tmp_path / "search.yaml")


class TestHttp(ChangingDiscoveryContract):
    @pytest.fixture
    def world(self, server: DocumentServer) -> HttpWorld:
        return HttpWorld(server, tags=False)


class TestHttpWithTags(ChangingDiscoveryContract):
    @pytest.fixture
    def world(self, server: DocumentServer) -> HttpWorld:
        return HttpWorld(server, tags=True)


async def following(updates: AsyncIterator[EndpointUpdate]) -> tuple[Address, ...]:
    async with asyncio.timeout(DEADLINE_S):
        return (await anext(updates)).endpoints


# -- files ---------------------------------------------------------------------------


async def test_a_file_with_a_fault_says_file_line_and_key_and_is_followed_once_mended(
    tmp_path: Path,
) -> None:
    world = FileWorld(tmp_path / "search.yaml")
    updates = world.discovery.watch()
    await following(updates)
    world.replace("endpoints:\n- {address: 10.0.0.1, port: 80}\n- {address: 10.0.0.2,\n   port: x}")
    with pytest.raises(AdapterError, match=r"search\.yaml:4: endpoints\.1\.port: 'x'") as raised:
        await following(updates)
    assert raised.value.retryable
    again = asyncio.ensure_future(following(world.discovery.watch()))
    await world.pace.wait_for_more(5)
    assert not again.done()  # that fault has been said
    world.replace("- {address: 10.0.0.1, port: 80}")
    assert await again == (Address("10.0.0.1", 80),)


async def test_another_fault_is_said_too(tmp_path: Path) -> None:
    world = FileWorld(tmp_path / "search.yaml")
    for text, said in (("[{]", "YAML"), ("[1]", "no endpoint"), ("[{]", "YAML")):
        world.replace(text)
        with pytest.raises(AdapterError, match=said):
            await following(world.discovery.watch())


async def test_a_file_may_be_written_in_place_linked_and_swapped(tmp_path: Path) -> None:
    one, other, link = (tmp_path / name for name in ("one.json", "other.json", "link.json"))
    one.write_text(json.dumps(written(Address("10.0.0.1", 1))))
    other.write_text(json.dumps(written(Address("10.0.0.2", 1))))
    link.symlink_to(one)
    updates = DocumentDiscovery(FileFeed(link, sleep_s=Pace())).watch()
    assert await following(updates) == (Address("10.0.0.1", 1),)
    beside = tmp_path / "beside"
    beside.symlink_to(other)
    beside.rename(link)  # as Kubernetes swaps mounted files
    assert await following(updates) == (Address("10.0.0.2", 1),)
    other.write_text(json.dumps(written(Address("10.0.0.3", 1))))
    assert await following(updates) == (Address("10.0.0.3", 1),)


def _missing(path: Path) -> None:
    assert not path.exists()


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _binary(path: Path) -> None:
    path.write_bytes(b"[\n\xff]")


def _huge(path: Path) -> None:
    path.write_bytes(b" " * (BYTES_MAX + 1))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_missing, "No such file"),
        (_folder, "is no file"),
        (_pipe, "is no file"),
        (_binary, ":2: is not UTF-8"),
        (_huge, "more than"),
        (_empty, "no list of endpoints"),
    ],
)
async def test_what_is_no_document_is_a_fault(tmp_path: Path, make: Any, said: str) -> None:
    path = tmp_path / "search.yaml"
    make(path)
    with pytest.raises(AdapterError, match=said) as raised:
        await following(DocumentDiscovery(FileFeed(path)).watch())
    assert str(path) in str(raised.value)


# -- HTTP ----------------------------------------------------------------------------


async def test_what_has_not_changed_is_not_sent_again(server: DocumentServer) -> None:
    world = HttpWorld(server, tags=True)
    updates = world.discovery.watch()
    await following(updates)
    more = asyncio.ensure_future(following(updates))
    await server.wait_for_more(4)
    assert server.statuses[:3] == [200, 304, 304]
    world.set_endpoints(Address("10.0.0.1", 1))
    assert await more == (Address("10.0.0.1", 1),)
    assert server.asked[0] == ""


def _status(server: DocumentServer) -> None:
    server.status = 404


def _slow(server: DocumentServer) -> None:
    server.delay_s = 5.0


def _long(server: DocumentServer) -> None:
    server.body = b" " * (BYTES_MAX + 1)


def _compressed(server: DocumentServer) -> None:
    server.headers = {"Content-Encoding": "gzip"}


def _unasked(server: DocumentServer) -> None:
    server.status = 304


def _loop(server: DocumentServer) -> None:
    server.status, server.headers = 302, {"Location": "/prices"}


def _not_text(server: DocumentServer) -> None:
    server.body = b"\xff"


def _gone(server: DocumentServer) -> None:
    server.port = 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_status, "answers 404"),
        (_slow, "within 0.2 s"),
        (_long, "more than"),
        (_compressed, "compression"),
        (_unasked, "answers 304"),
        (_loop, "TooManyRedirects"),
        (_not_text, "not UTF-8"),
        (_gone, "Connect"),
    ],
)
async def test_no_answer_of_any_kind_is_taken_for_none_and_no_secret_is_said(
    server: DocumentServer, make: Any, said: str
) -> None:
    server.body = b"[]"
    make(server)
    watch = DocumentDiscovery(HttpFeed(server.url, timeout_s=0.2)).watch()
    with pytest.raises(AdapterError, match=said) as raised:
        await following(watch)
    assert raised.value.retryable
    assert "secret" not in str(raised.value)


# -- documents -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", ":1: is no list"),
        ('{"endpoints": {}}', "endpoints: is no list"),
        ("null", "is no list"),
        ("[1]", "0: 1 is no endpoint"),
        ("[{}]", "0.address: nothing is no IP"),
        ('[{"address": "a.example", "port": 1}]', "0.address: 'a.example'"),
        ('[{"address": "fe80::1%eth0", "port": 1}]', "no IP address"),
        ('[{"address": 1, "port": 1}]', "0.address: 1"),
        ('[{"address": "10.0.0.1"}]', "0.port: nothing"),
        ('[{"address": "10.0.0.1", "port": true}]', "0.port: True"),
        ('[{"address": "10.0.0.1", "port": 80.0}]', "0.port: 80.0"),
        ('[{"address": "10.0.0.1", "port": 0}]', "0.port: 0"),
        ('[{"address": "10.0.0.1", "port": 65536}]', "0.port: 65536"),
        ('[{"address": "unix:/a", "port": 1}]', "no IP address"),
        ("[\n{]", ":2: is not"),
        ("[" * 5_000, "is not"),
        ('[{"address": "10.0.0.1", "port": ' + "9" * 5000 + "}]", ""),
    ],
)
@pytest.mark.parametrize("is_yaml", [True, False])
def test_a_document_with_a_fault_is_refused_whole(text: str, said: str, is_yaml: bool) -> None:
    with pytest.raises(AdapterError, match=r"^w:") as raised:
        read_endpoints(Document("w", text, is_yaml))
    assert said in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "- {address: 127.0.0.1, port: 0x" + "f" * 5_000 + "}",
        "a: &a [1, 1]\nb: &b [*a, *a]\n"
        + "".join(f"{c}: &{c} [{', '.join([f'*{chr(ord(c) - 1)}'] * 9)}]\n" for c in "cdefghijk")
        + "endpoints: [*k]",
        "&a [*a]",
        "- &a {address: *a}",
        "- {address: 2026-11-24, port: 1}",
        "- {address: 127.0.0.1, port: 1}\n---\n- 1",
        "- {address: 127.0.0.1, port: 1, port: 2}",
        "- !!python/object:os.system {}",
    ],
)
def test_yaml_that_is_meant_to_hurt_is_refused(text: str) -> None:
    with pytest.raises(AdapterError) as raised:
        read_endpoints(Document("w", text, is_yaml=True))
    assert len(str(raised.value)) < 500


def test_more_endpoints_than_the_bound_are_refused_not_cut() -> None:
    many = written(*(Address(f"10.0.{i // 250}.{i % 250}", 1) for i in range(ENDPOINTS_MAX + 1)))
    assert len(read_endpoints(Document("w", json.dumps(many[:-1])))) == ENDPOINTS_MAX
    with pytest.raises(AdapterError, match="more than"):
        read_endpoints(Document("w", json.dumps(many)))


def test_more_yaml_than_the_bound_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(AdapterError, match="write JSON"):
        read_endpoints(Document("w", " " * (YAML_BYTES_MAX + 1), is_yaml=True))


def test_other_keys_are_somebody_elses_and_addresses_are_written_one_way() -> None:
    text = '{"version": 3, "endpoints": [{"address": "0:0::1", "port": 1, "zone": "a"}, %s]}'
    found = read_endpoints(Document("w", text % json.dumps(written(PIPE)[0])))
    assert found == (Address("::1", 1), PIPE)


def test_a_provider_is_discovered_by_file_and_http_as_its_options_say(tmp_path: Path) -> None:
    for adapter, options in (
        ("file", {"path": "a.json", "refresh_s": 2.0}),
        ("http", {"url": "http://127.0.0.1:1/a"}),
    ):
        source = DiscoverySource(adapter, options)
        found = open_discovery(Provider("p", "s", discovery=source), tmp_path)
        assert isinstance(found, DocumentDiscovery)
        assert source.options == options
