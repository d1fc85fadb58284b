"""Reads recordings: what was called, in order, with the very objects in the places of old ones."""

import json
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeAlias

from xds_server.errors import UnreadableTapeError
from xds_server.model.ids import NodeId, TypeUrl
from xds_server.model.snapshot import Snapshot, TypeSnapshot
from xds_server.wire.tape.calls import Settings
from xds_server.wire.tape.format import (
    FORMAT,
    PARTS,
    RESOURCES,
    Json,
    Sent,
    digest,
    part_from_json,
    sent_from_json,
)
from xds_server.wire.tape.store import number_of

PARTS_KEPT: Final = 4096
"""Parts in memory; one that is dropped is read again, as another object."""
_DAMAGE: Final = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True)
class Got:
    """A request."""

    n: int
    at_s: float
    body: bytes


@dataclass(frozen=True, slots=True)
class Poll:
    """What the machine was asked, and what it sent."""

    n: int
    at_s: float
    snapshot: Snapshot
    heartbeat: bool
    sent: tuple[Sent, ...]


@dataclass(frozen=True, slots=True)
class End:
    """The stream closed, or the tape stopped before (``cut``)."""

    n: int
    reason: str
    cut: bool


Entry: TypeAlias = Got | Poll | End


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a tape."""

    number: int  # of the stream
    run: str  # which process recorded it
    build: str  # version of the server that did
    n: int
    at_s: float
    time: str  # when the stream opened, ISO 8601
    settings: Settings
    node_id: NodeId
    shared: int  # streams of one run with the same number share what their node refused
    refused: list[Json] = field(repr=False)


class Contents:
    """The contents that the tapes of one folder name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.part = lru_cache(PARTS_KEPT)(self._part)

    def body(self, key: str) -> bytes:
        """Return the body of a resource. Raises UnreadableTapeError."""
        return self._content(RESOURCES, key)

    def _part(self, run: str, number: int, key: str) -> TypeSnapshot:
        """Return one type of a snapshot: one object per run and number."""
        del run, number
        body = self._content(PARTS, key)
        try:
            return part_from_json(json.loads(body), self.body)
        except _DAMAGE as error:
            raise UnreadableTapeError(f"{self._folder / PARTS / key}: {error!r}") from None

    def _content(self, kind: str, key: str) -> bytes:
        path = self._folder / kind / Path(key).name
        try:
            body = path.read_bytes()
        except OSError as error:
            raise UnreadableTapeError(f"{path}: {error.strerror}") from None
        if digest(body) != key:
            raise UnreadableTapeError(f"{path}: is not what was recorded")
        return body


class Tape:
    """One stream's recording."""

    def __init__(self, path: Path, contents: Contents) -> None:
        """Read the header. Raises UnreadableTapeError."""
        self.path, self.contents = path, contents
        first = next(self._lines(), None)
        self.header = None if first is None else self._header(first)

    def entries(self) -> Iterator[Entry]:
        """Yield what was called, in order. Raises UnreadableTapeError at what is damaged."""
        parts: dict[TypeUrl, TypeSnapshot] = {}
        run = "" if self.header is None else self.header.run
        n = 0
        lines = self._lines()
        next(lines, None)
        for number, line in enumerate(lines, 2):
            try:
                n = line.get("n", n)
                entry = self._entry(line, n, parts, run)
            except _DAMAGE as error:
                raise UnreadableTapeError(f"{self.path}:{number}: {error!r}") from None
            if entry is not None:
                yield entry

    def _entry(
        self, line: Json, n: int, parts: dict[TypeUrl, TypeSnapshot], run: str
    ) -> Entry | None:
        if "part" in line:
            if line["part"] is None:
                del parts[line["type"]]
            else:
                parts[line["type"]] = self.contents.part(run, line["part"], line["is"])
            return None
        if "got" in line:
            return Got(n, float(line["at"]), b64decode(line["got"], validate=True))
        if "poll" in line:
            sent = tuple(sent_from_json(s) for s in line.get("sent", ()))
            if len(sent) != line["poll"]:
                raise ValueError("responses are missing")
            heartbeat = bool(line.get("heartbeat", False))
            return Poll(n, float(line["at"]), Snapshot(dict(parts)), heartbeat, sent)
        if "closed" in line:
            return End(n, line["closed"], cut=False)
        return End(n, line["ended"], cut=True)

    def _header(self, data: Json) -> Header:
        if data.get("tape") != FORMAT:
            raise UnreadableTapeError(
                f"{self.path}: not a recording in format {FORMAT}, which this version reads"
            )
        try:
            return Header(
                int(data["stream"]),
                data["run"],
                data["build"],
                int(data["n"]),
                float(data["at"]),
                data["time"],
                Settings(**data["machine"]),
                data["node"]["node_id"],
                int(data["shared"]),
                data["refused"],
            )
        except _DAMAGE as error:
            raise UnreadableTapeError(f"{self.path}:1: {error!r}") from None

    def _lines(self) -> Iterator[Json]:
        """Yield lines; the last may be cut, as after ``kill -9``, and is then left out."""
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        return
                    data = json.loads(line)
                    if not isinstance(data, dict):
                        raise UnreadableTapeError(f"{self.path}:{number}: not a line of a tape")
                    yield data
        except OSError as error:
            raise UnreadableTapeError(f"{self.path}: {error.strerror}") from None
        except ValueError as error:
            raise UnreadableTapeError(f"{self.path}: {error}") from None


def tapes(folder: Path) -> list[Path]:
    """Return the files of a recording's streams, in order. Raises UnreadableTapeError."""
    try:
        numbered = sorted((n, p) for p in folder.iterdir() if (n := number_of(p.name)) is not None)
    except OSError as error:
        raise UnreadableTapeError(f"{folder}: {error.strerror}") from None
    if not numbered:
        raise UnreadableTapeError(f"{folder}: nothing was recorded there")
    return [path for _, path in numbered]
