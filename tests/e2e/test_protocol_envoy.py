"""The protocol layer before a real Envoy, with bare resources and a source of its own."""

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.fixed import (
    Fixed,
    build,
    cluster,
    endpoints,
    listener,
    over_ads,
    over_own,
    routes,
    serving_fixed,
    world,
)
from tests.e2e.plane import Recorder
from tests.e2e.upstream import Traffic, serving
from xds_server.model.ids import CDS, ECDS, EDS, LDS, RDS, RTDS, SHORT, SRDS
from xds_server.model.snapshot import Resource
from xds_server.protocol.events import Nacked
from xds_server.protocol.status import SILENT_AFTER_S, Standing

pytestmark = pytest.mark.e2e
Start = Callable[..., Awaitable[Envoy]]
FAULT = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"


def flags(**values: float) -> Resource:
    return build(RTDS, {"name": "flags", "layer": values})


def fault(percent: int) -> Resource:
    abort = {"http_status": 418, "percentage": {"numerator": percent}}
    config = {"@type": FAULT, "abort": abort}
    return build(ECDS, {"name": "fault", "typed_config": config})


async def status(port: int, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/", headers=headers) as answer,
    ):
        return answer.status


@pytest.mark.parametrize("aggregated", [True, False], ids=["ads", "own-streams"])
async def test_case_36_every_type_is_served_and_followed(
    start: Start, api: str, aggregated: bool
) -> None:
    source = over_ads() if aggregated else over_own(api)
    listen, xds, seen = free_port(), free_port(), Recorder()
    filters = [
        {
            "name": "fault",
            "config_discovery": {"config_source": source, "type_urls": [FAULT.split("/")[1]]},
        }
    ]
    scoped = {
        "name": "scopes",
        "scope_key_builder": {
            "fragments": [
                {
                    "header_value_extractor": {
                        "name": "x-scope",
                        "element_separator": ",",
                        "index": 0,
                    }
                }
            ]
        },
        "rds_config_source": source,
        "scoped_rds": {"scoped_rds_config_source": source},
    }
    key = {"fragments": [{"string_key": "blue"}]}
    scope = {"name": "blue", "route_configuration_name": "r", "key": key}
    async with serving("a") as up:

        def snapshot(percent: int, *more: Resource) -> Any:
            return world(
                flags(x=1),
                cluster("a", source),
                endpoints("a", up["a"].port),
                listener("l", listen, scoped_routes=scoped, filters=list(filters)),
                fault(percent),
                build(SRDS, scope),
                routes("r", a=1),
                *more,
            )

        fixed = Fixed(snapshot(0))
        async with serving_fixed(fixed, xds, seen) as service:
            envoy = await start(xds, aggregated=aggregated)
            assert await status(listen, **{"x-scope": "blue"}) == 200
            assert await status(listen, **{"x-scope": "red"}) == 404
            assert (await envoy.runtime())["x"] == "1"
            only = {None} if aggregated else {CDS, EDS, LDS, RDS, SRDS, ECDS, RTDS}
            assert {s.only for s in service.streams} == only
            red = {"fragments": [{"string_key": "red"}]}
            more = build(SRDS, {**scope, "name": "red", "key": red})
            fixed.show(snapshot(100, more))

            async def refused() -> bool:
                return await status(listen, **{"x-scope": "red"}) == 418

            await eventually("scope and filter are followed", refused)
            assert not [e for e in seen.events if isinstance(e, Nacked)]
            states = [s for stream in service.streams for s in stream.resources()]
            assert {SHORT[s.type_url] for s in states} == {
                *("RTDS", "CDS", "EDS", "LDS", "ECDS", "SRDS", "RDS"),
            }

            def settled() -> bool:
                found = [s for stream in service.streams for s in stream.resources()]
                return all(s.state is Standing.ACKED for s in found)

            await eventually("everything is ACKed", settled)


async def test_case_49_and_50_of_ten_new_clusters_the_two_bad_ones_alone_stay_out(
    start: Start,
) -> None:
    listen, xds, seen = free_port(), free_port(), Recorder()
    async with serving("a") as up:
        port = up["a"].port
        base = (
            flags(x=1),
            cluster("a", over_ads()),
            endpoints("a", port),
            listener("l", listen, rds={"config_source": over_ads(), "route_config_name": "r"}),
            routes("r", a=1),
        )
        fixed = Fixed(world(*base))
        async with serving_fixed(fixed, xds, seen) as service:
            envoy = await start(xds)
            good = [cluster(f"n{i}", over_ads()) for i in range(8)]
            # One that Envoy refuses in part of the response, one for which it refuses all of it.
            semantic = build(CDS, {"name": "x1", "type": "EDS", "connect_timeout": "1s"})
            invalid = build(CDS, {"name": "x2", "connect_timeout": "-1s"})
            hosts = [endpoints(f"n{i}", port) for i in range(8)]
            async with Traffic(listen) as traffic:
                await traffic.split(20)
                fixed.show(world(*base, *good, *hosts, semantic, invalid))

                async def found() -> bool:
                    there = await envoy.get("/clusters")
                    return all(f"n{i}::" in there for i in range(8)) and len(fixed.quarantine) == 2

                await eventually("the good ones are there", found)
                await traffic.split(20)
                assert {name for _, name in fixed.quarantine.refusals} == {"x1", "x2"}
                clusters = await envoy.get("/clusters")
                assert "x1::" not in clusters
                assert "x2::" not in clusters
                responses = len([r for r in seen.responses if r.type_url == CDS])
                assert responses < 16

                def settled() -> bool:
                    states = service.streams[0].resources()
                    return {s.name for s in states if s.state is not Standing.ACKED} == {"x1", "x2"}

                await eventually("all others are ACKed", settled)
                await traffic.split(20)
                assert len([r for r in seen.responses if r.type_url == CDS]) == responses
                assert traffic.failures == []


async def test_case_51_and_65_an_envoy_whose_cluster_warms_for_ever_is_released(
    start: Start, api: str
) -> None:
    listen, xds, seen = free_port(), free_port(), Recorder()
    lost: list[bytes] = []
    losing = False
    kind = (
        discovery_pb2.DeltaDiscoveryResponse if api == "delta" else discovery_pb2.DiscoveryResponse
    )

    def lose(body: bytes) -> bool:
        if not losing or lost or kind.FromString(body).type_url != EDS:
            return False
        lost.append(body)
        return True

    async with serving("a") as up:

        def snapshot(timeout: str) -> Any:
            return world(
                flags(x=1),
                cluster("a", over_ads(), connect_timeout=timeout),
                endpoints("a", up["a"].port),
                listener("l", listen, rds={"config_source": over_ads(), "route_config_name": "r"}),
                routes("r", a=1),
            )

        fixed = Fixed(snapshot("1s"))
        async with serving_fixed(fixed, xds, seen, lose) as service:
            await start(xds)
            losing = True
            async with Traffic(listen, gap_s=0.05) as traffic:
                fixed.show(snapshot("2s"))
                await eventually("the endpoints were lost", lambda: lost)
                stream = service.streams[0]
                await eventually(
                    "it lacks endpoints", lambda: stream.progress()[CDS].lacks == ("a",)
                )
                await eventually(
                    "it is released by endpoints that did not change",
                    lambda: stream.progress()[CDS].unanswered_s == 0.0,
                    within_s=SILENT_AFTER_S + 5.0,
                )
                assert [r.names for r in seen.responses if r.unwedge] == [("a",)]
                assert traffic.failures == []
