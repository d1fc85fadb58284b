"""Real Envoy processes for tests: started on free ports, always ended by pid."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

ROOT = Path(__file__).parents[2]
_T = TypeVar("_T")


def envoy_binary() -> Path:
    """Return the Envoy to test with; it is never optional."""
    path = Path(os.environ.get("ENVOY") or ROOT / ".tools/envoy/_bin/envoy")
    assert path.is_file(), f"no Envoy at {path}: run `make setup`, or set ENVOY"
    return path


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def eventually(
    what: str, probe: Callable[[], Awaitable[_T] | _T], *, within_s: float = 10.0
) -> _T:
    """Return the first truthy result of ``probe``; fail with its last result otherwise."""
    deadline = time.monotonic() + within_s
    last: Any = None
    while time.monotonic() < deadline:
        try:
            last = probe()
            if asyncio.iscoroutine(last):
                last = await last
        except (aiohttp.ClientError, OSError) as error:
            last = error
        if last and not isinstance(last, Exception):
            return last  # type: ignore[no-any-return]
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what}: not within {within_s} s; last: {last!r}")


class Envoy:
    """One Envoy process and its admin interface."""

    def __init__(self, bootstrap: dict[str, Any], folder: Path) -> None:
        self.admin_port: int = bootstrap["admin"]["address"]["socket_address"]["port_value"]
        self.node_id = bootstrap["node"]["id"]
        self._config = folder / f"{self.node_id}.json"
        self._config.write_text(json.dumps(bootstrap))
        self.log = folder / f"{self.node_id}.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> "Envoy":
        """Start without waiting for anything."""
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                envoy_binary(),
                *("-c", self._config, "--concurrency", "1", "--disable-hot-restart", "-l", "warn"),
                stdout=log,
                stderr=log,
            )
        return self

    async def ready(self, within_s: float = 14.0) -> "Envoy":
        """Wait until it serves; 14 s is less than Envoy's own patience with a missing answer."""

        async def live() -> bool:
            assert self._process is not None
            assert self._process.returncode is None, self.log.read_text()[-3000:]
            return (await self.get("/ready")).strip() == "LIVE"

        await eventually(f"{self.node_id} is live", live, within_s=within_s)
        return self

    async def stop(self) -> None:
        """End the process, by force if need be."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(3.0):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def get(self, path: str) -> str:
        """Read from the admin interface."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.admin_port}{path}") as answer,
        ):
            return await answer.text()

    async def stats(self, pattern: str) -> dict[str, float]:
        """Counters and gauges whose name matches."""
        found = json.loads(await self.get(f"/stats?format=json&filter={pattern}"))["stats"]
        return {s["name"]: s["value"] for s in found if "value" in s}

    async def runtime(self) -> dict[str, str]:
        """Runtime keys with their final values."""
        entries = json.loads(await self.get("/runtime"))["entries"]
        return {key: entry["final_value"] for key, entry in entries.items()}
