"""What a real Envoy logs of sampled calls is what was called."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from tests.e2e.envoy import eventually
from tests.e2e.plane import WallClock
from tests.e2e.telemetry import NODE, Plane, breaking, quick, send, sidecar
from tests.e2e.upstream import serving
from xds_server.model.services import SampledCalls
from xds_server.model.topology import Mesh
from xds_server.registry.sampled import calls_by_node, calls_by_provider, sampled_calls
from xds_server.resources.listener import SAMPLE_KEY
from xds_server.wire.access_log_service import SERVICE, SOURCE

pytestmark = pytest.mark.e2e


def logged(port: int, ratio: float = 1.0) -> tuple[Mesh, int]:
    mesh, listen = quick({"a": port}, timeout_s=2.0)
    telemetry = replace(mesh.telemetry, access_log_sample_ratio=ratio)
    return replace(mesh, telemetry=telemetry), listen


@asynccontextmanager
async def logging(port: int, folder: Path, ratio: float = 1.0) -> AsyncIterator[tuple[Plane, int]]:
    mesh, listen = logged(port, ratio)
    plane = Plane(mesh)
    async with plane.serving(), sidecar(mesh, folder):
        yield plane, listen


def sampled(plane: Plane) -> SampledCalls | None:
    window = plane.sums.registry.calls.window(WallClock().now_s())
    return sampled_calls(window, calls_by_provider).get("a")


async def all_sampled(plane: Plane, count: int) -> SampledCalls:
    def there() -> SampledCalls | None:
        found = sampled(plane)
        return found if found is not None and found.calls >= count else None

    found = await eventually(f"{count} calls", there)
    assert found is not None
    assert found.calls == count
    return found


async def request(port: int, method: str, count: int, **options: Any) -> Counter[int]:
    answers: Counter[int] = Counter()
    async with aiohttp.ClientSession() as session:
        for _ in range(count):
            url = f"http://127.0.0.1:{port}/"
            async with session.request(method, url, **options) as answer:
                await answer.read()
                answers[answer.status] += 1
    return answers


async def test_methods_sizes_and_failures_are_those_of_the_calls(tmp_path: Path) -> None:
    async with serving("a") as up, logging(up["a"].port, tmp_path) as (plane, listen):
        for method, count in (("GET", 50), ("HEAD", 10), ("OPTIONS", 10)):
            await request(listen, method, count)
        await request(listen, "POST", 25, data=b"x" * 10_000)
        up["a"].status = 503
        assert await request(listen, "PUT", 5) == {503: 5}
        found = await all_sampled(plane, 100)
        assert found.read_ratio.value == 0.70
        assert found.failed_ratio.value == 0.05
        assert found.request_bytes.value is not None
        assert 2_500 < found.request_bytes.value < 2_500 + 1_000  # bodies, and headers
        assert found.response_bytes.value is not None
        assert 1 < found.response_bytes.value < 1_000
        assert found.flags == {}
        registry, now_s = plane.sums.registry, WallClock().now_s()
        assert registry.signals(now_s)[0].read_ratio == 0.70
        assert registry.sampled_by_service(NODE.node_id) == {"search": 100.0}
        by_node = sampled_calls(registry.calls.window(now_s), calls_by_node)
        assert by_node[NODE.node_id].calls == 100
        assert not plane.tally.refused


async def test_response_times_are_precise(tmp_path: Path) -> None:
    async with serving("a") as up, logging(up["a"].port, tmp_path) as (plane, listen):
        up["a"].delay_s = 0.05
        await send(listen, 20)
        slow = await all_sampled(plane, 20)
        assert slow.latency_p50_ms.samples == 20
        assert slow.latency_p50_ms.value == pytest.approx(51.0, rel=0.15)
        assert slow.latency_mean_ms.value is not None
        assert slow.duration_mean_ms.value is not None
        assert 50.0 < slow.latency_mean_ms.value < slow.duration_mean_ms.value < 80.0


async def test_an_answer_that_breaks_off_is_a_failure_here(tmp_path: Path) -> None:
    """Envoy's counters hide it."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc"
    async with breaking(answer) as port, logging(port, tmp_path) as (plane, listen):
        assert await send(listen, 3) == {0: 3}
        found = await all_sampled(plane, 3)
        assert found.failed_ratio.value == 1.0
        assert sum(found.flags.values()) == 3


async def test_a_sample_is_a_part_of_the_calls(tmp_path: Path) -> None:
    async with serving("a") as up, logging(up["a"].port, tmp_path, 0.2) as (plane, listen):
        await send(listen, 500)
        # Of 500 with 0.2: 100 with a deviation of 9, and what is still in the buffer is sent.
        await eventually("some", lambda: plane.tally.counted[f"{SOURCE} samples"] > 50)
        messages = plane.tally.counted["metrics_service messages"]
        await eventually(
            "two flushes", lambda: plane.tally.counted["metrics_service messages"] > messages + 1
        )
        assert 50 < plane.tally.counted[f"{SOURCE} samples"] < 150


async def test_an_operator_samples_more_at_one_envoy(tmp_path: Path) -> None:
    async with serving("a") as up:
        mesh, listen = logged(up["a"].port, 0.000_001)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path) as envoy:
            async with aiohttp.ClientSession() as session:
                url = f"http://127.0.0.1:{envoy.admin_port}/runtime_modify"
                async with session.post(url, params={SAMPLE_KEY: "1000000"}) as answer:
                    assert answer.status == 200
            await send(listen, 50)
            await all_sampled(plane, 50)


async def test_bad_logs_are_refused_alone(tmp_path: Path) -> None:
    async with serving("a") as up, logging(up["a"].port, tmp_path) as (plane, listen):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}") as channel:
            for body in (b"\xff\xff", b""):  # not a message; a message without a node
                stream: Any = channel.stream_unary(f"/{SERVICE}/StreamAccessLogs")
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stream(iter([body]))
                assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert plane.tally.refused[f"{SOURCE} malformed"] == 2
        await send(listen, 20)
        await all_sampled(plane, 20)
