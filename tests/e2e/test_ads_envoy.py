"""A real Envoy on our ADS: it starts, follows, refuses, survives us, and falls back."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.envoy import Envoy, eventually, free_port
from tests.e2e.plane import GROUP, Recorder, overlay, resources, serving_ads, shop
from tests.e2e.upstream import Traffic, serving
from xds_server.cache.publisher import Publisher
from xds_server.model.ids import RDS, RTDS
from xds_server.model.snapshot import Snapshot
from xds_server.model.topology import WeightsVia
from xds_server.model.versions import make_resource, type_snapshot
from xds_server.protocol.events import Acked, Nacked
from xds_server.protocol.status import Standing
from xds_server.resources.bootstrap import render_bootstrap

pytestmark = pytest.mark.e2e
Sidecar = Callable[..., Envoy]


async def test_envoy_starts_and_follows_weights_by_runtime(sidecar: Sidecar) -> None:
    async with serving("a", "b") as up:
        listen, xds = free_port(), free_port()
        mesh = shop(xds, listen, {n: u.port for n, u in up.items()}, baseline={"a": 1, "b": 0})
        publisher, seen = Publisher(mesh, resources(mesh)), Recorder()
        async with serving_ads(publisher, xds, seen):
            await (await sidecar(mesh).start()).ready()
            publisher.set_group("n1", GROUP)
            async with Traffic(listen) as traffic:
                assert await traffic.split() == {"a": 1.0}
                publisher.publish(overlay(a=0, b=10_000), 0.0)
                await eventually("b serves", lambda: traffic.answers["b"] > 0)
                assert (await traffic.split())["b"] == 1.0
                assert traffic.failures == []
            assert not [e for e in seen.events if isinstance(e, Nacked)]
            assert {r.type_url for r in seen.responses if not r.heartbeat} >= {RDS, RTDS}
            assert len([r for r in seen.responses if r.type_url == RDS]) == 1


async def test_a_node_without_runtime_gets_weights_in_its_routes(sidecar: Sidecar) -> None:
    async with serving("a", "b") as up:
        listen, xds = free_port(), free_port()
        ports = {n: u.port for n, u in up.items()}
        mesh = shop(xds, listen, ports, baseline={"a": 1, "b": 0}, via=WeightsVia.RDS)
        publisher, seen = Publisher(mesh, resources(mesh)), Recorder()
        async with serving_ads(publisher, xds, seen):
            await (await sidecar(mesh).start()).ready()
            publisher.set_group("n1", GROUP)
            async with Traffic(listen) as traffic:
                await traffic.split(20)
                publisher.publish(overlay(a=3000, b=7000), 0.0)
                await eventually("b serves", lambda: traffic.answers["b"] > 0)
                assert 0.55 < (await traffic.split(300))["b"] < 0.85
                assert traffic.failures == []
            assert not [e for e in seen.events if isinstance(e, Nacked)]


async def test_case_73_and_74_weights_are_extended_while_renewed_and_then_end_by_themselves(
    sidecar: Sidecar,
) -> None:
    async with serving("a", "b") as up:
        listen, xds = free_port(), free_port()
        ports = {n: u.port for n, u in up.items()}
        mesh = shop(xds, listen, ports, baseline={"a": 1, "b": 0}, ttl_s=2.0)
        publisher, seen = Publisher(mesh, resources(mesh)), Recorder()
        async with serving_ads(publisher, xds, seen):
            envoy = await (await sidecar(mesh).start()).ready()
            publisher.set_group("n1", GROUP)
            publisher.publish(overlay(a=0, b=10_000), 0.0)
            key = "routing.shop.search.b"

            async def weighted() -> bool:
                return (await envoy.runtime()).get(key) == "10000"

            async def unweighted() -> bool:
                return key not in await envoy.runtime()

            await eventually("the weights arrive", weighted)
            beats = 0
            for tick in range(1, 40):  # 4 s: two lifetimes of the weights
                publisher.renew(tick * 0.1)
                want = beats + 1
                if publisher.nodes["n1"].heartbeat_seq >= want:
                    beats = publisher.nodes["n1"].heartbeat_seq
                await eventually("a tenth of a second", _after(0.1))
                assert await weighted()
            acked = [e for e in seen.events if isinstance(e, Acked) and e.heartbeat]
            assert len(acked) >= 4
            await eventually("the weights expire", unweighted, within_s=3.0)
            # An engine that comes back publishes under another epoch: everybody gets it.
            assert publisher.expire(100.0)
            publisher.publish(overlay(a=0, b=10_000), 100.0)
            await eventually("the weights return", weighted)


def _after(duration_s: float) -> Callable[[], bool]:
    import time

    end = time.monotonic() + duration_s
    return lambda: time.monotonic() >= end


async def test_case_19_and_20_a_refused_route_is_named_and_the_old_one_restored(
    sidecar: Sidecar,
) -> None:
    async with serving("a") as up:
        listen, xds = free_port(), free_port()
        mesh = shop(xds, listen, {"a": up["a"].port})
        publisher, seen = Publisher(mesh, resources(mesh)), Recorder()
        async with serving_ads(publisher, xds, seen) as service:
            await (await sidecar(mesh).start()).ready()
            handle = publisher.nodes["n1"]
            good = handle.snapshot()
            # A RouteConfiguration whose only virtual host has no domains: refused by Envoy.
            bad = make_resource(RDS, "shop.search", b"\x0a\x0bshop.search\x12\x03\x0a\x01x")
            async with Traffic(listen) as traffic:
                handle.show(Snapshot({**good.types, RDS: type_snapshot((bad,))}))
                nack = await eventually(
                    "a NACK", lambda: next((e for e in seen.events if isinstance(e, Nacked)), None)
                )
                assert nack.names == ("shop.search",)
                assert "domains" in nack.error.lower()
                before = good.of(RDS).resources["shop.search"].version

                def restored() -> bool:
                    states = service.streams[0].resources()
                    return any(
                        (s.type_url, s.state, s.version_acked) == (RDS, Standing.REFUSED, before)
                        for s in states
                    )

                await eventually("the last good one is ACKed", restored)
                sent = len([r for r in seen.responses if r.type_url == RDS])
                await traffic.split(50)
                assert len([r for r in seen.responses if r.type_url == RDS]) == sent
                assert service.streams[0].progress()[RDS].nacks == 1
                newer = shop(xds, listen, {"a": up["a"].port}, retries=1)
                publisher.set_mesh(newer, resources(newer), time.monotonic())
                want = handle.snapshot().of(RDS).version
                await eventually(
                    "other content is ACKed",
                    lambda: service.streams[0].progress()[RDS].version_acked == want,
                )
                assert all(s.state is Standing.ACKED for s in service.streams[0].resources())
                assert traffic.failures == []


async def test_traffic_does_not_notice_that_the_control_plane_dies_and_returns(
    sidecar: Sidecar, api: str
) -> None:
    async with serving("a", "b") as up:
        listen, xds = free_port(), free_port()
        mesh = shop(xds, listen, {n: u.port for n, u in up.items()})
        publisher = Publisher(mesh, resources(mesh))
        first, second = Recorder(), Recorder()
        async with serving_ads(publisher, xds, first):
            envoy = await (await sidecar(mesh).start()).ready()
            async with Traffic(listen) as traffic:
                await traffic.split(50)
        async with Traffic(listen) as traffic:
            await traffic.split(100)
            reborn = Publisher(mesh, resources(mesh))
            async with serving_ads(reborn, xds, second):
                await eventually("the node is back", lambda: "n1" in reborn.nodes)
                reborn.set_group("n1", GROUP)
                reborn.publish(overlay(a=0, b=10_000), 0.0)
                await eventually("it follows", lambda: second.responses)
                key = "routing.shop.search.b"

                async def follows() -> bool:
                    return (await envoy.runtime()).get(key) == "10000"

                await eventually("it follows", follows)
                if api == "delta":  # nothing that it still has is sent again
                    assert {r.type_url for r in second.responses if r.names} == {RTDS}
                await traffic.split(50)
                assert traffic.failures == []


async def test_a_provider_is_replaced_under_traffic_without_a_failure(sidecar: Sidecar) -> None:
    async with serving("a", "b", "c") as up:
        listen, xds = free_port(), free_port()
        ports = {n: u.port for n, u in up.items()}
        before = shop(xds, listen, {n: ports[n] for n in ("a", "b")})
        after = shop(xds, listen, {n: ports[n] for n in ("b", "c")})
        publisher, seen = Publisher(before, resources(before)), Recorder()
        async with serving_ads(publisher, xds, seen):
            envoy = await (await sidecar(before).start()).ready()
            async with Traffic(listen, gap_s=0.001, workers=4) as traffic:
                await traffic.split(100)
                for mesh, gone in ((after, "a"), (before, "c")) * 3:
                    publisher.set_mesh(mesh, resources(mesh), time.monotonic())

                    async def removed(name: str = gone) -> bool:
                        clusters = await envoy.get("/clusters")
                        return f"{name}::" not in clusters

                    await eventually(f"{gone} is removed", removed)
                    assert gone not in await traffic.split(100)
                assert traffic.failures == []
            assert not [e for e in seen.events if isinstance(e, Nacked)]


async def test_a_node_of_an_unknown_application_is_refused_and_the_others_are_not(
    sidecar: Sidecar,
) -> None:
    async with serving("a") as up:
        listen, xds = free_port(), free_port()
        mesh = shop(xds, listen, {"a": up["a"].port})
        publisher, seen = Publisher(mesh, resources(mesh)), Recorder()
        async with serving_ads(publisher, xds, seen):
            await (await sidecar(mesh).start()).ready()
            stranger = replace(mesh, applications={"other": mesh.applications["shop"]})
            settings = {"admin.address": f"127.0.0.1:{free_port()}"}
            boot = render_bootstrap(stranger, "other", "n2", settings)
            envoy = Envoy(boot, Path(sidecar(mesh, "spare").log).parent)
            try:
                await envoy.start()
                await eventually(
                    "the refusal is in its log",
                    lambda: "is not configured" in envoy.log.read_text(),
                )
            finally:
                await envoy.stop()
            assert set(publisher.nodes) == {"n1"}
