"""The bootstrap of an application whose gRPC library speaks xDS itself (gRFC A27)."""

from collections.abc import Mapping
from typing import Final

from xds_server.model.topology import Address, Mesh
from xds_server.resources.bootstrap import Json, check_settings, node_of
from xds_server.resources.common import parse_address

FOR_ENVOY: Final[Mapping[str, str]] = {
    "admin.address": "it has no admin interface",
    "api": "it asks for the state of the world",
    "listeners": "it calls xds:///APPLICATION.SERVICE, on no port of its own",
    "max_connections": "it has no listeners",
    "tls.san": "it checks the certificate against the host of xds.address",
}
"""Settings that mean nothing to a gRPC client, and why."""


def render_grpc_bootstrap(
    mesh: Mesh, application: str, node_id: str, settings: Mapping[str, str] | None = None
) -> Json:
    """Return the bootstrap as plain data, ready to be written as JSON.

    Raises ValueError as ``render_bootstrap`` does, and for settings that are for Envoy alone.
    """
    chosen = dict(settings or {})
    check_settings(mesh, application, node_id, chosen)
    for key in chosen:
        reason = FOR_ENVOY.get(key) or FOR_ENVOY.get(key.partition(".")[0])
        if reason:
            raise ValueError(f"{key} is not for a gRPC client: {reason}; drop it")
    xds = parse_address(chosen["xds.address"]) if "xds.address" in chosen else mesh.server.xds
    server = {
        "server_uri": _target(xds),
        "channel_creds": [_credentials(chosen)],
        "server_features": ["xds_v3"],
    }
    return {"xds_servers": [server], "node": node_of(application, node_id, chosen)}


def _target(address: Address) -> str:
    if address.is_pipe:
        return address.host
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def _credentials(settings: Mapping[str, str]) -> Json:
    """Credentials for the control plane alone; providers are called with the channel's own."""
    if "tls.ca" not in settings:
        return {"type": "insecure"}
    files = {"ca_certificate_file": settings["tls.ca"]}
    if "tls.cert" in settings:
        files |= {
            "certificate_file": settings["tls.cert"],
            "private_key_file": settings["tls.key"],
        }
    return {"type": "tls", "config": files}
