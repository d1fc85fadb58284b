"""Numbered cases that only a real Envoy can decide."""

from pathlib import Path
from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.fixed import (
    MESSAGES,
    Fixed,
    build,
    cluster,
    endpoints,
    listener,
    over_ads,
    routes,
    serving_fixed,
    world,
)
from tests.e2e.plane import GROUP, Recorder, overlay, resources, serving_ads, shop
from tests.e2e.upstream import Traffic, serving
from xds_server.cache.publisher import Publisher
from xds_server.model.ids import CDS, EDS, RDS, RTDS
from xds_server.model.snapshot import Resource
from xds_server.protocol.events import Nacked
from xds_server.protocol.status import Standing
from xds_server.resources.bootstrap import render_bootstrap

pytestmark = pytest.mark.e2e
NOTHING = build(RTDS, {"name": "flags", "layer": {}})


def front(port: int) -> Resource:
    return listener("l", port, rds={"config_source": over_ads(), "route_config_name": "r"})


async def test_case_09_an_assignment_of_8_mb_reaches_envoy(start: Any) -> None:
    xds, seen = free_port(), Recorder()
    filler = {"filter_metadata": {"filler": {"text": "x" * 80_000}}}
    hosts = [
        {
            "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9}}},
            "metadata": filler,
        }
        for _ in range(100)
    ]
    for i, host in enumerate(hosts):
        host["endpoint"]["address"]["socket_address"]["port_value"] = 10_000 + i  # type: ignore[index]
    large = build(EDS, {"cluster_name": "a", "endpoints": [{"lb_endpoints": hosts}]})
    assert len(large.body) > 8_000_000
    fixed = Fixed(world(NOTHING, cluster("a", over_ads()), large))
    async with serving_fixed(fixed, xds, seen) as service:
        envoy = await start(xds)
        assert (await envoy.stats("cluster.a.membership_total"))[
            "cluster.a.membership_total"
        ] == 100
        await eventually(
            "it is ACKed", lambda: service.streams[0].progress()[EDS].unanswered_s == 0.0
        )


async def test_case_12_endpoints_sent_alone_leave_the_others_as_they_are(start: Any) -> None:
    xds, seen = free_port(), Recorder()
    both = (NOTHING, cluster("a", over_ads()), cluster("b", over_ads()), endpoints("a", 9))
    fixed = Fixed(world(*both, endpoints("b", 9)))
    async with serving_fixed(fixed, xds, seen):
        envoy = await start(xds)
        before = len(seen.responses)
        fixed.show(world(*both, endpoints("b", 9, 10)))

        async def followed() -> bool:
            found = await envoy.stats("membership_total")
            return found["cluster.b.membership_total"] == 2

        await eventually("b has two", followed)
        await eventually("it is counted", lambda: len(seen.responses) > before)
        assert [r.names for r in seen.responses[before:]] == [("b",)]
        assert (await envoy.stats("membership_total"))["cluster.a.membership_total"] == 1


async def test_case_17_and_18_a_changed_cluster_is_followed_by_its_endpoints_once(
    start: Any,
) -> None:
    xds, seen = free_port(), Recorder()

    def at(timeout: str) -> Any:
        return world(NOTHING, cluster("a", over_ads(), connect_timeout=timeout), endpoints("a", 9))

    fixed = Fixed(at("1s"))
    async with serving_fixed(fixed, xds, seen) as service:
        await start(xds)
        for timeout in ("2s", "3s", "4s"):
            before = len(seen.responses)
            fixed.show(at(timeout))
            want = fixed.snapshot.of(CDS).version
            await eventually(
                "the cluster is ACKed, so it is warm",
                lambda version=want: service.streams[0].progress()[CDS].version_acked == version,
            )
            # Whether Envoy asks again, as in SotW, or not.
            await eventually("both are counted", lambda b=before: len(seen.responses) >= b + 2)
            assert [r.type_url for r in seen.responses[before:]] == [CDS, EDS]


async def test_case_33_and_66_two_clusters_may_share_one_assignment(start: Any, api: str) -> None:
    from dataclasses import replace

    xds, seen = free_port(), Recorder()

    def sharing(name: str) -> Resource:
        source = {"eds_config": over_ads(), "service_name": "svc"}
        body = {"name": name, "type": "EDS", "eds_cluster_config": source, "connect_timeout": "1s"}
        return replace(build(CDS, body), needs=("svc",))

    fixed = Fixed(world(NOTHING, sharing("a"), sharing("b"), endpoints("svc", 9)))
    async with serving_fixed(fixed, xds, seen):
        envoy = await start(xds)
        fixed.show(world(NOTHING, *map(sharing, "abc"), endpoints("svc", 9)))

        async def all_there() -> bool:
            found = await envoy.stats("membership_total")
            return all(found.get(f"cluster.{n}.membership_total") == 1 for n in "abc")

        await eventually("all three have their host", all_there)
        assert not [e for e in seen.events if isinstance(e, Nacked)]


async def test_case_54_names_outside_and_inside_are_the_same(start: Any, api: str) -> None:
    xds, sent = free_port(), []
    kind = (
        discovery_pb2.DeltaDiscoveryResponse if api == "delta" else discovery_pb2.DiscoveryResponse
    )

    def look(body: bytes) -> bool:
        sent.append(kind.FromString(body))
        return False

    listen = free_port()
    parts = (cluster("a", over_ads()), endpoints("a", 9), front(listen), routes("r", a=1))
    async with serving_fixed(Fixed(world(NOTHING, *parts)), xds, Recorder(), look):
        await start(xds)
    for response in sent:
        message, key = MESSAGES[response.type_url]
        for entry in response.resources:
            body = entry.resource.value if api == "delta" else entry.value
            name = getattr(message.FromString(body), key)
            assert api == "sotw" or entry.name == name
            assert name in {"a", "l", "r", "flags"}
    assert {r.type_url for r in sent} >= {CDS, EDS, RDS}


async def test_case_55_a_cluster_is_emptied_by_an_assignment_without_endpoints(
    start: Any,
) -> None:
    xds = free_port()
    fixed = Fixed(world(NOTHING, cluster("a", over_ads()), endpoints("a", 9)))
    async with serving_fixed(fixed, xds, Recorder()):
        envoy = await start(xds)
        fixed.show(world(NOTHING, cluster("a", over_ads()), endpoints("a")))

        async def empty() -> bool:
            return (await envoy.stats("membership_total"))["cluster.a.membership_total"] == 0

        await eventually("it has no hosts", empty)


async def test_case_68_routes_whose_weights_are_all_zero_are_refused_and_undone(
    start: Any,
) -> None:
    xds, listen, seen = free_port(), free_port(), Recorder()
    async with serving("a") as up:
        parts = (NOTHING, cluster("a", over_ads()), endpoints("a", up["a"].port), front(listen))
        fixed = Fixed(world(*parts, routes("r", a=1)))
        async with serving_fixed(fixed, xds, seen) as service:
            await start(xds)
            async with Traffic(listen) as traffic:
                fixed.show(world(*parts, routes("r", a=0)))
                nack = await eventually(
                    "a NACK", lambda: next((e for e in seen.events if isinstance(e, Nacked)), None)
                )
                assert "weight" in nack.error.lower()

                def undone() -> bool:
                    states = {(s.type_url, s.name): s for s in service.streams[0].resources()}
                    state = states[RDS, "r"]
                    return state.state is Standing.REFUSED and bool(state.version_acked)

                await eventually("the good routes are ACKed again", undone)
                await traffic.split(50)
                assert traffic.failures == []


async def test_case_70_and_71_weights_rebuild_no_load_balancer(tmp_path: Path, api: str) -> None:
    async with serving("a", "b") as up:
        listen, xds = free_port(), free_port()
        mesh = shop(xds, listen, {n: u.port for n, u in up.items()})
        publisher, seen = Publisher(mesh, resources(mesh)), Recorder()
        settings = {"admin.address": f"127.0.0.1:{free_port()}", "api": api}
        envoy = Envoy(render_bootstrap(mesh, "shop", "n1", settings), tmp_path)
        async with serving_ads(publisher, xds, seen):
            try:
                await (await envoy.start()).ready()
                publisher.set_group("n1", GROUP)
                before = len(seen.responses)
                for k in range(1, 11):
                    publisher.publish(overlay(a=1000 * k, b=10_000 - 1000 * k), 0.0)
                    want = str(1000 * k)

                    async def follows(weight: str = want) -> bool:
                        return (await envoy.runtime()).get("routing.shop.search.a") == weight

                    await eventually("the weight is there", follows)
                assert {r.type_url for r in seen.responses[before:]} == {RTDS}
            finally:
                await envoy.stop()
