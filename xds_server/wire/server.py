"""The gRPC server that everything on the wire is registered with."""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import grpc

from xds_server.errors import AdapterError
from xds_server.model.topology import Address, ServerSettings, XdsLimits
from xds_server.wire.credentials import credentials

RECEIVE_MAX_BYTES = 32 * 2**20
"""``initial_resource_versions`` and node metadata of a large client exceed gRPC's 4 MiB."""
AGE_GRACE_S = 2.0
"""How long streams go on after their client was told to connect anew; xDS streams never end
by themselves, so this is when Envoy opens new ones."""
STOP_GRACE_S = 1.0


class Server:
    """A server that runs; ``stop`` may be called again, to make it shorter."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """Tell clients to go elsewhere, now; cut what is still open after ``grace_s``.

        No connection and no stream is taken any more; open streams go on until then.
        """
        await self._server.stop(grace_s or None)


@asynccontextmanager
async def serving(
    settings: ServerSettings, handlers: Iterable[grpc.GenericRpcHandler]
) -> AsyncIterator[Server]:
    """Serve while the block runs.

    Raises ConfigError for unusable TLS files, AdapterError when the address is taken.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # a line per failed handshake otherwise
    server = grpc.aio.server(options=_options(settings.limits))
    server.add_generic_rpc_handlers(tuple(handlers))
    target = _target(settings.xds)
    try:
        if settings.xds_tls is None:
            bound = server.add_insecure_port(target)
        else:
            bound = server.add_secure_port(target, credentials(settings.xds_tls))
    except RuntimeError as error:
        raise _taken(settings.xds) from error
    if not bound:
        raise _taken(settings.xds)
    await server.start()
    try:
        yield Server(server)
    finally:
        await server.stop(STOP_GRACE_S)


def _options(limits: XdsLimits) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", RECEIVE_MAX_BYTES),
        ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, not a helper
        ("grpc.http2.bdp_probe", 0),  # -15 % CPU per push, measured
        ("grpc.keepalive_time_ms", _ms(limits.keepalive_s)),
        ("grpc.keepalive_timeout_ms", _ms(limits.keepalive_timeout_s)),
        # What counts in gRPC 1.85; without it a ping has a minute, whatever the line above says.
        ("grpc.http2.ping_timeout_ms", _ms(limits.keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # a stream may be quiet for hours
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),  # sidecars ping every 5 s
        ("grpc.http2.max_ping_strikes", 0),
    ]
    if limits.max_connection_age_s:
        options += [
            ("grpc.max_connection_age_ms", _ms(limits.max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", _ms(AGE_GRACE_S)),
        ]
    return options


def _ms(duration_s: float) -> int:
    return max(round(1e3 * duration_s), 1)


def _target(address: Address) -> str:
    return address.host if address.is_pipe else str(address)


def _taken(address: Address) -> AdapterError:
    return AdapterError(
        f"server.xds.address {address}: cannot listen there; free it or name another",
        retryable=False,
    )
