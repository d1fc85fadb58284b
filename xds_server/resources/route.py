"""One service of one application as a RouteConfiguration, with weights to be patched."""

from dataclasses import dataclass
from datetime import timedelta

from envoy_data_plane.envoy.config.route import v3 as route_v3
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts import v3 as previous_v3
from envoy_data_plane.google.protobuf import Any

from xds_server.model.ids import ApplicationName, ProviderName, ServiceName
from xds_server.model.template import Call
from xds_server.model.topology import Provider
from xds_server.resources.patch import VarintTemplate

RETRY_IDEMPOTENT = "connect-failure,refused-stream,reset,gateway-error"
RETRY_ALWAYS_SAFE = "connect-failure,refused-stream,reset-before-request"
"""Conditions under which the provider cannot have seen the request."""


@dataclass(frozen=True, slots=True)
class RouteTemplate:
    """A RouteConfiguration's bytes but for its weights."""

    name: str
    service: ServiceName
    providers: tuple[ProviderName, ...]  # in the order of the patched weights
    baseline: tuple[int, ...]
    bytes_but_weights: VarintTemplate


def resource_name(application: ApplicationName, service: ServiceName) -> str:
    """Name of the listener and of the RouteConfiguration."""
    return f"{application}.{service}"


def runtime_prefix(application: ApplicationName, service: ServiceName) -> str:
    """Prefix of the runtime keys that override the weights."""
    return f"routing.{application}.{service}"


def route_template(
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
            weighted_clusters=route_v3.WeightedCluster(
                clusters=clusters, runtime_key_prefix=runtime_prefix(application, call.service)
            ),
            timeout=timedelta(seconds=call.timeout_s),
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
    """Retry on another endpoint; what may have been executed only where that is harmless.

    No timeout per try: a slow answer is not a lost one, and retrying it doubles the load
    on a provider that is slow because it is loaded.
    """
    if call.retries == 0:
        return None
    return route_v3.RetryPolicy(
        retry_on=RETRY_IDEMPOTENT if call.idempotent else RETRY_ALWAYS_SAFE,
        num_retries=call.retries,
        host_selection_retry_max_attempts=3,
        retry_host_predicate=[
            route_v3.RetryPolicyRetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=Any.pack(previous_v3.PreviousHostsPredicate()),
            )
        ],
    )
