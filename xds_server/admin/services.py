"""`/v1/services` and `/v1/instances`: who provides what, and who runs."""

from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xds_server.admin.answers import json_response, problem_response
from xds_server.model.services import InstanceView, ServiceView


class ServicesView(Protocol):
    """What these answers are made from."""

    def services(self, name: str = "") -> tuple[ServiceView, ...]:
        """Return every service, or the one of that name. Raises KeyError."""
        ...

    def instances(self) -> tuple[InstanceView, ...]:
        """Return every connected instance, by node id."""
        ...


def service_routes(view: ServicesView) -> list[Route]:
    """Return the routes."""

    async def services(request: Request) -> Response:
        name = request.path_params.get("service", "")
        try:
            return json_response(view.services(name))
        except KeyError:
            known = [s.service for s in view.services()]
            detail = f"no service {name}; known: {', '.join(known)}"
            return problem_response(404, "Unknown service", detail, known=known)

    async def instances(_: Request) -> Response:
        return json_response(view.instances())

    return [
        Route("/v1/services", services),
        Route("/v1/services/{service}", services),
        Route("/v1/instances", instances),
    ]
