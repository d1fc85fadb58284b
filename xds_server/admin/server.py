"""Serves the admin API inside an event loop that belongs to somebody else."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette

from xds_server.errors import AdapterError
from xds_server.model.topology import Address

CLOSE_S: Final = 2.0
"""How long requests may take to finish when the server closes."""
CONNECTIONS: Final = 64
"""Requests at once; beyond that they get 503."""


class _Server(uvicorn.Server):
    """Leaves signals to the process that owns the event loop, and says when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets=sockets)
        finally:
            self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serve_admin(app: Starlette, address: Address) -> AsyncIterator[Address]:
    """Serve while the context is open; yields the address bound (port 0: any free one).

    Raises AdapterError when the address cannot be had.
    """
    listener = await _listen(address)
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=int(CLOSE_S),
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="admin")
    try:
        await server.up.wait()
        yield _bound(listener, address)
    finally:
        server.should_exit = True
        await serving
        listener.close()
        if address.is_pipe:
            _path(address).unlink(missing_ok=True)


async def _listen(address: Address) -> socket.socket:
    """Bind here, not in uvicorn, which ends the process when it cannot."""
    if address.is_pipe:
        _remove_dead(_path(address))
        return _bind(socket.AF_UNIX, str(_path(address)), address)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _refused(address, error) from error
    family, _, _, _, target = found[0]
    return _bind(family, target, address)


def _path(address: Address) -> Path:
    return Path(address.host.removeprefix("unix:"))


def _remove_dead(path: Path) -> None:
    """Remove the socket of a process that was killed; leave one that answers."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a unix socket connects or refuses at once
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # busy or not ours: binding says so


def _bind(
    family: int, target: str | tuple[str | int, ...] | tuple[int, bytes], address: Address
) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen()
    except OSError as error:
        listener.close()
        raise _refused(address, error) from error
    listener.setblocking(False)
    return listener


def _refused(address: Address, error: OSError) -> AdapterError:
    why = error.strerror or str(error)
    return AdapterError(
        f"server.admin.address {address}: cannot listen: {why}; free it or name another",
        retryable=False,
    )


def _bound(listener: socket.socket, address: Address) -> Address:
    return address if address.is_pipe else Address(address.host, listener.getsockname()[1])
