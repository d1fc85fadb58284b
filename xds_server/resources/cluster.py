"""A provider as an Envoy cluster."""

from datetime import timedelta

from envoy_data_plane.envoy.config.cluster import v3 as cluster_v3
from envoy_data_plane.envoy.config.core import v3 as core_v3
from envoy_data_plane.envoy.extensions.upstreams.http import v3 as http_v3
from envoy_data_plane.envoy.type import v3 as type_v3
from envoy_data_plane.google.protobuf import Any

from xds_server.model.ids import CDS
from xds_server.model.snapshot import Resource
from xds_server.model.topology import Provider
from xds_server.model.versions import make_resource
from xds_server.resources.common import CONNECT_TIMEOUT, ads

ORCA_METRICS = (
    "cpu_utilization",
    "mem_utilization",
    "application_utilization",
    "named_metrics.*",
)
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
MAX_REQUESTS = 65_536
"""Calls at a time to one provider, by one client: a bound against a stampede."""


def cluster(provider: Provider) -> Resource:
    """Build the cluster; its endpoints come by EDS under the same name."""
    message = cluster_v3.Cluster(
        name=provider.name,
        type=cluster_v3.ClusterDiscoveryType.EDS,
        eds_cluster_config=cluster_v3.ClusterEdsClusterConfig(eds_config=ads()),
        connect_timeout=CONNECT_TIMEOUT,
        lb_policy=cluster_v3.ClusterLbPolicy.LEAST_REQUEST,
        outlier_detection=_outliers(),
        circuit_breakers=_breakers(),
        common_lb_config=cluster_v3.ClusterCommonLbConfig(
            # At most half of the endpoints are ever ejected, so there is no panic to have.
            healthy_panic_threshold=type_v3.Percent(value=0.0)
        ),
        lrs_report_endpoint_metrics=list(ORCA_METRICS),
        typed_extension_protocol_options={_HTTP_OPTIONS: Any.pack(_http_options())},
    )
    return make_resource(CDS, provider.name, bytes(message))


def _outliers() -> cluster_v3.OutlierDetection:
    """Eject single endpoints that fail; never most of a provider.

    Leaving a provider is the engine's decision, which needs the provider to go on
    answering for itself, so ejection stops at half of its endpoints.
    """
    return cluster_v3.OutlierDetection(
        consecutive_5xx=5,
        consecutive_gateway_failure=5,
        enforcing_consecutive_gateway_failure=100,
        interval=timedelta(seconds=1),
        base_ejection_time=timedelta(seconds=5),
        max_ejection_time=timedelta(seconds=30),
        max_ejection_percent=50,
    )


def _breakers() -> cluster_v3.CircuitBreakers:
    """Bounds against a stampede, far above what weights are for; retries by budget."""
    return cluster_v3.CircuitBreakers(
        thresholds=[
            cluster_v3.CircuitBreakersThresholds(
                max_connections=MAX_REQUESTS,
                max_pending_requests=MAX_REQUESTS,
                max_requests=MAX_REQUESTS,
                retry_budget=cluster_v3.CircuitBreakersThresholdsRetryBudget(
                    budget_percent=type_v3.Percent(value=20.0), min_retry_concurrency=5
                ),
            )
        ]
    )


def _http_options() -> http_v3.HttpProtocolOptions:
    """HTTP/1.1, and connections given up before common servers' keep-alive (60-75 s) ends.

    Trailers are read since a provider may say its load in them, when the answer is made.
    """
    return http_v3.HttpProtocolOptions(
        common_http_protocol_options=core_v3.HttpProtocolOptions(
            idle_timeout=timedelta(seconds=50)
        ),
        explicit_http_config=http_v3.HttpProtocolOptionsExplicitHttpConfig(
            http_protocol_options=core_v3.Http1ProtocolOptions(enable_trailers=True)
        ),
    )
