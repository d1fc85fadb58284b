"""The Metering contract on processes of this host, and how they are found."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from adapters.testing.discovery import DEADLINE_S
from adapters.testing.metering import AskedMeteringContract
from adapters.usage import ProcessMetering, PrometheusMetering, open_metering
from tests.contract import used
from xds_server.app.clock import SystemClock
from xds_server.errors import AdapterError
from xds_server.model.topology import Address, UsageSource, UsedProcess
from xds_server.model.usage import Usage

MIB = 2**20
BALLAST_BYTES = 64 * MIB
PYTHON_BYTES = 40 * MIB
"""What an interpreter with nothing in it has at most."""


@dataclass
class Worker:
    """One process as ``used`` describes it."""

    port: int = 0
    child: bool = False
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            used.__file__,
            str(BALLAST_BYTES),
            str(self.port),
            *(["child"] if self.child else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            assert await self.process.stdout.readline() == b"ready\n"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            async with asyncio.timeout(DEADLINE_S):
                await self.process.wait()


@dataclass
class ProcessWorld:
    """Two instances: one by its pid file, one by the port that its child listens on."""

    folder: Path
    workers: dict[str, Worker] = field(default_factory=dict)
    usages: dict[str, Usage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        port = free_port()
        self.workers = {"filed": Worker(), "heard": Worker(port, child=True)}
        busy = used.BUSY / (psutil.cpu_count() or 1)
        self.usages = {name: Usage(name, False, busy, BALLAST_BYTES) for name in self.workers}
        found = {"filed": UsedProcess(pid_file="filed.pid"), "heard": UsedProcess(port=port)}
        self.metering = ProcessMetering(found, (), dict, self.folder, SystemClock(), every_s=0.5)

    def is_true(self, found: Usage) -> bool:
        """Within what a busy machine takes away, and what an interpreter needs beside."""
        truth = self.usages[found.of]
        more_bytes = found.memory_bytes - truth.memory_bytes
        return (
            0.05 * truth.cpu_ratio < found.cpu_ratio < 1.5 * truth.cpu_ratio
            and 0.0 <= more_bytes < 2 * PYTHON_BYTES
        )

    async def set_present(self, *names: str) -> None:
        for name, worker in self.workers.items():
            running = worker.process is not None and worker.process.returncode is None
            if name in names and not running:
                await worker.start()
            elif name not in names:
                await worker.stop()
        pid_file = self.folder / "filed.pid"
        if "filed" in names:
            pid_file.write_text(f"{self.workers['filed'].pid}\n")
        else:
            pid_file.unlink(missing_ok=True)

    async def set_answering(self, answering: bool) -> None:
        text = f"{self.workers['filed'].pid}\n" if answering else "none\n"
        (self.folder / "filed.pid").write_text(text)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ProcessWorld]:
    found = ProcessWorld(tmp_path)
    try:
        await found.set_present(*found.workers)
        yield found
    finally:
        await found.set_present()


class TestProcesses(AskedMeteringContract):
    @pytest.fixture
    def world(self, world: ProcessWorld) -> ProcessWorld:
        return world


async def only(metering: ProcessMetering) -> Usage:
    (usage,) = (await anext(metering.watch())).usages
    return usage


async def test_a_provider_is_found_by_the_ports_of_its_endpoints(tmp_path: Path) -> None:
    with ExitStack() as open_ports:
        elsewhere = [Address("192.0.2.1", 1), Address("unix:/run/p.sock")]
        found = {"p": elsewhere, "q": elsewhere}
        for _ in range(2):
            server = open_ports.enter_context(socket.create_server(("127.0.0.1", 0)))
            elsewhere.append(Address(*server.getsockname()))
        metering = ProcessMetering({}, ["p"], lambda: found, tmp_path, SystemClock(), every_s=0.1)
        usage = await only(metering)
        own_bytes = psutil.Process().memory_info().rss
        assert (usage.of, usage.is_provider) == ("p", True)
        assert usage.memory_bytes >= 0.9 * own_bytes
        # One process with two ports is counted once.
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        assert usage.memory_bytes < 0.5 * own_bytes + sum(p.memory_info().rss for p in family)


async def test_a_command_finds_all_that_match_but_not_the_control_plane(tmp_path: Path) -> None:
    one, other = Worker(), Worker()
    await one.start()
    await other.start()
    try:
        pattern = rf"used\.py {BALLAST_BYTES} 0"
        wanted = {"n1": UsedProcess(command=pattern), "self": UsedProcess(command="pytest")}
        metering = ProcessMetering(wanted, (), dict, tmp_path, SystemClock(), every_s=0.1)
        found = {u.of: u for u in (await anext(metering.watch())).usages}
        assert 2 * BALLAST_BYTES <= found["n1"].memory_bytes < 2 * (BALLAST_BYTES + PYTHON_BYTES)
    finally:
        await one.stop()
        await other.stop()


async def test_a_process_that_nobody_looked_at_before_has_memory_but_no_cpu_yet(
    tmp_path: Path,
) -> None:
    pid_file = tmp_path / "n.pid"
    clock = Late(lambda: pid_file.write_text(str(os.getpid())))
    wanted = {"n1": UsedProcess(pid_file="n.pid")}
    updates = ProcessMetering(wanted, (), dict, tmp_path, clock, every_s=0.1).watch()
    (first,) = (await anext(updates)).usages
    assert first.cpu_ratio != first.cpu_ratio  # NaN: this process is older than the look before
    assert first.memory_bytes > MIB
    (second,) = (await anext(updates)).usages
    assert 0.0 <= second.cpu_ratio <= 1.0


class Late(SystemClock):
    """A clock that lets something happen while somebody sleeps."""

    def __init__(self, happens) -> None:
        self._happens = happens

    async def sleep_s(self, duration_s: float) -> None:
        self._happens()
        await super().sleep_s(duration_s)


@pytest.mark.parametrize("text", ["", "none", "-1", "1.5", "1" * 65, "1 2"])
async def test_a_pid_file_without_a_pid_raises(tmp_path: Path, text: str) -> None:
    (tmp_path / "n.pid").write_text(text)
    wanted = {"n1": UsedProcess(pid_file="n.pid")}
    metering = ProcessMetering(wanted, (), dict, tmp_path, SystemClock(), every_s=0.1)
    with pytest.raises(AdapterError, match=r"n\.pid: has no pid; write") as raised:
        await anext(metering.watch())
    assert raised.value.retryable


async def test_a_pid_of_nobody_and_a_port_of_nobody_are_nobody(tmp_path: Path) -> None:
    (tmp_path / "n.pid").write_text("999999999")
    wanted = {"n1": UsedProcess(pid_file="n.pid"), "n2": UsedProcess(port=free_port())}
    metering = ProcessMetering(wanted, (), dict, tmp_path, SystemClock(), every_s=0.1)
    assert (await anext(metering.watch())).usages == ()


async def test_a_pid_file_that_cannot_be_read_raises(tmp_path: Path) -> None:
    (tmp_path / "n.pid").mkdir()
    wanted = {"n1": UsedProcess(pid_file="n.pid")}
    metering = ProcessMetering(wanted, (), dict, tmp_path, SystemClock(), every_s=0.1)
    with pytest.raises(AdapterError, match="directory"):
        await anext(metering.watch())


def test_a_source_is_opened_as_its_options_say(tmp_path: Path) -> None:
    clock = SystemClock()
    options = {"url": "http://127.0.0.1:9090", "cpu_query": "up", "provider_label": "p"}
    source = UsageSource("prometheus", 10.0, options)
    assert isinstance(open_metering(source, dict, tmp_path, clock), PrometheusMetering)
    own = UsageSource("psutil", 10.0, {"providers": ("a",)})
    assert isinstance(open_metering(own, dict, tmp_path, clock), ProcessMetering)
    with pytest.raises(AdapterError, match="cadvisor") as raised:
        open_metering(UsageSource("cadvisor", 10.0), dict, tmp_path, clock)
    assert not raised.value.retryable


async def test_a_port_of_another_users_process_raises_and_says_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = psutil.net_connections(kind="tcp")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (own,) = [c for c in psutil.net_connections(kind="tcp") if c.laddr and c.laddr.port == port]
        found = {"p": [Address("127.0.0.1", port)]}
        hidden = own._replace(pid=None)  # as a kernel shows it to who is not root
        monkeypatch.setattr(psutil, "net_connections", lambda kind: [*seen, hidden])
        metering = ProcessMetering({}, ["p"], lambda: found, tmp_path, SystemClock(), every_s=0.1)
        with pytest.raises(AdapterError, match=f"port {port} is another user's; run as"):
            await anext(metering.watch())
