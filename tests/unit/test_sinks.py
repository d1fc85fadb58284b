"""By which sink sidecars report and how many calls they log is what mesh.yaml says."""

from dataclasses import replace
from typing import Any

import grpc
import pytest
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from tests.e2e.plane import WallClock, listening, shop
from tests.e2e.telemetry import Sums, Tally
from tests.unit.otlp_messages import Export
from xds_server.config import inert_keys, parse_mesh
from xds_server.model.topology import Address, Mesh, StatsSink, TelemetrySettings
from xds_server.registry.registry import Registry
from xds_server.resources.bootstrap import CLUSTER, render_bootstrap
from xds_server.resources.listener import BUFFER_BYTES, listener
from xds_server.wire.bounds import BURST
from xds_server.wire.otlp_service import SERVICE, SOURCE, OtlpService
from xds_server.wire.speaker import Speakers

MESH = shop(18000, 15001, {"a": 9001})
YAML = """\
mesh: m
{telemetry}
services: {{s: {{providers: {{a: {{endpoints: [{{address: 127.0.0.1, port: 80}}]}}}}}}}}
templates:
  t:
    calls: {{s: {{}}}}
    profiles: {{steady: {{weights: {{performance: 1}}}}}}
    behaviour: {{read_ratio: [0.5, 1.0]}}
applications: {{shop: {{template: t}}}}
"""


def mesh_of(telemetry: str = "") -> Mesh:
    return parse_mesh(YAML.format(telemetry=telemetry), "mesh.yaml")


def test_the_sink_is_the_metrics_service_unless_chosen() -> None:
    assert mesh_of().telemetry.sink is StatsSink.METRICS_SERVICE
    chosen = mesh_of("telemetry: {sink: open_telemetry, access_log_sample_ratio: 0.25}")
    assert chosen.telemetry.sink is StatsSink.OPEN_TELEMETRY
    assert chosen.telemetry.access_log_sample_ratio == 0.25


def test_a_bootstrap_has_the_one_sink_and_otlp_says_whose_it_is() -> None:
    telemetry = TelemetrySettings(sink=StatsSink.OPEN_TELEMETRY)
    (sink,) = render_bootstrap(replace(MESH, telemetry=telemetry), "shop", "n7")["stats_sinks"]
    assert sink["name"] == "envoy.stat_sinks.open_telemetry"
    (detector,) = sink["typed_config"]["resource_detectors"]
    says = detector["typed_config"]["attributes"]
    assert says == {"service.name": "shop", "service.instance.id": "n7"}
    assert sink["typed_config"]["report_counters_as_deltas"] is False
    (sink,) = render_bootstrap(MESH, "shop", "n7")["stats_sinks"]
    assert sink["name"] == "envoy.stat_sinks.metrics_service"


def test_the_band_of_reads_is_inert_only_while_nothing_is_logged() -> None:
    (line,) = [key for key in inert_keys(mesh_of()) if "read_ratio" in key]
    assert "telemetry.access_log_sample_ratio is 0" in line
    logged = mesh_of("telemetry: {access_log_sample_ratio: 0.01}")
    assert not [key for key in inert_keys(logged) if "read_ratio" in key]


def manager(telemetry: TelemetrySettings | None) -> Any:
    resource = listener("shop/search", Address("127.0.0.1", 15001), telemetry)
    built = listener_pb2.Listener.FromString(resource.body)
    found = hcm_pb2.HttpConnectionManager()
    built.filter_chains[0].filters[0].typed_config.Unpack(found)
    return found


def test_listeners_log_a_sample_only_when_it_is_asked_for() -> None:
    assert not manager(None).access_log
    assert not manager(TelemetrySettings()).access_log
    (log,) = manager(TelemetrySettings(2.0, access_log_sample_ratio=0.015)).access_log
    sample = log.filter.runtime_filter
    assert (sample.percent_sampled.numerator, sample.percent_sampled.denominator) == (15_000, 2)
    assert sample.use_independent_randomness
    config = als_pb2.HttpGrpcAccessLogConfig()
    log.typed_config.Unpack(config)
    common = config.common_config
    assert common.grpc_service.envoy_grpc.cluster_name == CLUSTER
    assert common.buffer_flush_interval.ToSeconds() == 2
    assert common.buffer_size_bytes.value == BUFFER_BYTES
    assert not common.filter_state_objects_to_log
    assert not config.additional_request_headers_to_log


class Still(WallClock):
    """Time does not pass."""

    def now_s(self) -> float:
        return 0.0


async def test_exports_that_come_too_fast_are_refused_unread() -> None:
    registry = Registry({"a": "search"}, slot_s=1.0, load_valid_s=30.0)
    tally, clock = Tally(), Still()
    service = OtlpService(Sums(registry), tally, clock, Speakers(clock))
    async with (
        listening(service.handler()) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        export: Any = channel.unary_unary(f"/{SERVICE}/Export")
        for _ in range(int(BURST)):
            assert await export(Export("nobody").body) == b""
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await export(Export("nobody").body)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert tally.refused == {f"{SOURCE} rate": 3, f"{SOURCE} no ADS stream": int(BURST)}
