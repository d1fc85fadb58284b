"""Where `xds-server history` gets its answers: the running server, else the file itself."""

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from xds_server.admin.encode import to_json
from xds_server.admin.history import answer, parse_query
from xds_server.config import load_mesh
from xds_server.errors import HistoryError
from xds_server.history.files import connect
from xds_server.history.read import Reader

TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Source:
    """The admin API of a server, and the mesh whose history is read if no server answers."""

    admin: str
    config: Path

    def ask(self, question: str, params: Mapping[str, str]) -> Any:
        """Answer one of ``admin.history.QUESTIONS`` as JSON data.

        Raises ValueError for what a person can mend; HistoryError.
        """
        path = "/v1/history" + ("" if question == "points" else f"/{question}")
        response = self.get(path, params)
        if response is not None:
            with response:
                return json.load(response)
        with self._file() as reader:
            try:
                return to_json(answer(reader, question, parse_query(params, _wall_s())))
            except KeyError as error:
                raise ValueError(str(error.args[0])) from error

    def export(self, params: Mapping[str, str], output: BinaryIO) -> None:
        """Write a file of rows to ``output``. Raises as ``ask`` does."""
        response = self.get("/v1/history/export", params)
        if response is not None:
            with response:
                shutil.copyfileobj(response, output)
            return
        with self._file() as reader, tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "export"
            try:
                reader.export(parse_query(params, _wall_s()), params["format"], path)
            except KeyError as error:
                raise ValueError(str(error.args[0])) from error
            with path.open("rb") as written:
                shutil.copyfileobj(written, output)

    def get(self, path: str, params: Mapping[str, str]) -> HTTPResponse | None:
        """Return the server's answer; None if nobody answers there."""
        opener = build_opener(ProxyHandler({}))  # the admin API is near: no proxy in between
        url = f"{self.admin.rstrip('/')}{path}?{urlencode(params)}"
        try:
            response: HTTPResponse = opener.open(url, timeout=TIMEOUT_S)
        except HTTPError as error:
            with error:
                detail = _detail(error.read()) or f"HTTP {error.code}"
            if error.code in (400, 404):
                raise ValueError(detail) from error
            raise HistoryError(self.admin, detail, "see the server's log") from error
        except (OSError, HTTPException):
            return None
        return response

    @contextlib.contextmanager
    def _file(self) -> Iterator[Reader]:
        where = f"{self.admin} does not answer"
        if not self.config.exists():
            remedy = "start xds-server, or name the mesh whose history to read with --config"
            raise HistoryError(str(self.config), f"not there, and {where}", remedy)
        settings = load_mesh(self.config).history
        if settings is None:
            raise HistoryError(
                str(self.config), f"has no `history`, and {where}", "add `history: {path: ...}`"
            )
        with reading(self.config.parent / settings.path) as reader:
            yield reader


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """Open a file of history that may be another process's; read-only. Raises HistoryError."""
    connection = connect(path, read_only=True)
    try:
        yield Reader(path, connection)
    finally:
        connection.close()


def run_export(source: Source, params: Mapping[str, str], output: Path | None) -> None:
    """Export to a file, or CSV to stdout. An export that fails leaves no file behind."""
    if output is None and params["format"] != "csv":
        raise ValueError(f"--export {params['format']} is no text: add --output FILE")
    if output is None:
        source.export(params, sys.stdout.buffer)
        return
    part = output.with_name(f".{output.name}.part")
    try:
        with part.open("wb") as stream:
            source.export(params, stream)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _wall_s() -> float:
    return time.time()  # noqa: TID251 - a command that runs once is its own clock


def _detail(body: bytes) -> str:
    """Return what a JSON problem says; "" for any other body."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""
