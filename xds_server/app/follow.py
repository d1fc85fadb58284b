"""Follows one source outside of this process for as long as it is wanted."""

from collections.abc import AsyncIterator, Callable
from typing import Protocol, TypeVar

import structlog

from xds_server.errors import AdapterError
from xds_server.ports import Clock

log = structlog.get_logger()

BACK_OFF_S = (1.0, 30.0)
"""First and longest wait before a lost source is watched again."""

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Source(Protocol[_T_co]):
    """A port whose news can be watched, again after each loss."""

    def watch(self) -> AsyncIterator[_T_co]:
        """Yield what holds now, then what is new. Raises AdapterError when it is lost."""
        ...


async def follow(
    clock: Clock,
    open_source: Callable[[], Source[_T]],
    take: Callable[[_T], None],
    lost: Callable[[AdapterError], None],
) -> None:
    """Hand over all news until cancelled, or until trying again cannot help.

    The source is opened once, so that it may remember what it has said.
    """
    wait_s = BACK_OFF_S[0]
    source: Source[_T] | None = None
    while True:
        try:
            source = source or open_source()
            async for news in source.watch():
                wait_s = BACK_OFF_S[0]
                take(news)
        except AdapterError as error:
            lost(error)
            if not error.retryable:
                return
        except Exception:
            # A bug of ours must not leave a provider as it is for ever.
            log.exception("source.failed")
        await clock.sleep_s(wait_s)
        wait_s = min(2.0 * wait_s, BACK_OFF_S[1])
