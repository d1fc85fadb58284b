"""Where the application reaches a service: a listener on its sidecar."""

from envoy_data_plane.envoy.config.listener import v3 as listener_v3
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router_v3
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm_v3
from envoy_data_plane.google.protobuf import Any

from xds_server.model.ids import LDS
from xds_server.model.snapshot import Resource
from xds_server.model.topology import Address
from xds_server.model.versions import make_resource
from xds_server.resources.common import ads, socket_address


def listener(name: str, address: Address) -> Resource:
    """Build the listener; its routes come by RDS under the same name."""
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
