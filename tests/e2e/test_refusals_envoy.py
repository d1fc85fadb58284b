"""Clusters that Envoy 1.40 refuses after they began to warm: it says nothing, or says it late."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.fixed import (
    Fixed,
    Json,
    bootstrap,
    build,
    cluster,
    endpoints,
    listener,
    over_ads,
    routes,
    serving_fixed,
    world,
)
from tests.e2e.plane import Recorder
from tests.e2e.upstream import Traffic, serving
from xds_server.model.ids import CDS, RTDS
from xds_server.model.snapshot import Resource
from xds_server.protocol.status import WITHDRAW_AFTER_S, Standing

pytestmark = pytest.mark.e2e
Make = Callable[[Json], Envoy]
NOTHING = build(RTDS, {"name": "flags", "layer": {}})


def own(name: str, *, bad: bool = False) -> Resource:
    """A static cluster of somebody's own; the bad one has a ring that cannot be."""
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 9}}
    hosts = {"endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    body = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, **hosts},
    }
    if bad:
        ring = {"minimum_ring_size": 1000, "maximum_ring_size": 10}
        body |= {"lb_policy": "RING_HASH", "ring_hash_lb_config": ring}
    return replace(build(CDS, body), own=True)


async def test_case_51_a_cluster_that_silences_envoy_is_found_and_the_others_arrive(
    envoys: Make,
) -> None:
    """In both protocols side by side, each with a server of its own: most of it is waiting."""
    async with asyncio.TaskGroup() as both:
        for api in ("delta", "sotw"):
            both.create_task(_is_found(envoys, api))


async def _is_found(envoys: Make, api: str) -> None:
    xds, listen = free_port(), free_port()
    boot = bootstrap(xds, free_port(), api)
    boot["node"]["id"] = api
    async with serving("a") as up:
        front = listener("l", listen, rds={"config_source": over_ads(), "route_config_name": "r"})
        base = (NOTHING, cluster("a", over_ads()), endpoints("a", up["a"].port), front)
        base = (*base, routes("r", a=1))
        new = [own(f"new-{i:02}", bad=i == 11) for i in range(16)]
        good = {r.name for r in new} - {"new-11"}
        fixed = Fixed(world(*base))

        async def arrived(envoy: Envoy) -> bool:
            there = await envoy.get("/clusters")
            return all(f"{name}::" in there for name in good) and "new-11::" not in there

        async with Traffic(listen, gap_s=0.02) as traffic:
            async with serving_fixed(fixed, xds, Recorder()) as service:
                envoy = await (await envoys(boot).start()).ready()
                traffic.failures.clear()  # before it listened
                fixed.show(world(*base, *new))
                await eventually(
                    "the culprit is found",
                    lambda: {n for _, n in fixed.quarantine.refusals} == {"new-11"},
                    within_s=3 * WITHDRAW_AFTER_S,
                )
                await eventually("the others are there", lambda: arrived(envoy), within_s=20.0)
                states = {s.name: s.state for s in service.streams[0].resources()}
                assert states["new-11"] is Standing.REFUSED
            # Another server, which knows of no refusal, and the culprit is there still.
            again = Fixed(fixed.snapshot)
            before = traffic.answers["a"]
            async with serving_fixed(again, xds, Recorder()):
                end_s = time.monotonic() + WITHDRAW_AFTER_S + 3.0
                await eventually(
                    "time for a mistake", lambda: time.monotonic() > end_s, within_s=20.0
                )
                assert len(again.nodes) == 1
            assert traffic.answers["a"] > before
            assert traffic.failures == []
