"""The admin API as a Starlette application over a read-only view of the control plane."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xds_server.admin.answers import json_response as _json
from xds_server.admin.answers import problem_response as _problem
from xds_server.admin.services import ServicesView, service_routes
from xds_server.admin.what_if import WhatIfView, what_if_routes
from xds_server.model.explanation import Explanation
from xds_server.model.status import Status
from xds_server.observability import Metrics

if TYPE_CHECKING:
    from xds_server.history.writer import History

ENDPOINTS: Final[Mapping[str, str]] = {
    "/metrics": "Prometheus metrics",
    "/healthz": "200 while the process is alive",
    "/readyz": "200 when it can serve, else 503 with the reasons",
    "/v1/status": "nodes, routes, providers and bottlenecks",
    "/v1/explain": "?application=A&service=S: why each of its routes has the weights that it has",
    "/v1/what-if": "?application=A&service=S&set=CHANGE: what the mesh would do and gain",
    "/v1/replay-decisions": "?profile=P: what another profile would have decided",
    "/v1/services": "services, providers and endpoints, each value with its age and source",
    "/v1/services/{service}": "one of them",
    "/v1/instances": "instances with what they do and what it costs",
    "/v1/history": "?service=NAME: what its providers did over time",
    "/v1/history/decisions": "?service=NAME: what was decided about it",
    "/v1/history/anomalies": "?service=NAME: instances outside of what their templates expect",
    "/v1/history/export": "?service=NAME&format=csv|parquet: the rows behind it",
}


class View(ServicesView, WhatIfView, Protocol):
    """What the admin API may know. Methods are called on the event loop and must not block."""

    def ready(self) -> tuple[bool, Mapping[str, str]]:
        """Return whether Envoys can be served, and the state of each part by its name."""
        ...

    def status(self) -> Status:
        """Return the state of everything, now."""
        ...

    def explain(self, application: str, service: str) -> Callable[[], tuple[Explanation, ...]]:
        """Return what gives, in any thread, one explanation per route, in order.

        Raises KeyError when nothing was decided for that application and service.
        """
        ...


def create_admin(view: View, metrics: Metrics, history: "History | None" = None) -> Starlette:
    """Return the application; it holds no state of its own."""
    routes: list[Route] = []
    if history is not None:
        from xds_server.admin.history import history_routes  # DuckDB takes a while to import

        routes = history_routes(history)

    async def index(_: Request) -> Response:
        return _json({"endpoints": ENDPOINTS})

    async def exposition(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"content-type": content_type})

    async def healthz(_: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(_: Request) -> Response:
        ready, reasons = view.ready()
        return _json({"ready": ready, "reasons": reasons}, 200 if ready else 503)

    async def status(_: Request) -> Response:
        return _json(view.status())

    explaining = asyncio.Semaphore(1)  # it takes time from the engine's core: one at once

    async def explain(request: Request) -> Response:
        asked = {**request.query_params, **request.path_params}
        missing = [name for name in ("application", "service") if not asked.get(name)]
        if missing:
            detail = f"no {missing[0]}; add {missing[0]}=NAME"
            return _problem(400, "Cannot be answered", detail)
        application, service = asked["application"], asked["service"]
        async with explaining:
            try:
                work = view.explain(application, service)
            except KeyError:
                return _unknown_route(view.status(), application, service)
            return await asyncio.to_thread(lambda: _json(work()))

    return Starlette(
        routes=[
            Route("/", index),
            Route("/metrics", exposition),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/v1/status", status),
            Route("/v1/explain", explain),
            Route("/v1/explain/{application}/{service}", explain),
            *service_routes(view),
            *what_if_routes(view),
            *routes,
        ],
        exception_handlers={HTTPException: _http_problem},
    )


def _unknown_route(status: Status, application: str, service: str) -> Response:
    known = sorted({f"{r.application}/{r.service}" for r in status.routes})
    why = ", ".join(known) or "none before a node connects"
    detail = f"no route {application}/{service}; known: {why}"
    return _problem(404, "Unknown route", detail, known=known)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # what it is registered for
    detail = f"{request.method} {request.url.path}; GET / lists the endpoints"
    return _problem(error.status_code, error.detail, detail)
