"""Where the application reaches a service: a listener on its sidecar."""

from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.accesslog import v3 as accesslog_v3
from envoy_data_plane.envoy.config.core import v3 as core_v3
from envoy_data_plane.envoy.config.listener import v3 as listener_v3
from envoy_data_plane.envoy.extensions.access_loggers.grpc import v3 as grpc_v3
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router_v3
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm_v3
from envoy_data_plane.envoy.type import v3 as type_v3
from envoy_data_plane.google.protobuf import Any

from xds_server.model.ids import LDS
from xds_server.model.snapshot import Resource
from xds_server.model.topology import Address, TelemetrySettings
from xds_server.model.versions import make_resource
from xds_server.resources.bootstrap import CLUSTER
from xds_server.resources.common import ads, socket_address

LOG_NAME: Final = "xds_server.calls"
SAMPLE_KEY: Final = "xds_server.access_log_sample"
"""Runtime key (calls out of a million) by which an operator samples more or less at one Envoy."""
BUFFER_BYTES: Final = 16_384
"""What Envoy gathers of the log before it sends; beyond what it can send, it drops entries."""
_MILLION: Final = 1_000_000


def listener(name: str, address: Address, telemetry: TelemetrySettings | None = None) -> Resource:
    """Build the listener; its routes come by RDS under the same name.

    Calls are logged to the control plane as ``telemetry`` says, by default not at all.
    """
    manager = hcm_v3.HttpConnectionManager(
        stat_prefix=name,
        codec_type=hcm_v3.HttpConnectionManagerCodecType.AUTO,
        rds=hcm_v3.Rds(config_source=ads(), route_config_name=name),
        http_filters=[
            hcm_v3.HttpFilter(
                name="envoy.filters.http.router", typed_config=Any.pack(router_v3.Router())
            )
        ],
        # The caller is the application beside us: its addresses and headers are its own.
        server_header_transformation=(
            hcm_v3.HttpConnectionManagerServerHeaderTransformation.PASS_THROUGH
        ),
        access_log=_access_logs(telemetry or TelemetrySettings()),
    )
    message = listener_v3.Listener(
        name=name,
        address=socket_address(address),
        filter_chains=[
            listener_v3.FilterChain(
                filters=[
                    listener_v3.Filter(
                        name="envoy.filters.network.http_connection_manager",
                        typed_config=Any.pack(manager),
                    )
                ]
            )
        ],
    )
    return make_resource(LDS, name, bytes(message))


def _access_logs(telemetry: TelemetrySettings) -> list[accesslog_v3.AccessLog]:
    """Return the sampled log of calls: no headers, no filter state, no tags."""
    if not telemetry.access_log_sample_ratio:
        return []
    grpc_service = core_v3.GrpcService(
        envoy_grpc=core_v3.GrpcServiceEnvoyGrpc(cluster_name=CLUSTER)
    )
    config = grpc_v3.HttpGrpcAccessLogConfig(
        common_config=grpc_v3.CommonGrpcAccessLogConfig(
            log_name=LOG_NAME,
            grpc_service=grpc_service,
            transport_api_version=core_v3.ApiVersion.V3,
            buffer_flush_interval=timedelta(seconds=telemetry.stats_flush_interval_s),
            buffer_size_bytes=BUFFER_BYTES,
        )
    )
    sampled = accesslog_v3.RuntimeFilter(
        runtime_key=SAMPLE_KEY,
        percent_sampled=type_v3.FractionalPercent(
            numerator=round(telemetry.access_log_sample_ratio * _MILLION),
            denominator=type_v3.FractionalPercentDenominatorType.MILLION,
        ),
        # Else calls with one x-request-id would all be logged, or none of them.
        use_independent_randomness=True,
    )
    return [
        accesslog_v3.AccessLog(
            name="envoy.access_loggers.http_grpc",
            filter=accesslog_v3.AccessLogFilter(runtime_filter=sampled),
            typed_config=Any.pack(config),
        )
    ]
