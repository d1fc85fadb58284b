"""Endpoints that announce themselves: a real Envoy, real endpoints, a server that dies."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.e2e.envoy import eventually, free_port
from tests.e2e.served import Plane, ports, served, sidecars
from tests.e2e.upstream import Traffic, serving
from xds_server.generated import xds_server_registry_pb2 as pb
from xds_server.wire.registry_service import SERVICE

pytestmark = pytest.mark.e2e
TTL_S = 2.0
LEAVE_S = TTL_S + 1.5  # looked for twice a second, gathered for 0.25 s, then sent

MESH = """\
mesh: test
mode: observe
engine: {{tick_s: 0.5, weights_ttl_s: 3.0}}
telemetry: {{stats_flush_interval_s: 0.25, load_report_interval_s: 1.0}}
services:
  search:
    providers:
      pool:
        locality: {{region: here}}
        discovery: {{adapter: registry}}
        price: {{per_million_requests_usd: 1.0}}
templates:
  web:
    calls:
      search: {{timeout_s: 2.0, retries: 1, listener: "127.0.0.1:{listen}"}}
    profiles:
      steady: {{latency_p95_s: 0.5}}
applications:
  shop: {{template: web}}
server:
  xds: {{address: "127.0.0.1:{xds}"}}
  admin: {{address: "127.0.0.1:{admin}"}}
"""


class Announcing(Plane):
    """A control plane whose only provider's endpoints announce themselves."""

    def write(self, mode: str = "observe", **changes: int) -> None:
        self.path.write_text(MESH.format(**{**self.ports, **changes}))

    async def pool(self) -> dict[str, Any]:
        ((service,),) = [await self.get("/v1/services")]
        (provider,) = service["providers"]
        return provider  # type: ignore[no-any-return]

    async def cli(self, *args: str) -> str:
        out = await self.ask(*args)
        assert out.returncode == 0, out.stderr
        return out.stdout


class Announcer:
    """What an endpoint runs: register, renew, and register again when the lease is gone."""

    def __init__(self, xds_port: int, port: int) -> None:
        self._target, self._port = f"127.0.0.1:{xds_port}", port
        self.registered = 0
        self.heard_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Announcer":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.fall_silent()

    async def fall_silent(self) -> None:
        """Send nothing any more, as a process that was killed."""
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        lease_id, options = "", [("grpc.max_reconnect_backoff_ms", 500)]
        async with grpc.aio.insecure_channel(self._target, options=options) as channel:
            while True:
                try:
                    if not lease_id:
                        lease_id = await self._register(channel)
                    beat = pb.HeartbeatRequest(
                        lease_id=lease_id, load=pb.Load(utilisation_ratio=0.25)
                    )
                    await channel.unary_unary(f"/{SERVICE}/Heartbeat")(beat.SerializeToString())
                    self.heard_s = time.monotonic()
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.NOT_FOUND:
                        lease_id = ""
                        continue
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                await asyncio.sleep(0.25)

    async def _register(self, channel: grpc.aio.Channel) -> str:
        request = pb.RegisterRequest(
            provider="pool", address="127.0.0.1", port=self._port, ttl_s=TTL_S, capacity_rps=40.0
        )
        body = await channel.unary_unary(f"/{SERVICE}/Register")(request.SerializeToString())
        self.registered += 1
        return str(pb.RegisterResponse.FromString(body).lease_id)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Announcing]:
    made = Announcing(tmp_path, ports({}))
    async with served(made):
        yield made


async def test_an_endpoint_comes_when_it_registers_and_leaves_when_it_falls_silent(
    plane: Announcing,
) -> None:
    xds, listeners = plane.ports["xds"], (free_port(), free_port())
    apis = zip(("n0", "n1"), listeners, ("delta", "sotw"), strict=True)
    async with (
        serving("one", "two") as up,
        sidecars(plane, *apis),
        Announcer(xds, up["one"].port) as one,
    ):

        async def registered() -> bool:
            return len((await plane.pool())["endpoints"]) == 1

        await eventually("it is registered", registered)
        first, second = (Traffic(port, gap_s=0.01) for port in listeners)
        async with first, second:
            both = (first, second)
            await eventually("it serves", lambda: all(t.answers["one"] > 20 for t in both))
            for traffic in both:
                traffic.failures.clear()  # of the time before Envoy had it
            async with Announcer(xds, up["two"].port) as two:
                await eventually(
                    "the other serves too", lambda: all(t.answers["two"] > 20 for t in both)
                )
                await one.fall_silent()

                async def gone() -> bool:
                    splits = await asyncio.gather(*(t.split(20) for t in both))
                    return all(split.get("one", 0.0) == 0.0 for split in splits)

                await eventually("it gets no traffic", gone)
                assert time.monotonic() - one.heard_s < LEAVE_S + 1.0  # 1 s to see it
                assert two.registered == 1
                await _shown(plane, up["two"].port)
            assert first.failures == second.failures == []


async def _shown(plane: Announcing, port: int) -> None:
    """What operators see of the one endpoint that is there, with ages and sources."""

    async def measured() -> dict[str, Any] | None:
        pool = await plane.pool()
        return pool if pool["traffic"]["latency_p99_ms"]["value"] else None

    pool = await eventually("it is measured", measured, within_s=15.0)
    (endpoint,) = pool["endpoints"]
    assert endpoint["address"] == {"host": "127.0.0.1", "port": port}
    assert (endpoint["source"], endpoint["locality"]) == ("registry", "here")
    assert 0.0 < endpoint["expires_in_s"] <= TTL_S
    assert endpoint["utilisation_ratio"]["value"] == 0.25
    assert pool["utilisation_ratio"]["source"] == "lease"
    assert pool["utilisation_ratio"]["age_s"] < TTL_S
    traffic = pool["traffic"]
    assert traffic["rps"]["value"] > 5.0
    assert 0.0 <= traffic["rps"]["age_s"] < 2.0
    quantiles = [traffic[f"latency_{q}_ms"]["value"] for q in ("p50", "p95", "p99")]
    assert quantiles == sorted(quantiles)
    assert (traffic["availability_ratio"]["value"], traffic["error_ratio"]["value"]) == (1.0, 0.0)
    price = pool["price_per_million_usd"]
    assert (price["value"], price["age_s"], price["source"]) == (1.0, None, "declared")
    assert (price["standard_error"], price["stale"]) == (0.0, False)
    hourly = traffic["rps"]["value"] * 3600.0 / 1e6
    assert pool["cost_usd_per_h"]["value"] == pytest.approx(hourly)
    instances = await plane.get("/v1/instances")
    assert [i["node_id"] for i in instances] == ["n0", "n1"]
    for instance in instances:
        assert (instance["application"], instance["phase"]) == ("shop", "steady")
        assert instance["health"] == "ok"
        assert instance["rps_by_service"]["search"] > 5.0
    table = await plane.cli("services", "search")
    assert f"127.0.0.1:{port}" in table
    assert json.loads(await plane.cli("services", "search", "--json"))[0]["service"] == "search"
    listed = await plane.cli("instances")
    assert "n0" in listed
    assert "n1" in listed


async def test_a_server_that_is_killed_and_comes_back_takes_traffic_from_no_endpoint(
    plane: Announcing,
) -> None:
    xds = plane.ports["xds"]
    async with (
        serving("one", "two") as up,
        Announcer(xds, up["one"].port) as one,
        Announcer(xds, up["two"].port) as two,
        sidecars(plane, ("n0", plane.ports["listen"], "delta")),
        Traffic(plane.ports["listen"], gap_s=0.01) as traffic,
    ):
        await eventually(
            "both serve", lambda: min(traffic.answers["one"], traffic.answers["two"]) > 20
        )
        traffic.failures.clear()
        await plane.end(signal.SIGKILL)
        await traffic.split(40)
        await plane.start()  # returns when streams are let in
        assert (one.registered, two.registered) == (2, 2)

        async def connected() -> bool:
            return len(await plane.get("/v1/instances")) == 1

        await eventually("the sidecar is back", connected, within_s=15.0)
        split = await traffic.split(60)
        assert set(split) == {"one", "two"}
        assert traffic.failures == []


async def test_tools_find_it_and_sigterm_ends_it_while_somebody_watches(
    plane: Announcing,
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.ports['xds']}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
        (body,) = (await call.read()).file_descriptor_response.file_descriptor_proto
        assert b"HeartbeatRequest" in body
        await call.done_writing()
        watch = channel.unary_stream(f"/{SERVICE}/Watch")(b"")
        assert pb.WatchResponse.FromString(await watch.read()).full
        assert await plane.end(signal.SIGTERM) == 0
        assert await watch.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
