"""gRPC's own xDS client on our ADS: an application that calls without a sidecar."""

import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from structlog.testing import capture_logs

from tests.e2e.envoy import eventually
from tests.e2e.grpc_app import Caller, providing
from tests.e2e.grpc_plane import Plane, at, padded, ports, with_calls
from tests.e2e.plane import WallClock
from tests.e2e.served import Plane as Served
from tests.e2e.served import ports as free_ports
from tests.e2e.served import served, xds_server
from xds_server.model.ids import CDS, EDS, LDS, RDS
from xds_server.model.snapshot import Snapshot
from xds_server.model.topology import Mesh, ServerSettings, TlsSettings
from xds_server.model.versions import type_snapshot
from xds_server.protocol.status import Standing
from xds_server.resources.cluster import cluster
from xds_server.resources.grpc_bootstrap import render_grpc_bootstrap
from xds_server.wire.ads import DiscoveryServices
from xds_server.wire.hold import Hold
from xds_server.wire.server import serving

pytestmark = pytest.mark.e2e
Calling = Callable[..., Awaitable[Caller]]


@pytest.fixture
async def calling(tmp_path: Path) -> AsyncIterator[Calling]:
    started: list[Caller] = []

    async def start(
        mesh: Mesh,
        *,
        cluster: str = "shop",
        settings: dict[str, str] | None = None,
        **options: Any,
    ) -> Caller:
        boot = render_grpc_bootstrap(mesh, "shop", "g1", settings)
        boot["node"]["cluster"] = cluster
        started.append(Caller(boot, tmp_path, **options))
        return await started[-1].start()

    yield start
    for caller in started:
        await caller.stop()


async def test_case_13_it_asks_by_name_and_calls_both_providers_by_weights(
    calling: Calling,
) -> None:
    async with providing("a", "b", "c") as up:
        plane = Plane(ports(up), baseline={"a": 3, "b": 1, "c": 0})
        async with plane.serving() as ads:
            caller = await calling(plane.mesh)
            split = await caller.split(300)
            assert split.keys() == {"a", "b"}
            assert 0.6 < split["a"] < 0.9
            assert caller.failures == plane.nacks == []
            (stream,) = ads.streams
            assert stream.node is not None
            assert stream.node.is_grpc
            assert {r.names for r in plane.sent(LDS)} == {("shop.search",)}
            assert {r.names for r in plane.sent(RDS)} == {("shop.search",)}
            # What has no weight it does not ask for; what it asks for is in one response.
            assert plane.sent(CDS)[-1].names == ("a", "b")
            states = {(s.type_url, s.name): s.state for s in stream.resources()}
            assert set(states.values()) == {Standing.ACKED}
            assert {name for url, name in states if url == EDS} == {"a", "b"}


async def test_case_30_it_follows_weights_and_gets_again_what_it_asks_for_again(
    calling: Calling,
) -> None:
    async with providing("a", "b") as up:
        plane = Plane(ports(up))
        async with plane.serving():
            caller = await calling(plane.mesh)
            await caller.split(50)
            for a in (10_000, 0) * 3:
                plane.publish(a=a, b=10_000 - a)
                want = plane.publisher.nodes["g1"].snapshot().of(RDS).version
                await eventually("it is sent", lambda v=want: plane.sent(RDS)[-1].version_info == v)
                await caller.serves("a" if a else "b")
                assert await caller.split(50) == {"a" if a else "b": 1.0}
            plane.publish(a=8_000, b=2_000)
            await caller.serves("a")
            assert 0.65 < (await caller.split(300))["a"] < 0.95
            assert caller.failures == plane.nacks == []
            # Without weight it drops a provider, and asks for it again at the same version.
            again = [r for r in plane.sent(EDS) if r.names == ("a",)]
            assert len(again) >= 2
            assert len({r.version_info for r in again}) == 1


async def test_case_28_and_64_a_provider_is_replaced_without_a_failed_call(
    calling: Calling,
) -> None:
    async with providing("a", "b", "c") as up:
        plane = Plane(ports(up, "a", "b"))
        first, other = plane.mesh, plane.shop(ports(up, "b", "c"))
        async with plane.serving() as ads:
            caller = await calling(plane.mesh, workers=4, gap_s=0.001)
            await caller.split(100)
            for mesh, gone, new in ((other, "a", "c"), (first, "c", "a")) * 3:
                plane.reload(mesh)
                await caller.serves(new)

                def dropped(name: str = gone) -> bool:
                    return all(s.name != name for s in ads.streams[0].resources())

                await eventually(f"{gone} is not asked for", dropped)
                assert set(await caller.split(100)) == {"b", new}
            # What it let go of is no longer sent, though it is there and changes.
            sent = len(plane.seen.responses)
            plane.reload(plane.shop(ports(up, "a", "b") | {"c": 9}, baseline={"c": 0}))
            await caller.split(100)
            assert {n for r in plane.seen.responses[sent:] for n in r.names} == {"shop.search"}
            assert caller.failures == plane.nacks == []


async def test_case_12_endpoints_come_and_go_without_a_failed_call(calling: Calling) -> None:
    async with providing("a", "b", "c") as up:
        plane = Plane(ports(up, "a"))

        async with plane.serving():
            caller = await calling(plane.mesh)
            assert await caller.split(20) == {"a": 1.0}
            for names in (("a", "b"), ("b", "c"), ("c",), ("a", "b", "c")):
                plane.reload(at(plane.mesh, *(up[n].port for n in names)))
                await caller.serves(*names)
                assert (await caller.split(30)).keys() == set(names)
            assert caller.failures == plane.nacks == []
            plane.reload(at(plane.mesh))
            await eventually("calls fail", lambda: caller.failures)
            assert caller.codes == {"UNAVAILABLE"}
            assert plane.nacks == []


async def test_case_27_a_service_that_goes_is_gone_and_comes_back(calling: Calling) -> None:
    async with providing("a") as up:
        plane = Plane(ports(up))
        async with plane.serving() as ads:
            caller = await calling(plane.mesh, gap_s=0.02)
            await caller.split(20)
            plane.reload(with_calls(plane.mesh))
            await eventually("calls fail", lambda: caller.failures)
            assert caller.codes == {"UNAVAILABLE"}

            def gone() -> set[str]:
                return {
                    s.type_url for s in ads.streams[0].resources() if s.state is Standing.MISSING
                }

            await eventually("the cluster is gone", lambda: gone() == {LDS, CDS})
            plane.reload(plane.mesh)
            await caller.serves("a")
            assert plane.nacks == []


async def test_case_06_while_a_plane_cannot_tell_yet_calls_wait_or_go_on(
    calling: Calling,
) -> None:
    async with providing("a", "b") as up:
        plane = Plane(ports(up), baseline={"a": 1, "b": 0})
        holds: list[Hold] = []

        def held(behind: grpc.GenericRpcHandler) -> grpc.GenericRpcHandler:
            holds.append(Hold(behind, 8))
            return holds[-1]

        async with plane.serving(held):
            caller = await calling(plane.mesh)
            await eventually("it waits", lambda: holds[0].waiting == 1)
            assert caller.answers.total() == 0
            holds[0].open()
            assert await caller.split(20) == {"a": 1.0}
        plane.begin_anew()
        async with plane.serving(held):
            await eventually("it waits again", lambda: holds[1].waiting == 1)
            assert await caller.split(100) == {"a": 1.0}
            holds[1].open()
            await eventually("it is back", lambda: "g1" in plane.publisher.nodes)
            plane.publish(a=0, b=10_000)
            await caller.serves("b")
        assert caller.failures == plane.nacks == []


async def test_case_07_an_unknown_application_is_told_so_at_once(calling: Calling) -> None:
    async with providing("a") as up:
        plane = Plane(ports(up))
        async with plane.serving():
            started = time.monotonic()
            caller = await calling(plane.mesh, cluster="stranger", gap_s=0.05)
            await eventually("calls fail", lambda: caller.failures)
            assert time.monotonic() - started < 5.0
            assert caller.codes == {"UNAVAILABLE"}
            assert "'stranger' is not configured" in caller.failures[0]


async def test_case_15_an_unknown_name_is_unavailable_after_15_s_and_is_sent_when_it_appears(
    calling: Calling,
) -> None:
    async with providing("a") as up:
        plane = Plane(ports(up))
        plane.reload(with_calls(plane.mesh))
        async with plane.serving():
            # No answer to LDS could be faster: a client takes none to mean that a name is new.
            caller = await calling(plane.mesh, timeout_s=None, gap_s=0.05)
            await eventually("calls fail", lambda: caller.failures, within_s=20.0)
            assert caller.codes == {"UNAVAILABLE"}
            assert "shop.search: does not exist" in caller.failures[0]
            assert plane.seen.responses == []
            plane.reload(plane.mesh)
            await caller.serves("a")
            assert plane.nacks == []


async def test_case_19_and_20_it_goes_on_with_a_cluster_whose_successor_it_refuses(
    calling: Calling,
) -> None:
    async with providing("a", "b") as up:
        plane = Plane(ports(up))
        async with plane.serving() as ads:
            caller = await calling(plane.mesh)
            await caller.split(20)
            handle = plane.publisher.nodes["g1"]
            types = dict(handle.snapshot().types)
            good = types[CDS].resources
            bad = cluster(plane.mesh.providers["a"])  # LEAST_REQUEST, as for Envoys
            handle.show(Snapshot({**types, CDS: type_snapshot((bad, good["b"]))}))
            await eventually("it refuses", lambda: plane.nacks)

            def restored() -> bool:
                states = {s.name: s for s in ads.streams[0].resources() if s.type_url == CDS}
                return (
                    states["a"].state is Standing.REFUSED
                    and states["a"].version_acked == good["a"].version
                    and states["b"].state is Standing.ACKED
                )

            await eventually("it is left with the one before", restored)
            assert "LB policy is not supported" in plane.nacks[0].error
            assert (await caller.split(50)).keys() == {"a", "b"}
            assert caller.failures == []


async def test_case_09_a_response_above_4_mib_never_arrives_and_calls_go_on(
    calling: Calling,
) -> None:
    async with providing("a", "b") as up:
        plane = Plane(ports(up, "a"))
        async with plane.serving():
            caller = await calling(plane.mesh)
            await caller.split(20)
            handle = plane.publisher.nodes["g1"]
            types = dict(handle.snapshot().types)
            with capture_logs() as logs:
                handle.show(Snapshot({**types, EDS: type_snapshot((padded("a", 5 * 2**20),))}))
                await eventually("it drops the stream", lambda: plane.seen.reasons)
            assert [e["type_url"] for e in logs if e["event"] == "xds.large_response"] == [EDS]
            await caller.split(50)
            plane.reload(plane.shop({"a": up["b"].port}))
            await caller.serves("b")
            assert caller.failures == plane.nacks == []


async def test_two_targets_of_one_process_are_two_streams_of_one_node(calling: Calling) -> None:
    async with providing("a") as up:
        plane = Plane(ports(up))
        template = plane.mesh.templates["web"]
        two = (template.calls[0], replace(template.calls[0], service="pay"))
        search = plane.mesh.services["search"]
        payers = tuple(replace(p, name="p", service="pay") for p in search.providers)
        pay = replace(search, name="pay", providers=payers)
        plane.reload(with_calls(replace(plane.mesh, services={"search": search, "pay": pay}), *two))
        with capture_logs() as logs:
            async with plane.serving() as ads:
                caller = await calling(
                    plane.mesh, targets=("xds:///shop.search", "xds:///shop.pay")
                )
                await caller.split(50)
                await eventually("both ask", lambda: len(ads.streams) == 2)
                assert set(plane.publisher.nodes) == {"g1"}
                assert caller.failures == plane.nacks == []
        assert not [e for e in logs if e["event"] == "xds.node_twice"]


async def test_who_has_a_certificate_is_served_and_who_has_none_is_not(
    tmp_path: Path, calling: Calling
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, identity in (("plane", "127.0.0.1"), ("app", "g1")):
        issued = authority.issue_cert(identity)
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    mine, ca = str(tmp_path / "plane.pem"), str(tmp_path / "ca.pem")
    tls = TlsSettings(mine, str(tmp_path / "plane.key"), ca, bind_node_id=True)
    async with providing("a") as up:
        plane = Plane(ports(up))
        mesh = replace(plane.mesh, server=ServerSettings(xds=plane.mesh.server.xds, xds_tls=tls))
        ads = DiscoveryServices(plane.publisher, plane.seen, WallClock(), bind_node_id=True)
        own = {"tls.cert": str(tmp_path / "app.pem"), "tls.key": str(tmp_path / "app.key")}
        async with serving(mesh.server, [ads.handler()]):
            known = await calling(mesh, settings={"tls.ca": ca, **own})
            assert await known.split(20) == {"a": 1.0}
            unknown = await calling(mesh, settings={"tls.ca": ca}, gap_s=0.05)
            await eventually("it is refused", lambda: unknown.failures)
            assert unknown.codes == {"UNAVAILABLE"}
            assert known.failures == []


async def test_the_whole_control_plane_is_killed_and_restarted_and_no_call_fails(
    tmp_path: Path,
) -> None:
    async with providing("a", "b", "c") as up:
        plane = Served(tmp_path, {**free_ports({}), **ports(up, "a", "b")})
        out = await xds_server(
            *("bootstrap", "-c", plane.path, "--application", "shop", "--node", "g1"),
            *("--for", "grpc"),
        )
        assert out.returncode == 0, out.stderr
        async with served(plane):
            caller = await Caller(json.loads(out.stdout), tmp_path).start()
            try:
                assert (await caller.split(200)).keys() == {"a", "b"}
                for how in (signal.SIGKILL, signal.SIGTERM):
                    await plane.end(how)
                    await caller.split(100)
                    await plane.start()

                    async def back() -> bool:
                        nodes = (await plane.get("/v1/status"))["nodes"]
                        return [n["node_id"] for n in nodes] == ["g1"]

                    await eventually("it is back", back, within_s=20.0)
                plane.write(b=up["c"].port)
                await caller.serves("c")
                (node,) = (await plane.get("/v1/status"))["nodes"]
                assert (node["protocol"], node["weights_via"]) == ("sotw", "rds")
                assert sum(t["nacks"] for t in node["types"]) == 0
                assert caller.failures == []
            finally:
                await caller.stop()


async def test_an_endpoint_that_fails_is_ejected(calling: Calling) -> None:
    async with providing("a", "b") as up:
        plane = Plane({"a": up["a"].port})
        plane.reload(at(plane.mesh, *(p.port for p in up.values())))
        async with plane.serving():
            caller = await calling(plane.mesh)
            await caller.serves("a", "b")
            up["b"].status = grpc.StatusCode.INTERNAL

            async def ejected() -> bool:
                failed = len(caller.failures)
                return await caller.split(100) == {"a": 1.0} and len(caller.failures) == failed

            await eventually("all calls go to the other", ejected)


async def test_an_idempotent_call_is_retried_on_another_endpoint(calling: Calling) -> None:
    async with providing("a", "b") as up:
        up["b"].status = grpc.StatusCode.UNAVAILABLE
        plane = Plane({"a": up["a"].port}, retries=2)
        plane.reload(at(plane.mesh, *(p.port for p in up.values())))
        async with plane.serving():
            caller = await calling(plane.mesh, workers=1)
            assert await caller.split(50) == {"a": 1.0}
            assert up["b"].calls > 0
            assert caller.failures == plane.nacks == []


async def test_a_call_lasts_as_long_as_the_application_lets_it(calling: Calling) -> None:
    async with providing("a") as up:
        plane = Plane(ports(up))  # with a timeout of 2 s, for Envoys
        up["a"].delay_s = 2.5
        async with plane.serving():
            caller = await calling(plane.mesh, workers=8, timeout_s=None)
            await caller.serves("a")
            assert caller.failures == []


async def test_unix_sockets_among_the_endpoints_are_left_out(calling: Calling) -> None:
    async with providing("a") as up:
        plane = Plane(ports(up))
        plane.reload(at(plane.mesh, "unix:/nowhere.sock", up["a"].port))
        async with plane.serving():
            caller = await calling(plane.mesh)
            assert await caller.split(50) == {"a": 1.0}
            assert caller.failures == plane.nacks == []
