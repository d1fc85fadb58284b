"""What a real Envoy reports by OTLP is what happened, whatever is lost on the way."""

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.e2e.envoy import Envoy, free_port
from tests.e2e.plane import WallClock
from tests.e2e.telemetry import NODE, Plane, based, quick, send, settled, sidecar, timed
from tests.e2e.upstream import serving
from xds_server.core.histogram import quantile_s
from xds_server.generated import xds_server_otlp_pb2 as pb
from xds_server.model.telemetry import LATENCY_BUCKETS_MS
from xds_server.model.topology import Mesh, StatsSink
from xds_server.resources.bootstrap import render_bootstrap
from xds_server.wire.otlp_service import SERVICE, SOURCE

pytestmark = pytest.mark.e2e


def shop_by_otlp(port: int) -> tuple[Mesh, int]:
    mesh, listen = quick({"a": port}, timeout_s=2.0)
    telemetry = replace(mesh.telemetry, sink=StatsSink.OPEN_TELEMETRY)
    return replace(mesh, telemetry=telemetry), listen


async def test_counts_latencies_bytes_and_hosts_are_those_of_the_requests(tmp_path: Path) -> None:
    async with serving("a") as up:
        up["a"].statuses = [200, 200, 200, 503]
        mesh, listen = shop_by_otlp(up["a"].port)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane, SOURCE)
            assert await send(listen, 200) == {200: 150, 503: 50}
            await settled(plane, 200, 50)
            assert plane.sums.hist["a"].sum() == 200
            assert plane.sums.of("a", "rx_bytes") > 200 * 100
            assert plane.sums.of("a", "tx_bytes") > 200 * 50
            registry, now_s = plane.sums.registry, WallClock().now_s()
            assert registry.hosts(NODE.node_id)["a"].healthy == 1.0
            registry.roll()
            window = registry.window(now_s, 5)
            assert window.requests.tolist() == [200.0]
            assert window.latency_count.tolist() == [200.0]
            assert registry.signals(now_s)[0].error_ratio == 0.25
            assert not plane.tally.refused
            assert plane.tally.counted["metrics_service messages"] == 0


async def test_the_95th_percentile_is_within_a_fifth(tmp_path: Path) -> None:
    async with serving("a") as up:
        mesh, listen = shop_by_otlp(up["a"].port)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane, SOURCE)
            up["a"].delay_s = 0.02
            await send(listen, 45)
            up["a"].delay_s = 0.1
            spent = await timed(listen, 10)
            await settled(plane, 55, 0)
            measured = quantile_s(plane.sums.hist["a"], np.array(LATENCY_BUCKETS_MS) / 1e3, 0.95)
            assert measured == pytest.approx(np.median(spent), rel=0.2)


async def test_nothing_is_lost_while_the_sink_is_away_nor_when_envoy_starts_anew(
    tmp_path: Path,
) -> None:
    """Histograms neither, of which the metrics service only says the last interval."""
    async with serving("a") as up:
        mesh, listen = shop_by_otlp(up["a"].port)
        plane = Plane(mesh)
        async with AsyncExitStack() as first:
            async with plane.serving():
                await first.enter_async_context(sidecar(mesh, tmp_path))
                await based(plane, SOURCE)
                assert await send(listen, 30) == {200: 30}
                await settled(plane, 30, 0)
            assert await send(listen, 50) == {200: 50}
            assert plane.sums.of("a", "requests") == 30
            async with plane.serving():
                await settled(plane, 80, 0)
                assert plane.sums.hist["a"].sum() == 80
        async with plane.serving(), sidecar(mesh, tmp_path):
            assert await send(listen, 90) == {200: 90}  # more than before: no counter falls
            await settled(plane, 170, 0)
            assert plane.sums.hist["a"].sum() == 170
            assert plane.tally.events[f"{SOURCE} reset"] == 1


async def test_deltas_of_a_bootstrap_that_is_not_ours_add_up(tmp_path: Path) -> None:
    async with serving("a") as up:
        mesh, listen = shop_by_otlp(up["a"].port)
        plane = Plane(mesh)
        settings = {"admin.address": f"127.0.0.1:{free_port()}"}
        bootstrap = render_bootstrap(mesh, "shop", NODE.node_id, settings)
        config: dict[str, Any] = bootstrap["stats_sinks"][0]["typed_config"]
        config |= {"report_counters_as_deltas": True, "report_histograms_as_deltas": True}
        envoy = Envoy(bootstrap, tmp_path)
        async with plane.serving():
            try:
                await (await envoy.start()).ready()
                await based(plane, SOURCE)
                assert await send(listen, 60) == {200: 60}
                await settled(plane, 60, 0)
                assert plane.sums.hist["a"].sum() == 60
            finally:
                await envoy.stop()


async def test_bad_exports_are_refused_alone(tmp_path: Path) -> None:
    stranger = pb.ExportMetricsServiceRequest()
    attribute = stranger.resource_metrics.add().resource.attributes.add(key="service.instance.id")
    attribute.value.string_value = "n2"
    async with serving("a") as up:
        mesh, listen = shop_by_otlp(up["a"].port)
        plane = Plane(mesh)
        async with plane.serving(), sidecar(mesh, tmp_path):
            await based(plane, SOURCE)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}") as channel:
                export: Any = channel.unary_unary(f"/{SERVICE}/Export")
                for body in (b"\xff\xff", b""):  # not a message; a message without a node
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await export(body)
                    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
                assert await export(stranger.SerializeToString()) == b""
            assert plane.tally.refused[f"{SOURCE} malformed"] == 2
            assert plane.tally.refused[f"{SOURCE} no ADS stream"] == 1
            await send(listen, 20)
            await settled(plane, 20, 0)
