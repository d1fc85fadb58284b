"""Child processes that are waited for, watched, and never left behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xds_server.errors import XdsServerError

POLL_S: Final = 0.05
TERMINATE_GRACE_S: Final = 2.0
LOG_TAIL_LINES: Final = 12
LOG_LINE_CHARS: Final = 400


class DemoError(XdsServerError):
    """The demo cannot go on; the message says why and what to do."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        self.exit_code = exit_code
        super().__init__(message)


@dataclass(slots=True)
class Child:
    """One process in a process group of its own, with its output in a file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    may_die: bool = False

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to its process group; nothing happens when that is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def log_tail(self) -> str:
        """Return the last lines that it wrote."""
        with self.log.open(errors="replace") as lines:
            last = deque(lines, maxlen=LOG_TAIL_LINES)
        return "\n".join(line.rstrip()[:LOG_LINE_CHARS] for line in last)


class Processes:
    """The children of one run. ``stop`` ends all of them; ``kill_all`` needs no event loop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: dict[str, Child] = {}

    @property
    def children(self) -> tuple[Child, ...]:
        """All that were started and not ended on purpose."""
        return tuple(self._children.values())

    def start(self, name: str, command: Sequence[str]) -> Child:
        """Start a child; its log is appended to when the name was used before."""
        log = self._directory / f"{name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children[name] = child
        return child

    async def ready(
        self, child: Child, probe: Callable[[], Awaitable[bool]], deadline_s: float
    ) -> None:
        """Return when the probe says so; DemoError when the child dies or is too late."""
        until_s = time.monotonic() + deadline_s
        while not await probe():
            if not child.alive:
                raise died(child)
            if time.monotonic() > until_s:
                message = f"{child.name} was not ready within {deadline_s:g} s"
                raise DemoError(f"{message}; its log ends with:\n{child.log_tail()}")
            await asyncio.sleep(POLL_S)

    async def watch(self) -> None:
        """Raise DemoError when a child dies that nobody killed; run until cancelled."""
        while True:
            for child in self.children:
                if not child.may_die and not child.alive:
                    raise died(child)
            await asyncio.sleep(4 * POLL_S)

    async def kill(self, child: Child) -> None:
        """SIGKILL, as a crash would; returns when the process is gone."""
        child.may_die = True
        child.signal(signal.SIGKILL)
        while child.alive:  # noqa: ASYNC110 - a process has no event to wait for
            await asyncio.sleep(POLL_S / 5)

    async def stop(self) -> None:
        """Ask all to end, then make them."""
        try:
            for child in self.children:
                child.may_die = True
                child.signal(signal.SIGTERM)
            until_s = time.monotonic() + TERMINATE_GRACE_S
            while (  # noqa: ASYNC110 - processes have no event to wait for
                any(c.alive for c in self.children) and time.monotonic() < until_s
            ):
                await asyncio.sleep(POLL_S)
        finally:
            self.kill_all()

    def kill_all(self) -> None:
        """SIGKILL whatever is left of each group, and reap it."""
        for child in self.children:
            child.may_die = True
            child.signal(signal.SIGKILL)
        for child in self.children:
            child.process.wait()
            # What the child itself started may outlive it in its group.
            child.signal(signal.SIGKILL)
        self._children.clear()


def died(child: Child) -> DemoError:
    """Return the error that says which child ended, how, and its last words."""
    code = child.process.poll()
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return DemoError(f"{child.name} died ({how}); its log ends with:\n{child.log_tail()}")


def find_envoy() -> Path:
    """Return the Envoy binary: $ENVOY, or .tools of here or of the repository."""
    named = os.environ.get("ENVOY")
    if named:
        if os.access(named, os.X_OK):
            return Path(named)
        raise DemoError(f"$ENVOY is {named}, which cannot be run", exit_code=2)
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        path = root / ".tools" / "envoy" / "_bin" / "envoy"
        if os.access(path, os.X_OK):
            return path
    message = "no Envoy binary: run `make setup`, or set ENVOY to its path"
    raise DemoError(message, exit_code=2)
