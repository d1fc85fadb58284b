"""By hand, where a Prometheus is installed: the Metering contract against the real one.

    .venv/bin/pytest tests/contract/check_prometheus.py

Not part of `make test`, which needs only Python and Envoy. Debian: `apt install prometheus`.
"""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from adapters.testing.discovery import DEADLINE_S
from adapters.testing.metering import AskedMeteringContract
from adapters.usage import PrometheusMetering
from tests.contract.exporter import QUERIES, USAGES, Exporter
from tests.contract.servers import serving
from xds_server.errors import AdapterError
from xds_server.model.usage import Usage

CONFIG = """\
global: {{scrape_interval: 500ms, scrape_timeout: 400ms}}
scrape_configs:
- job_name: demo
  honor_labels: true
  static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@dataclass
class RealWorld:
    folder: Path
    port: int
    exporter: Exporter
    usages: dict[str, Usage] = field(default_factory=lambda: dict(USAGES))
    process: asyncio.subprocess.Process | None = None

    def __post_init__(self) -> None:
        self.metering = self.asking(QUERIES)

    def asking(self, queries: dict[str, str]) -> PrometheusMetering:
        url = f"http://127.0.0.1:{self.port}"
        return PrometheusMetering(url, queries, "node", of_providers=False, every_s=0.1)

    def is_true(self, found: Usage) -> bool:
        return found == self.usages[found.of]

    async def set_present(self, *names: str) -> None:
        self.exporter.present = set(names)

    async def set_answering(self, answering: bool) -> None:
        if answering:
            await self.start()
        else:
            await self.stop()

    async def start(self) -> None:
        binary = shutil.which("prometheus")
        assert binary, "no prometheus in PATH"
        self.process = await asyncio.create_subprocess_exec(
            binary,
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
            while True:
                if await self._has_scraped(session):
                    return
                await asyncio.sleep(0.1)

    async def _has_scraped(self, session: aiohttp.ClientSession) -> bool:
        query = {"query": f"count({{__name__=~'demo_.*'}}) == {len(self.exporter.rows)}"}
        url = f"http://127.0.0.1:{self.port}/api/v1/query"
        try:
            async with session.get(url, params=query) as answer:
                return answer.status == 200 and bool((await answer.json())["data"]["result"])
        except aiohttp.ClientError:
            return False

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RealWorld]:
    exporter = Exporter()
    app = web.Application()
    app.router.add_get("/metrics", exporter.metrics)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with serving(app, None) as target:
        (tmp_path / "prometheus.yml").write_text(CONFIG.format(port=target))
        real = RealWorld(tmp_path, port, exporter)
        await real.start()
        try:
            yield real
        finally:
            await real.stop()


class TestRealPrometheus(AskedMeteringContract):
    @pytest.fixture
    def world(self, world: RealWorld) -> RealWorld:
        return world


@pytest.mark.parametrize(
    ("query", "said", "retryable"),
    [
        ("sum by (", "refuses cpu_query: ", False),
        ("1", "cpu_query gives a scalar", False),
        ("demo_cpu_ratio[1m]", "cpu_query gives a matrix", False),
        ("{__name__=~'demo_.*'}", "more than one series", True),
        ("demo_cpu_ratio / on() demo_memory_bytes", "answers 422", True),
    ],
)
async def test_faults_are_told_as_they_are(
    world: RealWorld, query: str, said: str, retryable: bool
) -> None:
    with pytest.raises(AdapterError) as raised:
        await anext(world.asking({"cpu_ratio": query}).watch())
    assert said in str(raised.value)
    assert raised.value.retryable is retryable
