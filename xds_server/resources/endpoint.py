"""A provider's endpoints."""

from collections.abc import Iterable

from envoy_data_plane.envoy.config.core import v3 as core_v3
from envoy_data_plane.envoy.config.endpoint import v3 as endpoint_v3

from xds_server.model.ids import EDS
from xds_server.model.snapshot import Resource
from xds_server.model.topology import Address, Provider
from xds_server.model.versions import make_resource
from xds_server.resources.common import socket_address


def load_assignment(provider: Provider, endpoints: Iterable[Address]) -> Resource:
    """Build the ClusterLoadAssignment; without endpoints it says so explicitly.

    Envoy keeps its hosts when an assignment is merely removed.
    """
    addresses = sorted(set(endpoints))
    where = provider.locality
    localities = [
        endpoint_v3.LocalityLbEndpoints(
            locality=core_v3.Locality(
                region=where.region, zone=where.zone, sub_zone=where.sub_zone
            ),
            load_balancing_weight=1,
            lb_endpoints=[
                endpoint_v3.LbEndpoint(
                    endpoint=endpoint_v3.Endpoint(address=socket_address(address))
                )
                for address in addresses
            ],
        )
    ]
    message = endpoint_v3.ClusterLoadAssignment(
        cluster_name=provider.name, endpoints=localities if addresses else []
    )
    return make_resource(EDS, provider.name, bytes(message))
