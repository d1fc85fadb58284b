"""Says when the configuration's files have changed, however they are replaced."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import structlog
from watchfiles import awatch

from xds_server.config import Look, Sources

log = structlog.get_logger()

LOOK_AGAIN_MS: Final = 2_000
"""How often to look although nothing was said: of links and network folders nothing is."""


async def changes(look: Look, before: Sources, stop: asyncio.Event) -> AsyncGenerator[None, None]:
    """Yield once for every change of mesh.yaml, or of a file that it names, since ``before``."""
    while not stop.is_set():
        async with aclosing(_looks(look, before, stop)) as looks:
            async for now in looks:
                changed, moved = now.digest != before.digest, now.folders != before.folders
                before = now
                if changed:
                    yield
                if moved:
                    break  # there are other folders to watch


async def _looks(look: Look, now: Sources, stop: asyncio.Event) -> AsyncGenerator[Sources, None]:
    """Look at every sign of a change in the folders, and now and then without one."""
    yield await asyncio.to_thread(look)
    try:
        async for _ in awatch(
            *sorted(now.folders),
            stop_event=stop,
            recursive=False,
            rust_timeout=LOOK_AGAIN_MS,
            yield_on_timeout=True,
        ):
            yield await asyncio.to_thread(look)
    except (OSError, RuntimeError) as error:  # a folder has just gone; or too many watches
        log.warning("config.watch_failed", reason=str(error))
        await asyncio.sleep(LOOK_AGAIN_MS / 1e3)
        yield await asyncio.to_thread(look)
