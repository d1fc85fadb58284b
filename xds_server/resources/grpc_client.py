"""What a gRPC client gets that speaks xDS itself: no Envoy beside it, no port to listen on.

The rules are those of gRPC's proposals on xDS (A27, A28, A32, A44, A50), as gRPC's C core
follows them: a listener is an ``api_listener``, load balancing is ROUND_ROBIN, and weights are
in the routes, since there is no runtime.
"""

from collections.abc import Iterable
from datetime import timedelta

from envoy_data_plane.envoy.config.cluster import v3 as cluster_v3
from envoy_data_plane.envoy.config.listener import v3 as listener_v3
from envoy_data_plane.envoy.config.route import v3 as route_v3
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router_v3
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm_v3
from envoy_data_plane.google.protobuf import Any

from xds_server.model.ids import CDS, LDS, ApplicationName, ResourceName
from xds_server.model.snapshot import Resource
from xds_server.model.template import Call
from xds_server.model.topology import Address, Provider
from xds_server.model.versions import make_resource
from xds_server.resources.cluster import MAX_REQUESTS
from xds_server.resources.common import CONNECT_TIMEOUT, ads
from xds_server.resources.endpoint import load_assignment
from xds_server.resources.patch import VarintTemplate
from xds_server.resources.route import RouteTemplate, resource_name

RETRY_IDEMPOTENT = "unavailable"
"""The one status that says the provider could not be reached or does not serve."""


def grpc_listener(name: ResourceName) -> Resource:
    """Build what ``xds:///name`` asks for; its routes come by RDS under the same name."""
    manager = hcm_v3.HttpConnectionManager(
        stat_prefix=name,
        rds=hcm_v3.Rds(config_source=ads(), route_config_name=name),
        http_filters=[
            hcm_v3.HttpFilter(
                name="envoy.filters.http.router", typed_config=Any.pack(router_v3.Router())
            )
        ],
    )
    message = listener_v3.Listener(
        name=name, api_listener=listener_v3.ApiListener(api_listener=Any.pack(manager))
    )
    return make_resource(LDS, name, bytes(message))


def grpc_cluster(provider: Provider) -> Resource:
    """Build the cluster; its endpoints come by EDS under the same name."""
    message = cluster_v3.Cluster(
        name=provider.name,
        type=cluster_v3.ClusterDiscoveryType.EDS,
        eds_cluster_config=cluster_v3.ClusterEdsClusterConfig(eds_config=ads()),
        connect_timeout=CONNECT_TIMEOUT,
        lb_policy=cluster_v3.ClusterLbPolicy.ROUND_ROBIN,
        outlier_detection=_outliers(),
        # Where this is not set, a client stops at 1,024 calls at a time (gRFC A32).
        circuit_breakers=cluster_v3.CircuitBreakers(
            thresholds=[cluster_v3.CircuitBreakersThresholds(max_requests=MAX_REQUESTS)]
        ),
    )
    return make_resource(CDS, provider.name, bytes(message))


def _outliers() -> cluster_v3.OutlierDetection:
    """Eject single endpoints that fail; never most of a provider.

    gRPC does not count failures in a row (gRFC A50), so it is told a share of failures.
    """
    return cluster_v3.OutlierDetection(
        interval=timedelta(seconds=1),
        base_ejection_time=timedelta(seconds=5),
        max_ejection_time=timedelta(seconds=30),
        max_ejection_percent=50,
        enforcing_success_rate=0,
        failure_percentage_threshold=50,
        enforcing_failure_percentage=100,
        failure_percentage_minimum_hosts=2,
        failure_percentage_request_volume=10,
    )


def grpc_assignment(provider: Provider, endpoints: Iterable[Address]) -> Resource:
    """Build the ClusterLoadAssignment without unix sockets: gRPC refuses one that has any."""
    return load_assignment(provider, (a for a in endpoints if not a.is_pipe))


def grpc_route_template(
    application: ApplicationName, call: Call, candidates: tuple[Provider, ...]
) -> RouteTemplate:
    """Build the shape once; weights are numbers that ``VarintTemplate`` fills in."""
    name = resource_name(application, call.service)

    def author(weights: list[int]) -> bytes:
        clusters = [
            route_v3.WeightedClusterClusterWeight(name=p.name, weight=w)
            for p, w in zip(candidates, weights, strict=True)
        ]
        action = route_v3.RouteAction(
            weighted_clusters=route_v3.WeightedCluster(clusters=clusters),
            # No ``max_stream_duration``, which would bound a call (gRFC A31): the C core ends
            # calls 1 to 2 s before that (grpc/grpc#34547; measured with 1.85). Applications
            # bound their calls themselves.
            retry_policy=_retries(call),
        )
        route = route_v3.Route(match=route_v3.RouteMatch(prefix="/"), route=action)
        host = route_v3.VirtualHost(name=call.service, domains=["*"], routes=[route])
        return bytes(route_v3.RouteConfiguration(name=name, virtual_hosts=[host]))

    return RouteTemplate(
        name,
        call.service,
        tuple(p.name for p in candidates),
        tuple(p.baseline_weight for p in candidates),
        VarintTemplate.authored(author, len(candidates)),
    )


def _retries(call: Call) -> route_v3.RetryPolicy | None:
    """Retry what may have been executed only where that is harmless.

    What certainly was not executed is retried by the client itself, without being told.
    """
    if call.retries == 0 or not call.idempotent:
        return None
    return route_v3.RetryPolicy(retry_on=RETRY_IDEMPOTENT, num_retries=call.retries)
