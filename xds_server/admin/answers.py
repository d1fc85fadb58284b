"""What answers share: parameters that are checked, JSON, and RFC 9457 problems."""

from collections.abc import Collection
from typing import Final

from starlette.responses import Response

from xds_server.admin.encode import dumps
from xds_server.errors import HistoryError

SINCE_S: Final = 3600.0
"""How far back it is looked where nobody says."""
REFUSALS: Final = (KeyError, ValueError, HistoryError)
"""What a question may raise; ``refusal`` answers it."""


def json_response(value: object, status: int = 200) -> Response:
    """Return ``value`` as JSON."""
    return Response(dumps(value), status, media_type="application/json")


def problem_response(status: int, title: str, detail: str, **more: object) -> Response:
    """Return an RFC 9457 problem."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return Response(dumps(body), status, media_type="application/problem+json")


def refusal(error: Exception) -> Response:
    """Return one of ``REFUSALS`` as the problem that it is."""
    if isinstance(error, KeyError):
        return problem_response(404, "Unknown name", str(error.args[0]))
    if isinstance(error, HistoryError):
        return problem_response(503, "No history", str(error))
    return problem_response(400, "Cannot be answered", str(error))


def check_params(params: Collection[str], known: Collection[str]) -> None:
    """Raise ValueError for a parameter that nobody knows."""
    unknown = set(params) - set(known)
    if unknown:
        raise ValueError(f"no parameter {min(unknown)!r}; known: {', '.join(sorted(known))}")


def parse_since_s(text: str) -> float:
    """Return seconds before now. Raises ValueError with what to write instead."""
    try:
        since_s = float(text)
    except ValueError:
        since_s = -1.0
    if not 0.0 < since_s < 1e10:
        raise ValueError(f"since_s={text}: write seconds, like since_s=7200")
    return since_s
