"""Composition root: a configuration becomes objects, and the objects one running process."""

import asyncio
from pathlib import Path

from xds_server.app.process import run

__all__ = ["serve"]


def serve(config_path: Path) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    Raises ConfigError for a configuration that cannot be served, AdapterError when an
    address is taken.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(config_path))
