"""`/v1/what-if` and `/v1/replay-decisions`: questions that change nothing."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xds_server.admin.answers import json_response, problem_response
from xds_server.errors import HistoryError
from xds_server.model.decision_replay import DecisionReplay
from xds_server.model.what_if import WhatIf

SINCE_S: Final = 3600.0


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
        except KeyError as error:
            return problem_response(404, "Unknown name", str(error.args[0]))
        except ValueError as error:
            return problem_response(400, "Cannot be answered", str(error))
        except HistoryError as error:
            return problem_response(503, "No history", str(error))

    async def what_if(request: Request) -> Response:
        def begin() -> Callable[[], WhatIf]:
            params = _params(request.query_params, {"application", "service", "set"})
            for name in ("application", "service"):
                if not params.get(name):
                    raise ValueError(f"no {name}; add {name}=NAME")
            changes = params.getlist("set")
            return view.what_if(params["application"], params["service"], changes)

        return await answer(begin)

    async def replay_decisions(request: Request) -> Response:
        def begin() -> Callable[[], DecisionReplay]:
            known = {"profile", "application", "since_s", "resolution"}
            params = _params(request.query_params, known)
            if not params.get("profile"):
                raise ValueError("no profile; add profile=NAME")
            return view.replay_decisions(
                params["profile"],
                params.get("application", ""),
                _since_s(params.get("since_s", str(SINCE_S))),
                params.get("resolution", "auto"),
            )

        return await answer(begin)

    return [Route("/v1/what-if", what_if), Route("/v1/replay-decisions", replay_decisions)]


def _params(params: QueryParams, known: set[str]) -> QueryParams:
    unknown = params.keys() - known
    if unknown:
        raise ValueError(f"no parameter {min(unknown)!r}; known: {', '.join(sorted(known))}")
    return params


def _since_s(text: str) -> float:
    try:
        since_s = float(text)
    except ValueError:
        since_s = -1.0
    if not 0.0 < since_s < 1e10:
        raise ValueError(f"since_s={text}: write seconds, like since_s=7200")
    return since_s
