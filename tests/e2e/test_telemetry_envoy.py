"""What a real Envoy reports is what happened: counts, failures, latency, ORCA."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.e2e.envoy import eventually, free_port
from tests.e2e.plane import WallClock
from tests.e2e.telemetry import (
    TIMEOUT_S,
    Plane,
    based,
    breaking,
    hanging,
    orca,
    quick,
    send,
    settled,
    sidecar,
    timed,
    without_endpoints,
)
from tests.e2e.upstream import serving
from xds_server.core.histogram import quantile_s
from xds_server.model.telemetry import LATENCY_BUCKETS_MS

pytestmark = pytest.mark.e2e


async def test_counts_latencies_and_bytes_are_those_of_the_requests(tmp_path: Path) -> None:
    async with serving("a") as up:
        mesh, listen = quick({"a": up["a"].port})
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            assert await send(listen, 200) == {200: 200}
            await settled(plane, 200, 0)
            assert plane.sums.hist["a"].sum() == 200
            assert plane.sums.of("a", "rx_bytes") > 200 * 100
            assert plane.sums.of("a", "tx_bytes") > 200 * 50
            registry, now_s = plane.sums.registry, WallClock().now_s()
            registry.roll()
            window = registry.window(now_s, 5)
            assert window.requests.tolist() == [200.0]
            assert window.latency_count.tolist() == [200.0]
            signals = registry.signals(now_s)[0]
            assert signals.error_ratio == 0.0
            assert signals.rps_by_service["search"] == pytest.approx(200.0 / window.covered_s[0])
            assert not plane.tally.refused


FAILURES = {
    # what fails: answers that the client gets, whether it is retried
    "answers 503": (503, True),
    "is refused": (503, True),
    "resets": (503, True),
    "sends garbage": (502, True),
    "times out": (504, False),  # the timeout is the whole request's
    "has no endpoints": (503, False),
}


@asynccontextmanager
async def failing(how: str) -> AsyncIterator[int]:
    """A port where every request fails in that way."""
    match how:
        case "answers 503" | "times out":
            async with serving("a") as up:
                up["a"].status = 503 if how == "answers 503" else 200
                up["a"].delay_s = 2 * TIMEOUT_S if how == "times out" else 0.0
                yield up["a"].port
        case "resets" | "sends garbage":
            async with breaking(b"garbage\r\n\r\n" if how == "sends garbage" else b"") as port:
                yield port
        case _:
            yield free_port()


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("how", FAILURES)
async def test_each_failed_attempt_is_counted_once(how: str, retries: int, tmp_path: Path) -> None:
    status, retried = FAILURES[how]
    count = 4 if how == "times out" else 20
    async with failing(how) as port:
        mesh, listen = quick({"a": port}, retries=retries)
        if how == "has no endpoints":
            mesh = without_endpoints(mesh)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            assert await send(listen, count) == {status: count}
            attempts = count * (1 + retries) if retried else count
            await settled(plane, attempts, attempts)


@pytest.mark.parametrize("retries", [0, 1])
async def test_connections_that_hang_are_attempts_that_failed(retries: int, tmp_path: Path) -> None:
    async with hanging() as port:
        mesh, listen = quick({"a": port}, retries=retries)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path) as envoy:
            await based(plane)
            assert (await send(listen, 4)).total() == 4
            # Requests share the connection that hangs: how many are retried when it is given
            # up depends on when they came.
            retried = (await envoy.stats("cluster.a.upstream_rq_retry")).values()
            attempts = 4 + int(sum(retried))
            await settled(plane, attempts, attempts)


async def test_an_answer_that_breaks_off_is_an_attempt_whose_failure_envoy_hides(
    tmp_path: Path,
) -> None:
    async with breaking(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc") as port:
        mesh, listen = quick({"a": port}, retries=1)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            assert await send(listen, 1) == {0: 1}
            await settled(plane, 1, 0)


async def test_a_failure_that_a_retry_mends_is_counted(tmp_path: Path) -> None:
    async with serving("a") as up:
        up["a"].statuses = [503, 200]
        mesh, listen = quick({"a": up["a"].port}, retries=1)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            assert await send(listen, 20) == {200: 20}
            await settled(plane, 40, 20)


async def test_nothing_is_lost_while_the_sink_is_away(tmp_path: Path) -> None:
    async with serving("a") as up:
        mesh, listen = quick({"a": up["a"].port})
        plane = Plane(mesh)
        async with AsyncExitStack() as stack:
            async with plane.serving():
                await stack.enter_async_context(sidecar(mesh, tmp_path))
                await based(plane)
                assert await send(listen, 30) == {200: 30}
                await settled(plane, 30, 0)
            assert await send(listen, 50) == {200: 50}
            assert plane.sums.of("a", "requests") == 30
            async with plane.serving():
                await settled(plane, 80, 0)


async def test_the_95th_percentile_is_within_a_fifth(tmp_path: Path) -> None:
    async with serving("a") as up:
        mesh, listen = quick({"a": up["a"].port}, timeout_s=2.0)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            up["a"].delay_s = 0.02
            await send(listen, 90)
            up["a"].delay_s = 0.1
            spent = await timed(listen, 20)
            await settled(plane, 110, 0)
            measured = quantile_s(plane.sums.hist["a"], np.array(LATENCY_BUCKETS_MS) / 1e3, 0.95)
            assert measured == pytest.approx(np.median(spent), rel=0.2)


async def test_providers_say_their_utilisation_and_price_by_orca(tmp_path: Path) -> None:
    async with serving("a", "b") as up:
        mesh, listen = quick({"a": up["a"].port, "b": up["b"].port})
        plane = Plane(mesh)
        up["a"].headers = orca(
            "cpu_utilization=0.25, application_utilization=0.625, mem_utilization=0.5, "
            "named_metrics.price_per_million_requests_usd=4.5"
        )
        up["b"].headers = orca("cpu_utilization=0.375")
        async with plane.serving(), sidecar(mesh, tmp_path):
            registry = plane.sums.registry

            async def said() -> bool:
                await send(listen, 20)
                load = registry.provider_load(WallClock().now_s())
                return bool(np.isfinite(load.utilisation_ratio).all())

            await eventually("both are heard", said)
            load = registry.provider_load(WallClock().now_s())
            assert load.providers == ("a", "b")
            assert load.utilisation_ratio == pytest.approx([0.625, 0.375])
            assert load.memory_ratio == pytest.approx([0.5, np.nan], nan_ok=True)
            assert load.price_per_million_usd == pytest.approx([4.5, np.nan], nan_ok=True)
            up["a"].headers = orca("named_metrics.price_per_million_requests_usd=9")

            async def dearer() -> bool:
                await send(listen, 20)
                load = registry.provider_load(WallClock().now_s())
                return bool(load.price_per_million_usd[0] == pytest.approx(9.0))

            await eventually("the new price is heard", dearer)


async def test_load_reports_count_what_ended_in_their_own_interval(tmp_path: Path) -> None:
    async with serving("a", "b") as up:
        mesh, listen = quick({"a": up["a"].port, "b": up["b"].port})
        plane = Plane(mesh)
        for upstream in up.values():
            upstream.headers = orca("application_utilization=0.5")
        up["b"].status = 503
        async with plane.serving(), sidecar(mesh, tmp_path):
            loads = plane.sums.loads

            def ended(name: str) -> np.ndarray:
                """Succeeded and failed: rates times the time between reports, their interval."""
                total = np.zeros(2)
                for (before_s, _), (at_s, reports) in pairwise(loads):
                    for r in reports:
                        if r.provider == name and np.isfinite(r.succeeded_rps):
                            total += np.array([r.succeeded_rps, r.failed_rps]) * (at_s - before_s)
                return total

            async def both_are_tracked() -> bool:
                await send(listen, 20)
                return all(ended(name).any() for name in "ab")

            await eventually("both are tracked", both_are_tracked)
            await eventually("an interval without traffic", lambda: not loads[-1][1])
            before = {name: (up[name].requests, ended(name)) for name in "ab"}
            await send(listen, 100)
            sent = {name: up[name].requests - before[name][0] for name in "ab"}
            new = {name: ended(name) - before[name][1] for name in "ab"}

            def all_reported() -> bool:
                new.update({name: ended(name) - before[name][1] for name in "ab"})
                return sum(float(n.sum()) for n in new.values()) > 0.9 * sum(sent.values())

            await eventually("all of it is reported", all_reported)
            assert new["a"] == pytest.approx([sent["a"], 0.0], rel=0.15)
            assert new["b"] == pytest.approx([0.0, sent["b"]], rel=0.15)


async def test_garbage_ends_its_stream_and_no_other(tmp_path: Path) -> None:
    async with serving("a") as up:
        mesh, listen = quick({"a": up["a"].port})
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane)
            for method, source in (
                ("envoy.service.metrics.v3.MetricsService/StreamMetrics", "metrics_service"),
                ("envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats", "load_stats"),
            ):
                async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}") as channel:
                    for body in (b"\xff\xff", b""):  # not a message; a message without a node
                        call: Any = channel.stream_stream(f"/{method}")(iter([body]))
                        with pytest.raises(grpc.aio.AioRpcError) as refused:
                            await call.read()
                        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
                assert plane.tally.refused[f"{source} malformed"] == 2
            await send(listen, 20)
            await settled(plane, 20, 0)
