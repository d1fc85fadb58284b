"""What the commands share: exit codes, options, questions to the admin API, output."""

import json
import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

FAILED = 1
MISTAKE = 2
ADMIN_TIMEOUT_S = 5.0
DEFAULT_ADMIN = "http://127.0.0.1:18001"


class Resolution(StrEnum):
    """How fine history is shown."""

    AUTO = "auto"
    TICK = "1s"
    MINUTE = "1m"
    HOUR = "1h"


MeshOption = Annotated[Path, typer.Option("--config", "-c", help="The mesh to serve.")]
AdminOption = Annotated[
    str, typer.Option("--admin", metavar="URL", help="Where server.admin.address answers.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
NO_ADMIN = "what answers there is no admin API of xds-server; see --admin"


def ask(admin: str, path: str, timeout_s: float = ADMIN_TIMEOUT_S) -> Any:
    """Get JSON from the admin API, or say in one line why not and exit."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import ProxyHandler, build_opener

    check_url(admin)
    opener = build_opener(ProxyHandler({}))  # the admin API is near: no proxy in between
    try:
        with opener.open(admin.rstrip("/") + path, timeout=timeout_s) as response:
            return json.load(response)
    except HTTPError as error:
        with error:
            code = MISTAKE if error.code in (400, 404) else FAILED
            fail(code, [f"{admin}: {detail(error.read()) or f'HTTP {error.code}'}"])
    except ValueError:
        fail(FAILED, [f"{admin}: {NO_ADMIN}"])
    except (OSError, HTTPException) as error:
        why = error.reason if isinstance(error, URLError) else error
        why = getattr(why, "strerror", None) or why
        fail(FAILED, [f"{admin}: no answer from the admin API: {why}; is xds-server running?"])


def check_url(admin: str) -> None:
    """Exit unless it is the URL of an HTTP server."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(admin)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        good = False
    if not good:
        fail(MISTAKE, [f"--admin {admin}: not a URL; write it as {DEFAULT_ADMIN}"])


def since_s_of(since: str) -> float:
    """Return the seconds that ``--since`` says, or exit."""
    from xds_server.config.fields import duration_s

    since_s = duration_s(since)
    if not since_s:
        fail(MISTAKE, [f"--since {since}: write it like 90s, 15m, 2h, 7d"])
    return since_s


def detail(body: bytes) -> str:
    """Return what a JSON problem says; "" for any other body."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""


def fail(code: int, lines: Iterable[str]) -> NoReturn:
    """Write lines to stderr and end with that exit code."""
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(code)


def fields_of(record: Any) -> dict[str, Any]:
    """Return a record as plain data."""
    from dataclasses import asdict

    return asdict(record)


def print_json(data: Any) -> None:
    """Print for programs."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def print_yaml(data: Any) -> None:
    """Print with keys in the order that they have."""
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # keep the order in which people read it
    yaml.dump(data, sys.stdout)


def print_rich(renderable: Any) -> None:
    """Print for people."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe or a file has no width to fit into
    console.print(renderable)
