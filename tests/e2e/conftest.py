"""Envoys that tests start, and that are ended with them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.envoy import Envoy, free_port
from tests.e2e.fixed import bootstrap
from xds_server.model.topology import Mesh
from xds_server.resources.bootstrap import render_bootstrap


@pytest.fixture(params=["delta", "sotw"])
def api(request: pytest.FixtureRequest) -> str:
    """A test that uses it runs in both protocols."""
    return str(request.param)


@pytest.fixture
async def envoys(tmp_path: Path) -> AsyncIterator[Callable[[dict[str, Any]], Envoy]]:
    """Make Envoys from bootstraps; starting them is the test's affair, ending them is not."""
    made: list[Envoy] = []

    def make(boot: dict[str, Any]) -> Envoy:
        made.append(Envoy(boot, tmp_path))
        return made[-1]

    yield make
    for envoy in made:
        await envoy.stop()


@pytest.fixture
def start(envoys: Callable[[dict[str, Any]], Envoy], api: str) -> Callable[..., Awaitable[Envoy]]:
    """Start a bare Envoy on a control plane's port, and wait until it serves."""

    async def begin(xds_port: int, **options: Any) -> Envoy:
        envoy = envoys(bootstrap(xds_port, free_port(), api, **options))
        return await (await envoy.start()).ready()

    return begin


@pytest.fixture
def sidecar(envoys: Callable[[dict[str, Any]], Envoy], api: str) -> Callable[..., Envoy]:
    """Make a sidecar of a mesh's application ``shop``, not started yet."""

    def make(mesh: Mesh, node: str = "n1") -> Envoy:
        settings = {"admin.address": f"127.0.0.1:{free_port()}", "api": api}
        return envoys(render_bootstrap(mesh, "shop", node, settings))

    return make
