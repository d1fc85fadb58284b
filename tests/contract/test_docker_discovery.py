"""The Discovery contract on a Docker Engine API, and what containers may say."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from adapters.discovery import DockerDiscovery, open_discovery
from adapters.discovery.docker import LINE_BYTES_MAX
from adapters.testing.discovery import DEADLINE_S, ChangingDiscoveryContract
from tests.contract.servers import Engine, serving_engine
from xds_server.errors import AdapterError
from xds_server.model.topology import Address, DiscoverySource, Provider
from xds_server.ports import EndpointUpdate

HERE = Address("172.18.0.2", 8080)


def container(
    address: str = HERE.host,
    port: str | None = "8080",
    *,
    provider: str = "search-east",
    state: str = "running",
    status: str = "Up 5 minutes",
    labels: dict[str, str] | None = None,
    networks: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What the engine lists."""
    own = {"xds.provider": provider} | ({"xds.port": port} if port else {})
    key = "GlobalIPv6Address" if ":" in address else "IPAddress"
    mine = {"IPAddress": "", "GlobalIPv6Address": ""} | {key: address}
    return {
        "Id": f"{address}-{port}",
        "State": state,
        "Status": status,
        "Labels": own | (labels or {}),
        "NetworkSettings": {"Networks": {"mesh": mine} if networks is None else networks},
        "Ports": [],
    } | more


class DockerWorld:
    def __init__(self, engine: Engine, url: str) -> None:
        self.engine = engine
        self.discovery = DockerDiscovery("search-east", url=url, refresh_s=0.05, timeout_s=1.0)
        self.set_endpoints(Address("172.18.0.3", 8081), Address("fd00::2", 8080), HERE)

    async def settle(self) -> None:
        await self.engine.wait_for_more(4)

    def set_endpoints(self, *endpoints: Address) -> None:
        self.endpoints = endpoints
        others = container("172.18.0.9", provider="search-west"), container(state="paused")
        self.engine.containers = [*(container(e.host, str(e.port)) for e in endpoints), *others]
        self.engine.say("start")

    def set_answering(self, answering: bool) -> None:
        self.engine.answering = answering
        if not answering:
            self.engine.send(None)


@pytest.fixture
async def unix_engine(tmp_path: Path) -> AsyncIterator[tuple[Engine, str]]:
    async with serving_engine(tmp_path / "docker.sock") as served:
        yield served


@pytest.fixture
async def tcp_engine() -> AsyncIterator[tuple[Engine, str]]:
    async with serving_engine(None) as served:
        yield served


class TestUnixSocket(ChangingDiscoveryContract):
    @pytest.fixture
    def world(self, unix_engine: tuple[Engine, str]) -> DockerWorld:
        return DockerWorld(*unix_engine)


class TestTcp(ChangingDiscoveryContract):
    @pytest.fixture
    def world(self, tcp_engine: tuple[Engine, str]) -> DockerWorld:
        return DockerWorld(*tcp_engine)


async def following(updates: AsyncIterator[EndpointUpdate]) -> tuple[Address, ...]:
    async with asyncio.timeout(DEADLINE_S):
        return (await anext(updates)).endpoints


@pytest.mark.parametrize("action", ["start", "die", "pause", "health_status: unhealthy"])
async def test_an_event_leads_to_a_look_long_before_the_next_one_is_due(
    unix_engine: tuple[Engine, str], action: str
) -> None:
    engine, url = unix_engine
    updates = DockerDiscovery("search-east", url=url, refresh_s=3600.0).watch()
    assert await following(updates) == ()
    waiting = asyncio.ensure_future(following(updates))
    engine.containers = [container()]
    engine.say("exec_start: healthcheck")
    engine.say(action)
    assert await waiting == (HERE,)


async def test_what_health_checks_do_leads_to_no_look(unix_engine: tuple[Engine, str]) -> None:
    engine, url = unix_engine
    updates = DockerDiscovery("search-east", url=url, refresh_s=3600.0).watch()
    await following(updates)
    waiting = asyncio.ensure_future(following(updates))
    for _ in range(50):
        for action in ("exec_create: check", "exec_start: check", "exec_die", "attach", "top"):
            engine.say(action)
    engine.containers = [container()]
    engine.say("start")
    await waiting
    assert len(engine.asked) == 2


async def test_many_events_at_once_are_one_look_and_halves_of_lines_are_put_together(
    unix_engine: tuple[Engine, str],
) -> None:
    engine, url = unix_engine
    updates = DockerDiscovery("search-east", url=url, refresh_s=3600.0).watch()
    await following(updates)
    waiting = asyncio.ensure_future(following(updates))
    engine.containers = [container()]
    for byte in b'{"Action": "start"}\n' * 20:
        engine.send(bytes([byte]))
    await waiting
    assert len(engine.asked) <= 3


async def test_a_lost_event_costs_a_delay_only(unix_engine: tuple[Engine, str]) -> None:
    engine, url = unix_engine
    updates = DockerDiscovery("search-east", url=url, refresh_s=0.05).watch()
    await following(updates)
    engine.containers = [container()]
    assert await following(updates) == (HERE,)


@pytest.mark.parametrize("chunk", [None, b"x" * (LINE_BYTES_MAX + 1)])
async def test_an_event_stream_that_ends_or_is_none_raises(
    unix_engine: tuple[Engine, str], chunk: bytes | None
) -> None:
    engine, url = unix_engine
    updates = DockerDiscovery("search-east", url=url, refresh_s=3600.0).watch()
    await following(updates)
    engine.send(chunk)
    with pytest.raises(AdapterError, match="event stream") as raised:
        await following(updates)
    assert raised.value.retryable


async def test_an_engine_that_hangs_raises(unix_engine: tuple[Engine, str]) -> None:
    engine, url = unix_engine
    updates = DockerDiscovery("search-east", url=url, refresh_s=0.05, timeout_s=0.3).watch()
    await following(updates)
    engine.hanging = True
    with pytest.raises(AdapterError, match="no answer in time"):
        await following(updates)


async def test_no_engine_raises(tmp_path: Path) -> None:
    watch = DockerDiscovery("search-east", url=f"unix://{tmp_path}/none.sock").watch()
    with pytest.raises(AdapterError, match=r"none\.sock: _ping: No such file") as raised:
        await following(watch)
    assert raised.value.retryable


TOLD = {"xds.address": "10.9.0.1"}
TWO = {"a": {"IPAddress": "10.1.0.2"}, "b": {"IPAddress": "10.2.0.2"}}
EXPOSED = [{"PrivatePort": 90, "Type": "tcp"}, {"PrivatePort": 53, "Type": "udp"}]


@pytest.mark.parametrize(
    ("listed", "network", "found"),
    [
        (container(status="Up 2 minutes (healthy)"), None, HERE),
        (container(status="Up 2 minutes (unhealthy)"), None, None),
        (container(status="Up 2 seconds (health: starting)"), None, None),
        (container(Health={"Status": "unhealthy", "FailingStreak": 3}), None, None),
        (container(Health={"Status": "starting"}), None, None),
        (container(Health={"Status": "healthy"}), None, HERE),
        (container(Health={"Status": "none"}), None, HERE),
        (container(networks=TWO), "b", Address("10.2.0.2", 8080)),
        (container(labels=TOLD, networks=TWO), None, Address("10.9.0.1", 8080)),
        (container(port=None, Ports=EXPOSED), None, Address(HERE.host, 90)),
        (container(port=None, Ports=EXPOSED[:1] * 2), None, Address(HERE.host, 90)),
    ],
)  # fmt: skip
async def test_containers_that_run_and_are_well_are_found_where_they_are(
    unix_engine: tuple[Engine, str],
    listed: dict[str, Any],
    network: str | None,
    found: Address | None,
) -> None:
    engine, url = unix_engine
    engine.containers = [listed]
    updates = DockerDiscovery("search-east", url=url, network=network).watch()
    assert await following(updates) == ((found,) if found else ())


@pytest.mark.parametrize(
    ("listed", "network", "why"),
    [
        (container(networks=TWO), None, "in 2 networks"),
        (container(networks={}), None, "in 0 networks"),
        (container(networks=TWO), "c", "'c'"),
        (container(networks={"host": {"IPAddress": ""}}), None, "xds.address"),
        (container(labels={"xds.address": "a.example"}), None, "no IP address"),
        (container(port="http"), None, "'http'"),
        (container(port="70000"), None, "no port"),
        (container(port=None), None, "exposes 0"),
        (container(port=None, Ports=[{"PrivatePort": 1}, {"PrivatePort": 2}]), None, "exposes 2"),
    ],
)
async def test_a_container_that_is_nowhere_is_left_out_and_said_once(
    unix_engine: tuple[Engine, str], listed: dict[str, Any], network: str | None, why: str
) -> None:
    engine, url = unix_engine
    engine.containers = [listed, container("172.18.0.7", networks={"c": {"IPAddress": "10.0.0.7"}})]
    updates = DockerDiscovery("search-east", url=url, network=network, refresh_s=0.02).watch()
    with capture_logs() as logs:
        assert await following(updates) == (Address("10.0.0.7", 8080),)
        more = asyncio.ensure_future(following(updates))
        await engine.wait_for_more(4)
        more.cancel()
    said = [e["reason"] for e in logs if e["event"] == "discovery.container_skipped"]
    assert len(said) == 1
    assert why in said[0]


@pytest.mark.parametrize(
    "listed",
    [
        None,
        "x",
        {"Labels": None},
        {"Labels": {}, "NetworkSettings": 1},
        container(port=None, Ports="x"),
        container(port=None, Ports=[{}]),
    ],
)
async def test_a_list_that_is_none_of_the_apis_raises(
    unix_engine: tuple[Engine, str], listed: Any
) -> None:
    engine, url = unix_engine
    engine.listed = [listed]
    with pytest.raises(AdapterError, match="not what the API has"):
        await following(DockerDiscovery("search-east", url=url).watch())


def test_a_provider_is_discovered_by_docker_under_its_own_name(tmp_path: Path) -> None:
    source = DiscoverySource("docker", {"network": "mesh", "refresh_s": 5.0})
    found = open_discovery(Provider("search-east", "s", discovery=source), tmp_path)
    assert isinstance(found, DockerDiscovery)
