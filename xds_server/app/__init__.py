"""Composition root: a configuration becomes objects, and the objects one running process."""

import asyncio
import resource
from pathlib import Path

__all__ = ["serve"]


def serve(config_path: Path, record: Path | None = None, record_max_mib: int = 0) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. ``record`` is a folder.

    Raises ConfigError for a configuration that cannot be served, AdapterError when an
    address is taken, or the folder cannot be written to.
    """
    import uvloop

    from xds_server.app.process import run  # slow to import, and not all of app needs it

    _allow_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(config_path, record, record_max_mib))


def _allow_files() -> None:
    """Raise the soft limit of open files: each client is one, and 1024 is common."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
