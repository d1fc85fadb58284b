"""Runs a control plane as one process: tasks, signals, reload, shutdown."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import structlog

from xds_server.admin import create_admin, serve_admin
from xds_server.app import collector
from xds_server.app.clock import SystemClock
from xds_server.app.plane import ControlPlane
from xds_server.app.watch import changes
from xds_server.config import Look, inert_keys, load_mesh
from xds_server.errors import ConfigError
from xds_server.wire.server import Server, serving

log = structlog.get_logger()

DISCOVERY_WITHIN_S = 10.0
"""How long start-up waits for discovery: Envoys that reconnect must not be told "none"."""
DRAIN_GRACE_S = 2.0
"""How long the last streams have to end, after ``server.xds.drain_s``."""
EXPIRY_CHECK_S = 0.5


async def run(path: Path, record: Path | None = None, record_max_mib: int = 0) -> int:
    """Serve the mesh in that file until a signal; return the exit code."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    look = Look(path)
    changed = changes(look, look(), stop)  # since now, which is before the file is read
    mesh = load_mesh(path)
    plane = ControlPlane(
        path, mesh, SystemClock(), record=record, record_max_bytes=record_max_mib * 2**20
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stopping, stop, hurry)
    plane.endpoints.set_mesh(mesh)
    plane.prices.set_mesh(mesh)
    plane.meters.set_mesh(mesh)
    # Endpoints that announce themselves can do so only when we serve.
    await plane.endpoints.first(mesh, DISCOVERY_WITHIN_S, own=False)
    plane.endpoints_changed()
    plane.history.start()
    admin = create_admin(plane, plane.metrics, plane.history)
    async with (
        serve_admin(admin, mesh.server.admin),
        serving(mesh.server, plane.handlers()) as server,
    ):
        log.info(
            "server.started",
            mesh=mesh.name,
            mode=mesh.mode.value,
            xds=str(mesh.server.xds),
            admin=str(mesh.server.admin),
            inert_keys=inert_keys(mesh),
        )
        collector.tune()
        await _work(plane, path, changed, stop, lambda: _drain(plane, server, hurry))
    plane.finish()
    if plane.tape is not None:
        await asyncio.to_thread(plane.tape.close)
    await asyncio.to_thread(plane.history.stop)
    plane.endpoints.stop()
    plane.prices.stop()
    plane.meters.stop()
    log.info("server.stopped")
    return 0


def _stopping(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """Stop at the first signal, and at once at the second."""
    (hurry if stop.is_set() else stop).set()


async def _drain(plane: ControlPlane, server: Server, hurry: asyncio.Event) -> None:
    """Send Envoys elsewhere: not ready first, then streams end one after the other.

    Connections are told to go at once, so that who comes again comes to another replica; what
    is open is served until its turn.
    """
    await plane.set_serving(False)
    window_s = plane.mesh.server.limits.drain_s
    draining = asyncio.ensure_future(plane.ads.drain(window_s, DRAIN_GRACE_S))
    leaving = asyncio.ensure_future(server.stop(window_s + 2 * DRAIN_GRACE_S))
    hurried = asyncio.ensure_future(hurry.wait())
    await asyncio.wait((draining, hurried), return_when=asyncio.FIRST_COMPLETED)
    if hurry.is_set():
        log.warning("server.stopping_at_once")
    else:
        await draining  # raises what went wrong
    for task in (draining, hurried):
        task.cancel()
    await server.stop(0.0)  # telemetry goes on until here
    await leaving


async def _work(
    plane: ControlPlane,
    path: Path,
    changed: AsyncIterator[None],
    stop: asyncio.Event,
    drain: Callable[[], Awaitable[None]],
) -> None:
    """Run every task until ``stop``, and while ``drain`` takes: weights need to be renewed.

    A task that fails by a bug ends the process.
    """
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(_let_in(plane), name="start")
        running = [
            tasks.create_task(_tick(plane), name="engine"),
            tasks.create_task(_watch_expiry(plane), name="expiry"),
            tasks.create_task(_watch_certificates(plane), name="certificates"),
            tasks.create_task(_watch_config(plane, path, changed), name="config"),
        ]
        await stop.wait()
        log.info("server.stopping")
        starting.cancel()
        await drain()
        for task in running:
            task.cancel()


async def _let_in(plane: ControlPlane) -> None:
    """Let streams in when our own sources of endpoints have spoken too."""
    await plane.endpoints.first(plane.mesh, DISCOVERY_WITHIN_S, own=True)
    await plane.set_serving(True)


async def _tick(plane: ControlPlane) -> None:
    """Turn once per tick, at a fixed pace; a tick that is late is not made up for."""
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    while True:
        due_s = max(due_s + plane.mesh.engine.tick_s, loop.time())
        await asyncio.sleep(due_s - loop.time())
        plane.metrics.tasks.set(len(asyncio.all_tasks(loop)))
        try:
            plane.turn()
        except Exception:
            # A bug of ours must not stop the other ticks; if it repeats, weights expire.
            plane.metrics.tick_failures_total.inc()
            log.exception("engine.tick_failed")


async def _watch_expiry(plane: ControlPlane) -> None:
    while True:
        await asyncio.sleep(EXPIRY_CHECK_S)
        plane.expire()


async def _watch_certificates(plane: ControlPlane) -> None:
    while True:
        await asyncio.sleep(plane.mesh.server.limits.auth_recheck_s)
        plane.ads.recheck()


async def _watch_config(plane: ControlPlane, path: Path, changed: AsyncIterator[None]) -> None:
    """Reload whenever a file of the configuration changes."""
    async for _ in changed:
        await reload(plane, path)


async def reload(plane: ControlPlane, path: Path) -> bool:
    """Put the file into force, or say why not and leave things as they are."""
    try:
        # In a thread: large files take seconds, and sidecars wait for heartbeats.
        plane.reload(await asyncio.to_thread(load_mesh, path))
    except ConfigError as error:
        plane.config_error = str(error)
        plane.metrics.config_reloads_total.labels("refused").inc()
        plane.metrics.config_last_reload_success.set(0)
        log.error("config.refused", problems=[str(p) for p in error.problems[:20]])  # noqa: TRY400
        return False
    plane.config_error = ""
    plane.metrics.config_reloads_total.labels("ok").inc()
    plane.metrics.config_last_reload_success.set(1)
    log.info("config.reloaded", mesh=plane.mesh.name, inert_keys=inert_keys(plane.mesh))
    return True
