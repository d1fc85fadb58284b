"""The gRPC server that everything on the wire is registered with."""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from xds_server.errors import AdapterError, ConfigError, Problem
from xds_server.model.topology import Address, ServerSettings, TlsSettings

RECEIVE_MAX_BYTES = 32 * 2**20
"""``initial_resource_versions`` and node metadata of a large client exceed gRPC's 4 MiB."""
_OPTIONS = (
    ("grpc.max_receive_message_length", RECEIVE_MAX_BYTES),
    ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, not a helper
    ("grpc.http2.bdp_probe", 0),  # -15 % CPU per push, measured
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),  # sidecars ping every 5 s
    ("grpc.http2.max_ping_strikes", 0),
)


@asynccontextmanager
async def serving(
    settings: ServerSettings, handlers: Iterable[grpc.GenericRpcHandler]
) -> AsyncIterator[None]:
    """Serve while the block runs.

    Raises ConfigError for unusable TLS files, AdapterError when the address is taken.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # a line per failed handshake otherwise
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers(tuple(handlers))
    target = _target(settings.xds)
    try:
        if settings.xds_tls is None:
            bound = server.add_insecure_port(target)
        else:
            bound = server.add_secure_port(target, _credentials(settings.xds_tls))
    except RuntimeError as error:
        raise _taken(settings.xds) from error
    if not bound:
        raise _taken(settings.xds)
    await server.start()
    try:
        yield
    finally:
        await server.stop(grace=1.0)


def _target(address: Address) -> str:
    return address.host if address.is_pipe else str(address)


def _taken(address: Address) -> AdapterError:
    return AdapterError(
        f"server.xds.address {address}: cannot listen there; free it or name another",
        retryable=False,
    )


def _credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    pair = [(_read(tls.key, "key"), _read(tls.cert, "cert"))]
    if tls.client_ca is None:
        return grpc.ssl_server_credentials(pair)
    return grpc.ssl_server_credentials(
        pair, root_certificates=_read(tls.client_ca, "client_ca"), require_client_auth=True
    )


def _read(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        problem = Problem(
            path, 0, f"server.xds.tls.{key}", f"cannot be read: {error.strerror}", "name a PEM file"
        )
        raise ConfigError((problem,)) from None
