"""What operators are shown of services and instances: values, ages, and whose word each is."""

import json
import math
from dataclasses import replace

import httpx
import pytest
from rich.console import Console

from tests.unit.test_registry import batch
from xds_server.admin import create_admin
from xds_server.admin.encode import dumps
from xds_server.admin.render_services import render_instances, render_services
from xds_server.app.registered import CallRecorder, LeaseRecorder, with_capacities
from xds_server.config import parse_mesh
from xds_server.errors import ConfigError
from xds_server.model.ids import Locality
from xds_server.model.services import UNKNOWN, InstanceView, Reading, ServiceView
from xds_server.model.snapshot import Node
from xds_server.model.status import ProviderStatus
from xds_server.model.telemetry import LoadReport
from xds_server.model.topology import (
    Address,
    Capacity,
    DiscoverySource,
    EngineSettings,
    Mesh,
    Mode,
    Price,
    Provider,
    ServerSettings,
    Service,
    TelemetrySettings,
)
from xds_server.model.usage import Usage
from xds_server.observability import Metrics
from xds_server.registry.instance_views import instance_views
from xds_server.registry.leases import Announcement, Leases
from xds_server.registry.registry import Registry
from xds_server.registry.services import (
    Directory,
    Estimates,
    prices_of,
    service_views,
    services_of,
)

EAST = Locality("us-east-1", "a")
WHERE = Address("10.0.0.1", 80)
A = Provider(
    "a",
    "search",
    EAST,
    discovery=DiscoverySource("registry"),
    price=Price(per_million_requests_usd=2.0, per_endpoint_hour_usd=0.5),
)
B = Provider("b", "search", endpoints=(WHERE,), capacity=Capacity(rps_per_endpoint=50.0))
C = Provider("c", "mail", discovery=DiscoverySource("dns", {"name": "c.example"}))
MESH = Mesh(
    "test",
    Mode.OBSERVE,
    EngineSettings(),
    TelemetrySettings(),
    {"search": Service("search", (A, B)), "mail": Service("mail", (C,))},
    {},
    {},
    ServerSettings(),
)
NO_ESTIMATES = Estimates({}, None)


class World:
    """Node n1 sends 10 requests/s to each of its providers, one in ten fails."""

    def __init__(self, *calls: str) -> None:
        self.leases = Leases()
        self.leases.set_providers(MESH.providers)
        services = {p.name: p.service for p in MESH.providers.values()}
        self.registry = Registry(services, slot_s=1.0, load_valid_s=30.0, leases=self.leases)
        self.registry.node_connected(Node("n1", "shop", locality_region="us-east-1"), 0.0)
        self.found = {"b": (WHERE,)}
        for now_s in range(1, 6):
            if calls:
                self.registry.observe(batch("n1", *calls, errors=1.0, ms=20.0), float(now_s))
            self.registry.roll()

    def views(self, now_s: float = 6.0, estimates: Estimates = NO_ESTIMATES):
        directory = Directory(MESH, self.found, self.leases, now_s)
        return service_views(directory, self.registry, estimates)

    def provider(self, name: str, *args, **kwargs):
        views = self.views(*args, **kwargs)
        return next(p for s in views for p in s.providers if p.provider == name)

    def lease(self, port: int = 1, **said: float) -> None:
        announcement = Announcement("a", Address("10.0.0.9", port), Locality(sub_zone="a1"))
        self.leases.register(f"id{port}", announcement, 300.0, 1.0)
        self.leases.heartbeat(f"id{port}", 4.0, **said)
        self.found["a"] = self.leases.endpoints("a")


def test_what_sidecars_measured_has_their_age() -> None:
    traffic = World("b").provider("b").traffic
    error = pytest.approx(math.sqrt(50.0) / 5.0)
    assert traffic.rps == Reading(pytest.approx(10.0), 1.0, "sidecars", 50.0, error)
    assert traffic.in_flight.value == pytest.approx(2.0)
    assert traffic.error_ratio.value == pytest.approx(0.1)
    assert traffic.availability_ratio.value == pytest.approx(0.9)
    assert 14.0 < traffic.latency_p50_ms.value <= traffic.latency_p99_ms.value <= 20.0
    assert (traffic.window_s, traffic.availability_s) == (5.0, 15.0)


def test_a_sum_is_as_old_as_its_oldest_part() -> None:
    world = World("b")
    world.registry.node_connected(Node("n2", "shop"), 5.0)
    world.registry.observe(batch("n2", "b"), 7.5)
    world.registry.roll()
    rps = world.provider("b", 8.0).traffic.rps
    assert rps.age_s == 3.0
    assert rps.value == pytest.approx(20.0)


def test_what_nobody_measured_is_unknown_and_not_zero() -> None:
    provider = World().provider("b")
    assert provider.traffic.rps == provider.traffic.availability_ratio == UNKNOWN
    assert provider.cost_usd_per_h == UNKNOWN
    assert World().views()[0].cost_usd_per_h is None


def test_without_attempts_availability_is_unknown() -> None:
    world = World()
    world.registry.observe(batch("n1", "b", requests=0.0), 6.0)
    world.registry.roll()
    traffic = world.provider("b").traffic
    assert traffic.rps.value == 0.0
    assert traffic.availability_ratio == traffic.error_ratio == traffic.latency_p95_ms == UNKNOWN


def test_a_provider_speaks_for_itself_then_its_leases_then_the_engine_then_mesh_yaml() -> None:
    status = ProviderStatus("a", "search", 1, 9.0, None, None, 0.0, 0.8, 77.0, 3.0)
    engine = Estimates({"a": status}, 0.5)
    world = World("a")
    assert world.provider("a").price_per_million_usd == Reading(
        2.0, None, "declared", standard_error=0.0
    )
    assert world.provider("a").utilisation_ratio == UNKNOWN
    seen = world.provider("a", estimates=engine)
    assert seen.price_per_million_usd == Reading(3.0, 0.5, "engine", standard_error=0.0)
    assert seen.utilisation_ratio == Reading(0.8, 0.5, "engine")
    assert seen.capacity_rps == Reading(77.0, 0.5, "engine")
    world.lease(utilisation_ratio=0.4, price_per_million_usd=5.0)
    seen = world.provider("a", estimates=engine)
    assert seen.price_per_million_usd == Reading(5.0, 2.0, "lease", standard_error=0.0)
    assert seen.utilisation_ratio == Reading(0.4, 2.0, "lease")
    world.registry.observe_load("n1", [LoadReport("a", 0.3, math.nan, 7.0)], 5.0)
    seen = world.provider("a", estimates=engine)
    assert seen.price_per_million_usd == Reading(7.0, 1.0, "provider", standard_error=0.0)
    assert seen.utilisation_ratio == Reading(0.3, 1.0, "provider", 1.0)


def test_a_price_that_the_engine_only_repeats_is_declared() -> None:
    status = ProviderStatus("a", "search", 1, 9.0, None, None, 0.0, 0.8, 77.0, 2.0)
    seen = World("a").provider("a", estimates=Estimates({"a": status}, 0.5))
    assert seen.price_per_million_usd == Reading(2.0, None, "declared", standard_error=0.0)


def test_a_capacity_that_the_engine_only_repeats_is_declared() -> None:
    status = ProviderStatus("b", "search", 1, 9.0, None, None, 0.0, 0.8, 50.0, 2.0, 0.5)
    seen = World("b").provider("b", estimates=Estimates({"b": status}, 0.5))
    assert seen.capacity_rps == Reading(50.0, None, "declared")
    learnt = replace(status, capacity_rps=60.0)
    seen = World("b").provider("b", estimates=Estimates({"b": learnt}, 0.5))
    assert seen.capacity_rps == Reading(60.0, 0.5, "engine", standard_error=30.0)


def test_a_cost_is_of_requests_and_of_endpoints() -> None:
    world = World("a", "b")
    world.lease(1)
    world.lease(2)
    seen = world.provider("a")
    error = pytest.approx(0.0072 * math.sqrt(50.0) / 5.0)
    cost = Reading(pytest.approx(0.036 * 2.0 + 1.0), 1.0, "derived", 50.0, error)
    assert seen.cost_usd_per_h == cost
    service = services_of(world.views(), "search")[0]
    assert service.rps == pytest.approx(20.0)
    assert service.cost_usd_per_h == pytest.approx(1.072)


def test_endpoints_say_who_found_them_and_what_they_announced() -> None:
    world = World()
    world.lease(utilisation_ratio=0.4)
    (announced,) = world.provider("a").endpoints
    assert announced.source == "registry"
    assert announced.locality == Locality("us-east-1", "a", "a1")
    assert announced.utilisation_ratio == Reading(0.4, 2.0, "lease")
    assert (announced.registered_s, announced.heard_s, announced.expires_in_s) == (5.0, 2.0, 298.0)
    (declared,) = world.provider("b").endpoints
    assert (declared.source, declared.heard_s) == ("declared", None)
    assert declared.capacity_rps == Reading(50.0, None, "declared")
    assert world.provider("c").endpoints == ()


def test_health_is_what_the_sidecar_that_sees_fewest_hosts_says() -> None:
    world = World()
    assert world.provider("c").health == "no endpoints"
    assert world.provider("b").health == "unknown"
    world.registry.node_connected(Node("n2", "shop"), 0.0)
    world.registry.observe_hosts("n1", {"b": 1.0}, 5.0)
    assert world.provider("b").health == "ok"
    world.registry.observe_hosts("n2", {"b": 0.0}, 4.0)
    assert world.provider("b").health == "unhealthy"
    assert world.provider("b").healthy_hosts == Reading(0.0, 2.0, "sidecars")


def instances(world: World, now_s: float = 6.0) -> tuple[InstanceView, ...]:
    signals = {s.node_id: s for s in world.registry.signals(now_s)}
    prices = prices_of(world.views(now_s))
    return instance_views(world.registry, signals, {"n1": ("steady", 2.0)}, prices, now_s)


def test_an_instance_shows_what_it_does_and_what_that_costs() -> None:
    (seen,) = instances(World("a", "b"))
    assert (seen.node_id, seen.phase, seen.phase_s, seen.age_s) == ("n1", "steady", 4.0, 6.0)
    assert seen.traffic.rps.value == pytest.approx(20.0)
    assert seen.rps_by_service == {"search": pytest.approx(20.0)}
    # Only what a priced 2 USD per million; b is free.
    error = pytest.approx(0.0072 * math.sqrt(50.0) / 5.0)
    assert seen.cost_usd_per_h == Reading(pytest.approx(0.072), 1.0, "derived", 100.0, error)
    assert seen.health == "ok"


def test_an_instance_is_failing_or_unheard() -> None:
    world = World("b")
    world.registry.node_connected(Node("n0", "shop"), 5.0)
    quiet, loud = instances(world)
    assert (quiet.node_id, quiet.health, quiet.phase, quiet.phase_s) == (
        "n0",
        "no telemetry",
        "",
        None,
    )
    assert loud.health == "ok"
    world.registry.observe(batch("n1", "b", requests=100.0, errors=90.0), 6.0)
    world.registry.roll()
    assert instances(world)[1].health == "failing"
    assert instances(world, 60.0)[1].health == "no telemetry"


class View:
    """The part of the admin API's view that is asked here."""

    def __init__(self, world: World) -> None:
        self.world = world

    def services(self, name: str = "") -> tuple[ServiceView, ...]:
        return services_of(self.world.views(), name) if name else self.world.views()

    def instances(self) -> tuple[InstanceView, ...]:
        return instances(self.world)


async def test_the_admin_api_answers_and_names_the_services_there_are() -> None:
    transport = httpx.ASGITransport(create_admin(View(World("a")), Metrics()))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        names = [s["service"] for s in (await client.get("/v1/services")).json()]
        assert names == ["search", "mail"]
        (one,) = (await client.get("/v1/services/mail")).json()
        assert one["providers"][0]["health"] == "no endpoints"
        answer = await client.get("/v1/services/none")
        assert (answer.status_code, answer.json()["known"]) == (404, ["search", "mail"])
        assert (await client.get("/v1/instances")).json()[0]["node_id"] == "n1"
        assert "/v1/services" in (await client.get("/")).json()["endpoints"]


def printed(renderable: object) -> str:
    console = Console(width=250)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_tables_show_unknown_as_a_dash_and_old_values_with_their_age() -> None:
    world = World("b")
    world.lease(utilisation_ratio=0.4)
    text = printed(render_services(json.loads(dumps(world.views(66.0)))))
    rows = [line for line in text.splitlines() if line.strip()]
    lines = {line.split()[0]: line for line in reversed(rows)}  # endpoints come last
    assert "(stale 1 min)" in lines["b"]
    assert " - " in lines["c"]
    lease = "heard 62.0 s ago  ends in 238.0 s  load 40.0% (stale 1 min)"
    assert f"a 10.0.0.9:1  registry  {lease}" in text
    assert "? USD/h" in lines["search"]
    table = printed(render_instances(json.loads(dumps(instances(world)))))
    assert "search 10.0/s" in table
    assert "no services" in printed(render_services([]))
    assert "no instances" in printed(render_instances([]))


def test_every_value_says_what_chance_may_have_done_to_it() -> None:
    traffic = World("b").provider("b").traffic
    assert traffic.error_ratio.samples == 50.0
    assert traffic.error_ratio.standard_error == pytest.approx(0.05, rel=0.1)
    assert traffic.availability_ratio.samples == 50.0
    assert traffic.latency_p95_ms.samples == 50.0
    bucket_ms = 6.0 / math.sqrt(12.0)  # 14 to 20 ms
    assert bucket_ms < traffic.latency_p50_ms.standard_error < 3.0
    assert traffic.in_flight.standard_error is None
    assert not traffic.rps.stale


def test_orca_is_as_sure_as_its_nodes_agree() -> None:
    world = World("a")
    world.registry.node_connected(Node("n2", "shop"), 0.0)
    for node_id, ratio in (("n1", 0.3), ("n2", 0.5)):
        world.registry.observe_load(node_id, [LoadReport("a", ratio, math.nan, math.nan)], 5.0)
    said = world.provider("a").utilisation_ratio
    assert said == Reading(pytest.approx(0.4), 1.0, "provider", 2.0, pytest.approx(0.1))


def test_the_engine_is_as_sure_as_its_model_and_stale_when_it_stands_still() -> None:
    status = ProviderStatus("a", "search", 1, 9.0, None, None, 0.0, 0.8, 77.0, 2.0, 0.1)
    seen = World("a").provider("a", estimates=Estimates({"a": status}, 0.5))
    assert seen.capacity_rps == Reading(77.0, 0.5, "engine", None, pytest.approx(7.7))
    assert seen.utilisation_ratio.standard_error == pytest.approx(0.08)
    seen = World("a").provider("a", estimates=Estimates({"a": status}, 5.5))
    assert seen.capacity_rps.stale


def test_values_are_stale_when_their_source_should_have_spoken_again() -> None:
    world = World("a", "b")
    world.registry.observe_hosts("n1", {"b": 1.0}, 5.0)
    world.lease(utilisation_ratio=0.4, price_per_million_usd=5.0)
    fresh, old = world.provider("a"), world.provider("a", 66.0)
    assert not fresh.traffic.rps.stale
    assert not fresh.cost_usd_per_h.stale
    assert not fresh.utilisation_ratio.stale
    assert old.traffic.rps.stale
    assert old.traffic.latency_p95_ms.stale
    assert old.cost_usd_per_h.stale
    assert old.utilisation_ratio == Reading(0.4, 62.0, "lease", stale=True)
    assert not old.price_per_million_usd.stale  # a price holds until another is said
    assert world.provider("b", 66.0).healthy_hosts.stale
    assert instances(world, 66.0)[0].traffic.rps.stale
    assert instances(world, 66.0)[0].cost_usd_per_h.stale


def test_a_word_that_is_valid_counts_before_one_that_is_stale() -> None:
    world = World("a")
    world.lease(utilisation_ratio=0.4)
    metered = [Usage("a", is_provider=True, cpu_ratio=0.5, utilisation_ratio=0.7)]
    world.registry.usages.take(0, "prometheus", metered, valid_s=30.0, now_s=60.0)
    assert world.provider("a").utilisation_ratio.source == "lease"
    assert world.provider("a", 66.0).utilisation_ratio == Reading(0.7, 6.0, "prometheus")
    assert world.provider("a", 96.0).utilisation_ratio.stale
    assert world.provider("a", 66.0).cpu_ratio == Reading(0.5, 6.0, "prometheus")


def test_what_is_used_and_how_rough_a_value_is_are_in_the_tables() -> None:
    world = World("b")
    used = [Usage("n1", False, 0.25, 3.0 * 2**20), Usage("b", True, 0.5, 2.0**30)]
    world.registry.usages.take(0, "psutil", used, valid_s=30.0, now_s=5.0)
    text = printed(render_services(json.loads(dumps(world.views()))))
    assert "b uses  CPU 50.0%  memory 1024 MiB" in text
    assert "10.0 ±4.6%" in text  # of 50 requests
    (line,) = [
        line
        for line in printed(render_instances(json.loads(dumps(instances(world))))).splitlines()
        if "n1" in line
    ]
    assert "25.0%" in line
    assert "3 MiB" in line


def test_an_instance_without_requests_has_a_cost_that_is_not_certain() -> None:
    world = World("a")
    idle = batch("n1", "a")
    for now_s in range(6, 30):
        none = replace(idle, counts=0.0 * idle.counts, latency_hist=0.0 * idle.latency_hist)
        world.registry.observe(none, float(now_s))
        world.registry.roll()
    (seen,) = instances(world, 30.0)
    rps, cost = seen.traffic.rps, seen.cost_usd_per_h
    assert (rps.value, cost.value) == (0.0, 0.0)
    assert rps.standard_error is not None
    assert cost.standard_error == pytest.approx(0.0036 * 2.0 * rps.standard_error)


def test_numbers_in_tables_are_plain_and_what_is_not_measured_looks_so() -> None:
    world = World("b")
    for capacity, sigma_ratio, shown in (
        (1288.0, 0.16, "1288 ±206"),
        (12884.0, 0.16, "12884 ±2061"),
        (160.0, 1.0, "160 (assumed)"),
        (50.0, 1.0, "50 (declared)"),
    ):
        status = ProviderStatus("b", "search", 1, 9.0, None, None, 0.0, 0.8, capacity, 3.0,
                                sigma_ratio)  # fmt: skip
        views = world.views(estimates=Estimates({"b": status}, 0.5))
        assert shown in printed(render_services(json.loads(dumps(views)))), shown
    for sigma_ratio, shown in ((14.0, "80.0 ±>800%"), (0.9, "80.0 ±72%")):
        status = replace(status, capacity_sigma_ratio=sigma_ratio)
        views = world.views(estimates=Estimates({"b": status}, 0.5))
        assert shown in printed(render_services(json.loads(dumps(views)))), shown


def test_what_endpoints_say_they_carry_is_a_prior() -> None:
    world = World()
    assert with_capacities(MESH, world.leases) is MESH
    announcement = Announcement("a", WHERE, capacity_rps=40.0)
    world.leases.register("x", announcement, 300.0, 0.0)
    mesh = with_capacities(MESH, world.leases)
    assert mesh.providers["a"].capacity.rps_per_endpoint == 40.0
    assert mesh.providers["b"] is MESH.providers["b"]


def test_leases_and_calls_are_metrics() -> None:
    world, metrics = World(), Metrics()
    recorder = LeaseRecorder(metrics, world.leases)
    world.lease()
    recorder.record()
    value = metrics.registry.get_sample_value
    assert value("xds_server_registry_leases", {"provider": "a"}) == 1.0
    world.leases.deregister("id1", 5.0)
    recorder.record()
    recorder.record()
    assert value("xds_server_registry_leases", {"provider": "a"}) == 0.0
    ended = "xds_server_registry_leases_ended_total"
    assert value(ended, {"reason": "deregistered"}) == 1.0
    CallRecorder(metrics).called("List", "ok")
    CallRecorder(metrics).watchers(3)
    called = {"method": "List", "result": "ok"}
    assert value("xds_server_registry_calls_total", called) == 1.0
    assert value("xds_server_registry_watchers") == 3.0
    metrics.forget_provider("a")
    assert value("xds_server_registry_leases", {"provider": "a"}) is None


MESH_FILE = """\
mesh: m
services: {s: {providers: {a: {discovery: {adapter: registry%s}}}}}
templates: {t: {calls: {s: {}}, profiles: {p: {}}}}
applications: {x: {template: t}}
"""


def test_a_provider_may_leave_its_endpoints_to_the_registry() -> None:
    mesh = parse_mesh(MESH_FILE % "", "mesh.yaml")
    assert mesh.providers["a"].discovery is not None
    assert mesh.providers["a"].discovery.adapter == "registry"


@pytest.mark.parametrize(
    "key", ["name: a.example", "port: 1", "nameserver: '127.0.0.1:53'", "refresh_min_s: 1.0"]
)
def test_keys_of_other_adapters_are_refused(key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_mesh(MESH_FILE % f", {key}", "mesh.yaml")
    (problem,) = raised.value.problems
    assert problem.key.endswith(f"discovery.{key.partition(':')[0]}")
    assert "announce themselves" in problem.message
