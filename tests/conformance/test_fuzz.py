"""Whatever bytes a peer sends: its own stream may end, nothing else notices, nothing is left."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.load_stats.v3 import lrs_pb2
from envoy.service.status.v3 import csds_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.adapter import bare
from tests.conformance.test_service import DELTA, delta, first
from tests.e2e.envoy import eventually, free_port
from tests.e2e.fixed import Fixed, world
from tests.e2e.plane import Recorder, WallClock, listening
from tests.e2e.telemetry import Tally
from tests.unit.telemetry_messages import Message
from xds_server.errors import RemoteProtocolError
from xds_server.model.ids import CDS, EDS, LDS, RDS, RTDS, SHORT
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.sotw import SotwStream
from xds_server.registry.registry import Registry
from xds_server.wire import ads, client_status, load_stats, metrics_service
from xds_server.wire.ads import DiscoveryServices, decode_delta, decode_sotw
from xds_server.wire.client_status import ClientStatusService
from xds_server.wire.load_stats import LoadReportingService
from xds_server.wire.metrics_service import MetricsService
from xds_server.wire.well_known import Health, reflecting

WORLD = world(bare(CDS, "a", "1"), bare(EDS, "a", "1"), bare(LDS, "l", "1"), bare(RDS, "r", "1"))
names = st.lists(st.sampled_from(["a", "b", "*", "", "r/x", "x" * 300]), max_size=4)
types = st.sampled_from([*SHORT, "", "nothing"])
nonces = st.sampled_from(["", "1", "2", "3", "99", "x"])


@st.composite
def sotw_requests(draw: st.DrawFn) -> bytes:
    request = discovery_pb2.DiscoveryRequest(
        type_url=draw(types),
        resource_names=draw(names),
        response_nonce=draw(nonces),
        version_info=draw(st.sampled_from(["", "1"])),
    )
    if draw(st.booleans()):
        request.error_detail.message = draw(st.text(max_size=20))
    return request.SerializeToString()


@st.composite
def delta_requests(draw: st.DrawFn) -> bytes:
    request = DELTA(
        type_url=draw(types),
        resource_names_subscribe=draw(names),
        resource_names_unsubscribe=draw(names),
        initial_resource_versions=draw(
            st.dictionaries(st.sampled_from("abr"), st.sampled_from("12"))
        ),
        response_nonce=draw(nonces),
    )
    if draw(st.booleans()):
        request.error_detail.message = draw(st.text(max_size=20))
    return request.SerializeToString()


def damaged(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """A valid message, or that with some bytes changed, or cut, or anything at all."""

    def change(body: bytes, at: list[tuple[int, int]], cut: int | None) -> bytes:
        changed = bytearray(body)
        for where, what in at:
            if changed:
                changed[where % len(changed)] = what
        return bytes(changed[:cut])

    places = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=3)
    cuts = st.none() | st.integers(0, 60)
    return valid | st.builds(change, valid, places, cuts) | st.binary(max_size=200)


@pytest.mark.parametrize(
    ("machine", "decode", "requests"),
    [
        (SotwStream, decode_sotw, sotw_requests()),
        (DeltaStream, decode_delta, delta_requests()),
    ],
    ids=["sotw", "delta"],
)
def test_any_requests_are_answered_or_refused(
    machine: Any, decode: Callable[[bytes], Any], requests: st.SearchStrategy[bytes]
) -> None:
    @settings(deadline=None, max_examples=200)
    @given(st.lists(st.tuples(damaged(requests), st.floats(0.0, 8.0)), max_size=8))
    def converse(steps: list[tuple[bytes, float]]) -> None:
        stream, now_s = machine(), 0.0
        for body, waited_s in steps:
            now_s += waited_s
            with suppress(RemoteProtocolError):
                request, _ = decode(body)
                stream.receive(request, now_s)
            for response in stream.poll(WORLD, now_s):
                assert response.payload
            stream.heartbeat(WORLD, now_s)
            stream.next_deadline_s(now_s)
            assert all(p.unanswered_s >= 0.0 for p in stream.progress(now_s))
            assert stream.resources() is not None

    converse()


# -- through a real server -----------------------------------------------------------------

METHODS = {
    f"{ads.AGGREGATED}/StreamAggregatedResources": "sotw",
    f"{ads.AGGREGATED}/DeltaAggregatedResources": "delta",
    "envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters": "delta",
    f"{metrics_service.SERVICE}/StreamMetrics": "metrics",
    f"{load_stats.SERVICE}/StreamLoadStats": "load",
    f"{client_status.SERVICE}/StreamClientStatus": "status",
    "grpc.health.v1.Health/Check": "health",
}
ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,  # telemetry of a node that is another connection's
    grpc.StatusCode.CANCELLED,
}


def seeds() -> dict[str, list[bytes]]:
    """Valid messages of every kind, to be damaged."""
    whole, part = first(discovery_pb2.DiscoveryRequest, CDS), first(DELTA, CDS)
    part.resource_names_subscribe.extend(["*", "a"])
    report = lrs_pb2.LoadStatsRequest()
    report.node.id = "n2"
    report.cluster_stats.add(cluster_name="a").total_dropped_requests = 1
    status = csds_pb2.ClientStatusRequest()
    status.node_matchers.add().node_id.safe_regex.regex = "(a+)+$"
    metrics = [Message("n2").counts("a", total=1).times("a", range(26)).body]
    return {
        "sotw": [whole.SerializeToString()],
        "delta": [part.SerializeToString()],
        "metrics": metrics,
        "load": [report.SerializeToString()],
        "status": [status.SerializeToString()],
        "health": [b"\n\x01x"],
    }


def damage(rng: np.random.Generator, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(int(rng.integers(0, 4))):
        changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
    kind = int(rng.integers(4))
    if kind == 0:
        return bytes(changed[: int(rng.integers(len(changed) + 1))])
    if kind == 1:
        return bytes(changed) * int(rng.integers(1, 50))
    if kind == 2:
        return rng.bytes(int(rng.integers(300)))
    return bytes(changed)


async def test_case_80_hostile_bytes_end_their_own_stream_and_leave_nothing() -> None:
    fixed, recorder, port = Fixed(WORLD), Recorder(), free_port()
    clock = WallClock()
    services = DiscoveryServices(fixed, recorder, clock)
    registry = Registry({"a": "s"}, slot_s=1.0, load_valid_s=30.0)
    parts = (
        services,
        MetricsService(registry, Tally(), clock, services.speakers),
        LoadReportingService(registry, Tally(), clock, services.speakers, lambda: 1.0),
        ClientStatusService(lambda: services.streams),
        Health(),
    )
    rng, samples = np.random.default_rng(80), seeds()
    async with (
        listening(*(p.handler() for p in parts), reflecting(), port=port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        healthy = delta(channel)
        await healthy.say(first(DELTA, RTDS, node="healthy"))
        await eventually("it is open", lambda: services.streams)
        tasks = len(asyncio.all_tasks())
        for i in range(400):
            method = list(METHODS)[i % len(METHODS)]
            bodies = [damage(rng, b) for b in samples[METHODS[method]] * int(rng.integers(1, 4))]
            code, details = await send(channel, method, bodies)
            # Of bytes that do not parse, the library's own health service says UNKNOWN; and a
            # client that writes to a stream that has just been refused, INTERNAL.
            library = (code is grpc.StatusCode.UNKNOWN and "health" in method) or (
                code is grpc.StatusCode.INTERNAL and "logged by the server" not in details
            )
            assert code in ALLOWED or library, (method, code, details, bodies)
        await healthy.say(DELTA(type_url=CDS, resource_names_subscribe=["a"]))
        assert (await healthy.hear()).type_url == CDS
        await eventually("one stream is left", lambda: len(services.streams) == 1)
        await eventually("no task is left", lambda: len(asyncio.all_tasks()) <= tasks)
        assert recorder.open == 1
        assert set(registry.nodes) == set()
        assert len(fixed.wakeups) == 1


async def send(
    channel: grpc.aio.Channel, method: str, bodies: list[bytes]
) -> tuple[grpc.StatusCode, str]:
    """Send all, listen a little, hang up."""
    call = channel.stream_stream(f"/{method}")()
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
        async with asyncio.timeout(2.0):
            for body in bodies:
                await call.write(body)
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
    call.cancel()
    return await call.code(), await call.details() or ""
