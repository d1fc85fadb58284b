"""gRPC at both ends: servers that say their name, and an application that has no sidecar."""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tests.e2e.envoy import eventually

CHILD = Path(__file__).with_name("grpc_child.py")


@dataclass
class Provider(grpc.GenericRpcHandler):
    """A provider's endpoint that says its name; tests change how it answers."""

    name: str
    port: int = 0
    status: grpc.StatusCode = grpc.StatusCode.OK
    delay_s: float = 0.0
    calls: int = 0

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: Any) -> bytes:
        self.calls += 1
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.status is not grpc.StatusCode.OK:
            await context.abort(self.status, f"{self.name} says no")
        return self.name.encode()


@asynccontextmanager
async def providing(
    *names: str, address: str = "127.0.0.1:0"
) -> AsyncIterator[dict[str, Provider]]:
    """Run one endpoint per name."""
    providers, servers = {}, []
    for name in names:
        provider = Provider(name)
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((provider,))
        provider.port = server.add_insecure_port(address)
        await server.start()
        providers[name] = provider
        servers.append(server)
    try:
        yield providers
    finally:
        for server in servers:
            await server.stop(grace=None)


class Caller:
    """One application process that calls all the time, and what came back."""

    def __init__(
        self,
        bootstrap: dict[str, Any],
        folder: Path,
        *,
        targets: tuple[str, ...] = ("xds:///shop.search",),
        workers: int = 2,
        gap_s: float = 0.004,
        timeout_s: float | None = 10.0,
    ) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.log = folder / f"{bootstrap['node']['id']}.log"
        self._environment = {**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap)}
        self._settings = json.dumps(
            {
                "targets": targets,
                "workers": workers,
                "gap_s": gap_s,
                "timeout_s": timeout_s,
            }
        )

    async def start(self) -> "Caller":
        """Start without waiting for anything."""
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, CHILD, self._settings),
                env=self._environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        self._reading = asyncio.create_task(self._read())
        return self

    async def stop(self) -> None:
        """End the process, by force if need be."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(5.0):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = line.decode().strip()
            if text.startswith("!"):
                self.failures.append(text[1:])
            else:
                self.answers[text] += 1

    async def serves(self, *names: str, within_s: float = 10.0) -> None:
        """Wait until each of them has answered ten more calls."""
        before = Counter(self.answers)
        await eventually(
            f"{names} serve; failed: {self.failures[-3:]}",
            lambda: all(self.answers[n] >= before[n] + 10 for n in names),
            within_s=within_s,
        )

    @property
    def codes(self) -> set[str]:
        """Statuses of all calls that failed."""
        return {failure.split()[0] for failure in self.failures}

    async def split(self, count: int = 100) -> dict[str, float]:
        """Shares of the next ``count`` answers."""
        before = Counter(self.answers)
        deadline = time.monotonic() + 15.0
        while (self.answers - before).total() < count:
            assert time.monotonic() < deadline, (self.failures[-3:], self.log.read_text()[-2000:])
            await asyncio.sleep(0.01)
        new = self.answers - before
        return {name: n / new.total() for name, n in new.items()}
