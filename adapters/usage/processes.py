"""What processes of this host use, by psutil."""

import asyncio
import ipaddress
import math
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from xds_server.errors import AdapterError
from xds_server.model.ids import ProviderName
from xds_server.model.topology import Address, UsedProcess
from xds_server.model.usage import Usage
from xds_server.ports import Clock, UsageUpdate

FIRST_LOOK_S: Final = 0.5
"""CPU is what was used between two looks; the first two are this far apart at most."""
PID_FILE_BYTES_MAX: Final = 64
COMMAND_CHARS_MAX: Final = 4096
"""Of a command line, so much is searched."""

BIRTH_SLACK_S: Final = 1.0
"""The clock of births is not quite the one of looks."""

_Birth = tuple[int, float]
"""A process for good: pids are used again, pids with their time of birth are not."""


@dataclass(frozen=True, slots=True)
class Found:
    """One process at one look."""

    birth: _Birth
    cpu_s: float  # user and system, since its birth
    rss_bytes: int


_Who = tuple[str, bool]
"""A node id or a provider's name, and whether it is a provider."""


@dataclass(frozen=True, slots=True)
class _Look:
    at_s: float
    wall_s: float
    found: Mapping[_Who, list[Found]]


class ProcessMetering:
    """Looks every ``every_s`` at the processes of each instance and provider, with their children.

    CPU is what they used since the look before by what this host's CPUs could give, memory
    the sum of resident sets (so what processes share counts for each). Loss policy: what a process
    used between the last look and its end is lost. Who has no process is not in the update.
    """

    def __init__(
        self,
        processes: Mapping[str, UsedProcess],
        providers: Collection[ProviderName],
        endpoints: Callable[[], Mapping[ProviderName, Collection[Address]]],
        folder: Path,
        clock: Clock,
        *,
        every_s: float,
    ) -> None:
        """``processes`` are by node id; ``endpoints`` is asked at each look; files in ``folder``.

        Of a provider's endpoints those count that have an address of this host.
        """
        self._processes = dict(processes)
        self._patterns = {
            of: re.compile(p.command) for of, p in processes.items() if p.command is not None
        }
        self._providers, self._endpoints = tuple(providers), endpoints
        self._folder = folder
        self._every_s, self._clock = every_s, clock

    async def watch(self) -> AsyncIterator[UsageUpdate]:
        """Yield what is in use now, and again at each look; see ``ports.Metering``."""
        before = await self._look()
        wait_s = min(FIRST_LOOK_S, self._every_s)
        while True:
            await self._clock.sleep_s(wait_s)
            now = await self._look()
            yield _update(before, now)
            before, wait_s = now, self._every_s

    async def _look(self) -> "_Look":
        at_s, wall_s = self._clock.now_s(), self._clock.wall_s()
        there = self._endpoints() if self._providers else {}
        addresses = {name: there.get(name, ()) for name in self._providers}
        # In a thread: reading /proc of a host with many processes takes a while.
        return _Look(at_s, wall_s, await asyncio.to_thread(self._find, addresses))

    def _find(
        self, addresses: Mapping[ProviderName, Collection[Address]]
    ) -> dict[_Who, list[Found]]:
        provider_ports = _local_ports(addresses) if addresses else {}
        wanted_ports = {p.port for p in self._processes.values() if p.port is not None}
        wanted_ports |= {port for ports in provider_ports.values() for port in ports}
        listeners = _listeners(wanted_ports) if wanted_ports else {}
        commands = _commands() if self._patterns else {}
        children = _children()
        found = {}
        for of, process in self._processes.items():
            found[of, False] = _family(self._pids(of, process, listeners, commands), children)
        for of, ports in provider_ports.items():
            pids = {pid for port in ports for pid in listeners.get(port, ())}
            found[of, True] = _family(pids, children)
        return {who: processes for who, processes in found.items() if processes}

    def _pids(
        self,
        of: str,
        process: UsedProcess,
        listeners: Mapping[int, set[int]],
        commands: Mapping[int, str],
    ) -> set[int]:
        if process.pid_file is not None:
            pid = _read_pid(self._folder / process.pid_file)
            return set() if pid is None else {pid}
        if process.port is not None:
            return listeners.get(process.port, set())
        return {pid for pid, line in commands.items() if self._patterns[of].search(line)}


def _update(before: _Look, now: _Look) -> UsageUpdate:
    available_s = max(now.at_s - before.at_s, 1e-9) * (psutil.cpu_count() or 1)
    used_s = {f.birth: f.cpu_s for processes in before.found.values() for f in processes}
    usages = []
    for (of, is_provider), processes in now.found.items():
        cpu_s = _cpu_s(processes, used_s, before.wall_s)
        memory_bytes = float(sum(f.rss_bytes for f in processes))
        usages.append(Usage(of, is_provider, min(cpu_s / available_s, 1.0), memory_bytes))
    return UsageUpdate(tuple(usages))


def _cpu_s(
    processes: Iterable[Found], used_s: Mapping[_Birth, float], since_wall_s: float
) -> float:
    """CPU since the look before; NaN if none of these was known then or was born since."""
    total_s, known = 0.0, False
    for process in processes:
        born_s = process.birth[1]
        before_s = used_s.get(process.birth)
        if before_s is None and born_s < since_wall_s - BIRTH_SLACK_S:
            continue  # it is older, but nobody looked
        known = True
        total_s += max(process.cpu_s - (before_s or 0.0), 0.0)
    return total_s if known else math.nan


def _read_pid(path: Path) -> int | None:
    """Return the pid in that file; None where there is no file: the process is not running."""
    try:
        with path.open("rb") as file:
            text = file.read(PID_FILE_BYTES_MAX + 1).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AdapterError(f"{path}: {error.strerror}", retryable=True) from error
    if len(text) > PID_FILE_BYTES_MAX or not text.isdigit():
        remedy = "write nothing but the number of the process to it"
        raise AdapterError(f"{path}: has no pid; {remedy}", retryable=True)
    return int(text)


def _local_ports(
    addresses: Mapping[ProviderName, Collection[Address]],
) -> dict[ProviderName, set[int]]:
    """Return the ports of those addresses that are this host's."""
    own = {
        address.address.partition("%")[0]
        for interface in psutil.net_if_addrs().values()
        for address in interface
    }
    return {
        name: {a.port for a in mine if a.host in own or _is_loopback(a.host)}
        for name, mine in addresses.items()
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a unix socket: nobody says who listens on it
        return False


def _listeners(ports: Collection[int]) -> dict[int, set[int]]:
    """Return who listens on each of the ports. Raises where a process may not be looked into."""
    found: dict[int, set[int]] = {}
    hidden = set()
    for connection in psutil.net_connections(kind="tcp"):
        port = connection.laddr.port if connection.laddr else 0
        if connection.status != psutil.CONN_LISTEN or port not in ports:
            continue
        if connection.pid is None:
            hidden.add(port)
        else:
            found.setdefault(port, set()).add(connection.pid)
    unseen = sorted(hidden - found.keys())
    if unseen:
        remedy = "run as that user, or name a `pid_file` or a `command`"
        message = f"the process on port {unseen[0]} is another user's; {remedy}"
        raise AdapterError(message, retryable=True)
    return found


def _commands() -> dict[int, str]:
    """Return the command line of every process but this one."""
    own = psutil.Process().pid
    lines = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"]
        if words and process.pid != own:
            lines[process.pid] = " ".join(words)[:COMMAND_CHARS_MAX]
    return lines


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for process in psutil.process_iter(["ppid"]):
        children.setdefault(process.info["ppid"], []).append(process.pid)
    return children


def _family(pids: Collection[int], children: Mapping[int, list[int]]) -> list[Found]:
    """Return these processes and their descendants, each once; those that ended are left out."""
    found: dict[int, Found] = {}
    waiting, known = list(pids), set(pids)
    while waiting:
        pid = waiting.pop()
        new = [child for child in children.get(pid, ()) if child not in known]
        known.update(new)
        waiting += new
        seen = _seen(pid)
        if seen is not None:
            found[pid] = seen
    return list(found.values())


def _seen(pid: int) -> Found | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            cpu = process.cpu_times()
            birth = (pid, process.create_time())
            return Found(birth, cpu.user + cpu.system, process.memory_info().rss)
    except psutil.Error:  # it ended, or may not be looked at
        return None
