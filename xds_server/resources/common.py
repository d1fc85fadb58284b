"""Pieces that several resources share."""

from datetime import timedelta

from envoy_data_plane.envoy.config.core import v3 as core_v3

from xds_server.model.topology import Address

CONNECT_TIMEOUT = timedelta(seconds=1)


def ads() -> core_v3.ConfigSource:
    """Say that a resource comes over the stream that everything comes over."""
    return core_v3.ConfigSource(
        resource_api_version=core_v3.ApiVersion.V3, ads=core_v3.AggregatedConfigSource()
    )


def socket_address(address: Address) -> core_v3.Address:
    """Translate a TCP address or a unix socket."""
    if address.is_pipe:
        return core_v3.Address(pipe=core_v3.Pipe(path=address.host.removeprefix("unix:")))
    return core_v3.Address(
        socket_address=core_v3.SocketAddress(address=address.host, port_value=address.port)
    )


def parse_address(text: str) -> Address:
    """Read ``host:port``, ``[v6]:port`` or ``unix:/path``. Raises ValueError."""
    if text.startswith("unix:"):
        return Address(text)
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not an address; write host:port, such as 127.0.0.1:15001")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))
