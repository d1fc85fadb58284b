"""`/v1/history`: what history holds, as JSON, and as a file to take away."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from xds_server.admin.answers import (
    REFUSALS,
    SINCE_S,
    check_params,
    json_response,
    parse_since_s,
    problem_response,
    refusal,
)
from xds_server.history.files import explained
from xds_server.history.read import Query, Reader
from xds_server.history.writer import History

QUESTIONS: Final = ("points", "decisions", "anomalies")
PARAMS: Final = ("service", "provider", "application", "since_s", "resolution", "format")
MEDIA_TYPES: Final = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}
AT_ONCE: Final = 2
"""Questions that are answered at once; others wait."""
_CHUNK_BYTES: Final = 2**18

_T = TypeVar("_T")


def parse_query(params: Mapping[str, str], now_s: float) -> Query:
    """Return what is asked for. Raises ValueError with what to write instead."""
    check_params(params, PARAMS)
    if not params.get("service"):
        raise ValueError("no service; add ?service=NAME")
    since_s = parse_since_s(params.get("since_s", str(SINCE_S)))
    return Query(
        params["service"],
        max(0.0, now_s - since_s),
        now_s + 1.0,
        params.get("provider", ""),
        params.get("application", ""),
        params.get("resolution", "auto"),
    )


def answer(reader: Reader, question: str, query: Query) -> object:
    """Answer one of ``QUESTIONS``. Raises as ``Reader`` does."""
    if question == "points":
        return reader.points(query)
    events = reader.decisions(query) if question == "decisions" else reader.anomalies(query)
    return {"service": query.service, "since_s": query.since_s, question: events}


def history_routes(history: History) -> list[Route]:
    """Return the routes below /v1/history."""
    free, exporting = asyncio.Semaphore(AT_ONCE), asyncio.Lock()

    async def ask(request: Request, work: Callable[[Reader, Query], _T]) -> _T | Response:
        def run(query: Query) -> _T:
            with history.reader() as reader:
                return work(reader, query)

        try:
            query = parse_query(request.query_params, history.wall_s())
            async with free:
                return await asyncio.to_thread(run, query)
        except REFUSALS as error:
            return refusal(error)

    async def question(request: Request) -> Response:
        name = request.path_params.get("question", "points")
        if name not in QUESTIONS:
            return problem_response(404, "Not Found", f"no {name}; one of {', '.join(QUESTIONS)}")
        found = await ask(request, lambda reader, query: answer(reader, name, query))
        return found if isinstance(found, Response) else json_response(found)

    async def export(request: Request) -> Response:
        form = request.query_params.get("format", "csv")
        if form not in MEDIA_TYPES:
            return problem_response(400, "Cannot be answered", f"format={form}: csv or parquet")
        async with exporting:  # each needs room on the disk
            found = await ask(request, lambda reader, query: _exported(reader, query, form))
        if isinstance(found, Response):
            return found
        return StreamingResponse(_chunks(found), media_type=MEDIA_TYPES[form])

    return [
        Route("/v1/history", question),
        Route("/v1/history/export", export),
        Route("/v1/history/{question}", question),
    ]


def _exported(reader: Reader, query: Query, form: str) -> BinaryIO:
    """Write an export beside the history and return it, open and without a name."""
    try:
        handle, name = tempfile.mkstemp(
            dir=reader.path.parent, prefix=f".{reader.path.name}.export-", suffix=f".{form}"
        )
    except OSError as error:
        raise explained(reader.path.parent, error) from error
    os.close(handle)
    path = Path(name)
    try:
        reader.export(query, form, path)
        return path.open("rb")
    finally:
        path.unlink(missing_ok=True)


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk
