"""`/v1/what-if` and `/v1/replay-decisions`: questions that change nothing."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xds_server.admin.answers import (
    REFUSALS,
    SINCE_S,
    check_params,
    json_response,
    parse_since_s,
    refusal,
)
from xds_server.model.decision_replay import DecisionReplay
from xds_server.model.what_if import WhatIf


class WhatIfView(Protocol):
    """What these answers are made from. What is returned runs in a thread, beside the engine."""

    def what_if(
        self, application: str, service: str, changes: Sequence[str]
    ) -> Callable[[], WhatIf]:
        """Take hold of the state of now. Raises as its result does: KeyError, ValueError."""
        ...

    def replay_decisions(
        self, profile: str, application: str, since_s: float, resolution: str
    ) -> Callable[[], DecisionReplay]:
        """Take hold of the mesh of now. Its result raises ValueError, HistoryError."""
        ...


def what_if_routes(view: WhatIfView) -> list[Route]:
    """Return the routes."""
    one = asyncio.Semaphore(1)  # they take time from the engine's core: one at once, others wait

    async def answer(begin: Callable[[], Callable[[], object]]) -> Response:
        try:
            async with one:
                work = begin()
                return await asyncio.to_thread(lambda: json_response(work()))
        except REFUSALS as error:
            return refusal(error)

    async def what_if(request: Request) -> Response:
        def begin() -> Callable[[], WhatIf]:
            params = request.query_params
            check_params(params, ("application", "service", "set"))
            for name in ("application", "service"):
                if not params.get(name):
                    raise ValueError(f"no {name}; add {name}=NAME")
            changes = params.getlist("set")
            return view.what_if(params["application"], params["service"], changes)

        return await answer(begin)

    async def replay_decisions(request: Request) -> Response:
        def begin() -> Callable[[], DecisionReplay]:
            params = request.query_params
            check_params(params, ("profile", "application", "since_s", "resolution"))
            if not params.get("profile"):
                raise ValueError("no profile; add profile=NAME")
            return view.replay_decisions(
                params["profile"],
                params.get("application", ""),
                parse_since_s(params.get("since_s", str(SINCE_S))),
                params.get("resolution", "auto"),
            )

        return await answer(begin)

    return [Route("/v1/what-if", what_if), Route("/v1/replay-decisions", replay_decisions)]
