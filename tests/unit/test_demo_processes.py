"""Children of the demo: awaited, watched, and never left behind."""

import asyncio
import sys
import time
from pathlib import Path

import psutil
import pytest

from xds_server.demo.processes import DemoError, Processes, find_envoy

STUBBORN = (
    "import signal, time, pathlib, sys;"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
)
PARENT = (
    "import subprocess, sys, pathlib, time;"
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "t = pathlib.Path(sys.argv[1] + '.new'); t.write_text(str(p.pid)); t.rename(sys.argv[1]);"
    "time.sleep(600)"
)


async def exists(path: Path) -> bool:
    return path.exists()  # noqa: ASYNC240 - a look at one file


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(5.0):
        while not gone(pid):  # noqa: ASYNC110 - a process has no event
            await asyncio.sleep(0.01)


async def test_a_child_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xds_server.demo.processes.TERMINATE_GRACE_S", 0.2)
    processes, flag = Processes(tmp_path), tmp_path / "up"
    child = processes.start("stubborn", [sys.executable, "-c", STUBBORN, str(flag)])
    await processes.ready(child, lambda: exists(flag), 20.0)
    await processes.stop()
    assert not child.alive
    assert gone(child.process.pid)
    assert processes.children == ()


async def test_what_a_child_started_goes_with_it(tmp_path: Path) -> None:
    processes, flag = Processes(tmp_path), tmp_path / "pid"
    child = processes.start("parent", [sys.executable, "-c", PARENT, str(flag)])
    await processes.ready(child, lambda: exists(flag), 20.0)
    grandchild = int(flag.read_text())
    assert not gone(grandchild)
    await processes.stop()
    await until_gone(grandchild)


async def test_a_child_that_dies_is_named_with_its_last_words(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("provider", [sys.executable, "-c", "import sys; sys.exit('port in use')"])
    try:
        with pytest.raises(DemoError, match=r"provider died \(exit code 1\).*\n.*port in use"):
            async with asyncio.timeout(20.0):
                await processes.watch()
    finally:
        processes.kill_all()


async def test_a_child_killed_on_purpose_is_no_news(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    child = processes.start("provider", [sys.executable, "-c", "import time; time.sleep(600)"])
    await processes.kill(child)
    assert not child.alive
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await processes.watch()


async def test_a_child_that_is_not_ready_in_time_is_an_error(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    child = processes.start("slow", [sys.executable, "-c", "import time; time.sleep(600)"])
    began_s = time.monotonic()
    try:
        with pytest.raises(DemoError, match="slow was not ready within"):
            await processes.ready(child, lambda: exists(tmp_path / "never"), 0.2)
    finally:
        processes.kill_all()
    assert time.monotonic() - began_s < 20.0
    assert not child.alive


def test_a_missing_envoy_is_an_error_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVOY", str(tmp_path / "envoy"))
    with pytest.raises(DemoError, match="cannot be run") as raised:
        find_envoy()
    assert raised.value.exit_code == 2
