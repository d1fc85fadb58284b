"""Lets discovery streams wait until there is something true to tell them."""

import asyncio
from typing import Any, TypeAlias

import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class Hold(grpc.GenericRpcHandler):
    """Stands before another handler of streams, closed until ``open``.

    A client that waits keeps what it has, while one that is refused backs off and comes late.
    Loss policy: beyond ``waiting_max`` streams are refused (UNAVAILABLE).
    """

    def __init__(self, behind: grpc.GenericRpcHandler, waiting_max: int) -> None:
        self._behind, self._waiting_max = behind, waiting_max
        self._opened = asyncio.Event()
        self.waiting = 0

    def open(self) -> None:
        """Let everybody through, from now on."""
        self._opened.set()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return what serves a call; None for a method that is not the handler's."""
        method: Any = self._behind.service(details)
        if method is None or self._opened.is_set():
            return method

        async def held(requests: Any, context: Context) -> None:
            await self._wait(context)
            await method.stream_stream(requests, context)

        return grpc.stream_stream_rpc_method_handler(held)

    async def _wait(self, context: Context) -> None:
        if self.waiting >= self._waiting_max:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "starting, and too many wait already")
        self.waiting += 1
        try:
            await self._opened.wait()
        finally:
            self.waiting -= 1
