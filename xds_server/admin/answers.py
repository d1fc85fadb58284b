"""The two shapes of an answer: JSON, and an RFC 9457 problem."""

from starlette.responses import Response

from xds_server.admin.encode import dumps


def json_response(value: object, status: int = 200) -> Response:
    """Return ``value`` as JSON."""
    return Response(dumps(value), status, media_type="application/json")


def problem_response(status: int, title: str, detail: str, **more: object) -> Response:
    """Return an RFC 9457 problem."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return Response(dumps(body), status, media_type="application/problem+json")
