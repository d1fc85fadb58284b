"""Turns calls into lines of files. Everything here runs in one thread of its own."""

from base64 import b64encode
from collections import OrderedDict
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Final

from xds_server.model.ids import TypeUrl
from xds_server.model.snapshot import Resource, TypeSnapshot
from xds_server.wire.tape.calls import Call, Closed, Cut, Opened, Polled, Received
from xds_server.wire.tape.format import (
    FORMAT,
    PARTS,
    RESOURCES,
    Json,
    Seal,
    digest,
    dumps,
    part_to_json,
    refusals_to_json,
    sent,
    sent_to_json,
    without_node,
)
from xds_server.wire.tape.store import Store, file_name

PARTS_KEPT: Final = 4096
"""Parts whose number is remembered, beside those in use; one that comes back later gets
another, and the machine that replays it then looks once more whether anything changed."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part under its number. Holds the object, so that no other gets its identity."""

    part: TypeSnapshot
    number: int
    key: str


@dataclass(slots=True)
class _File:
    """One stream's file, and which part of each type its lines have named last."""

    name: str
    delta: bool
    parts: dict[TypeUrl, _Part] = field(default_factory=dict)


class Writer:
    """Everything of one run."""

    def __init__(self, store: Store, run: str, build: str, seal: Seal, first_number: int) -> None:
        self._store, self._run, self._build, self._seal = store, run, build, seal
        self._next_file = first_number
        self._files: dict[int, _File] = {}
        self._parts: OrderedDict[tuple[TypeUrl, int], _Part] = OrderedDict()
        self._next_part = 1

    def write(self, call: Call) -> None:
        """Write one call down. Raises RecordingFullError, or OSError."""
        match call:
            case Opened():
                self._open(call)
            case Received():
                body = without_node(call.body, delta=self._files[call.stream_id].delta)
                self._line(call, {"at": call.at_s, "got": b64encode(body).decode()})
            case Polled():
                self._polled(call)
            case Closed():
                self._line(call, {"closed": call.reason})
                del self._files[call.stream_id]
            case Cut():
                file = self._files.pop(call.stream_id)
                self._store.end(file.name, dumps({"n": call.n, "ended": call.reason}))

    def end(self, reason: str) -> None:
        """Say in every file that it ends here; a disk that is full may not take that either."""
        for file in self._files.values():
            with suppress(OSError):
                self._store.end(file.name, dumps({"ended": reason}))
        self._files.clear()
        self._parts.clear()

    def _line(self, call: Received | Polled | Closed, data: Json) -> None:
        self._store.append(self._files[call.stream_id].name, dumps({"n": call.n, **data}))

    def _open(self, call: Opened) -> None:
        name = file_name(self._next_file, call.node.node_id)
        file = _File(name, call.settings.protocol == "delta")
        refused = refusals_to_json(call.refused, self._seal)
        for refusal, row in zip(call.refused.values(), refused, strict=True):
            if refusal.good is not None:
                self._keep_body(refusal.good, row["good"])
        header = {
            "tape": FORMAT,
            "build": self._build,
            "run": self._run,
            "stream": self._next_file,
            "n": call.n,
            "at": call.at_s,
            "time": datetime.fromtimestamp(call.wall_s, UTC).isoformat(timespec="milliseconds"),
            "machine": asdict(call.settings),
            "node": asdict(call.node),
            "shared": call.shared,
            "refused": refused,
        }
        self._next_file += 1
        self._store.append(file.name, dumps(header))
        self._files[call.stream_id] = file

    def _polled(self, call: Polled) -> None:
        file = self._files[call.stream_id]
        types = call.snapshot.types
        for type_url in file.parts.keys() - types.keys():
            del file.parts[type_url]
            self._line(call, {"part": None, "type": type_url})
        for type_url, part in types.items():
            before = file.parts.get(type_url)
            if before is None or before.part is not part:
                now = file.parts[type_url] = self._number(type_url, part)
                self._line(call, {"part": now.number, "type": type_url, "is": now.key})
        data: Json = {"at": call.at_s, "poll": len(call.responses)}
        data |= {"heartbeat": True} if call.heartbeat else {}
        if call.responses:
            data["sent"] = [sent_to_json(sent(r, self._seal)) for r in call.responses]
        self._line(call, data)

    def _number(self, type_url: TypeUrl, part: TypeSnapshot) -> _Part:
        identity = (type_url, id(part))
        known = self._parts.get(identity)
        if known is not None:
            self._parts.move_to_end(identity)
            return known
        data = part_to_json(type_url, part, self._seal)
        for resource, row in zip(part.resources.values(), data["resources"], strict=True):
            self._keep_body(resource, row)
        body = dumps(data)
        key = digest(body)
        self._store.put(PARTS, key, body)
        known = self._parts[identity] = _Part(part, self._next_part, key)
        self._next_part += 1
        if len(self._parts) > PARTS_KEPT:
            self._parts.popitem(last=False)
        return known

    def _keep_body(self, resource: Resource, row: Json) -> None:
        if "body" in row:  # a sealed one has none
            self._store.put(RESOURCES, row["body"], resource.body)
