"""Files of a recording: private, bounded, and whole after ``kill -9``."""

import errno
import fcntl
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Final, Protocol

from xds_server.errors import RecordingFullError
from xds_server.model.ids import NodeId
from xds_server.wire.tape.format import PARTS, RESOURCES, SUFFIX

BLOCK_BYTES: Final = 4096
"""What a small file takes up; the bound counts that."""
OPEN_MAX: Final = 64
"""Files kept open; the least recently used is closed first, and opened again when needed."""
KNOWN_MAX: Final = 65_536
"""Names of content known to be there; one that was forgotten is looked for on the disk."""
_SAFE_MAX: Final = 80


class Disk(Protocol):
    """Where bytes go. Everything raises OSError."""

    def append(self, path: Path, body: bytes) -> None:
        """Add to a file, all of it or nothing; the file is made if need be."""
        ...

    def create(self, path: Path, body: bytes) -> bool:
        """Make a file with that content, unless there is one; say whether it was made."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class RealDisk:
    """The file system."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def append(self, path: Path, body: bytes) -> None:
        """Add to a file; what a full disk took of it is taken back."""
        handle = self._handle(path)
        before = os.fstat(handle).st_size
        written = 0
        try:
            while written < len(body):
                written += os.write(handle, body[written:])
        except OSError:
            if written:
                os.ftruncate(handle, before)
            raise

    def _handle(self, path: Path) -> int:
        handle = self._open.pop(path, None)
        if handle is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(path, flags, 0o600)
        self._open[path] = handle
        if len(self._open) > OPEN_MAX:
            os.close(self._open.popitem(last=False)[1])
        return handle

    def create(self, path: Path, body: bytes) -> bool:
        """Make a file under another name first, so that nobody ever sees a part of it."""
        if path.exists():
            return False
        draft = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            draft.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
                file.write(body)
            draft.rename(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        return True

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.popitem()[1])


class Store:
    """One folder of recordings, and how much may still go into it."""

    def __init__(self, folder: Path, disk: Disk, max_bytes: int) -> None:
        self._folder, self._disk = folder, disk
        self._left_bytes = max_bytes - used_bytes(folder)
        self._known: OrderedDict[str, None] = OrderedDict()

    def append(self, name: str, line: bytes) -> None:
        """Add a line. Raises RecordingFullError, or OSError."""
        self._take(len(line))
        self._disk.append(self._folder / name, line)

    def put(self, kind: str, key: str, body: bytes) -> None:
        """Keep content once. Raises RecordingFullError, or OSError."""
        name = f"{kind}/{key}"
        if name in self._known:
            self._known.move_to_end(name)
            return
        size = -(-len(body) // BLOCK_BYTES) * BLOCK_BYTES
        self._take(size)
        if not self._disk.create(self._folder / name, body):
            self._left_bytes += size
        self._known[name] = None
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def end(self, name: str, line: bytes) -> None:
        """Add a last line, in any case if the disk takes it. Raises OSError."""
        self._disk.append(self._folder / name, line)

    def close(self) -> None:
        """Close what is open."""
        self._disk.close()

    def _take(self, size: int) -> None:
        if size > self._left_bytes:
            raise RecordingFullError
        self._left_bytes -= size


def prepare(folder: Path) -> int:
    """Make the folders; return the number for the first stream. Raises OSError."""
    for path in (folder, folder / PARTS, folder / RESOURCES):
        path.mkdir(mode=0o700, parents=path == folder, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    numbers = (number_of(path.name) for path in folder.glob(f"*{SUFFIX}"))
    return 1 + max((n for n in numbers if n is not None), default=0)


def lock(folder: Path) -> int:
    """Keep other processes from recording there. Raises OSError; ends with the handle."""
    handle = os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BlockingIOError(errno.EAGAIN, "another process records there") from None
    return handle


def used_bytes(folder: Path) -> int:
    """How much earlier recordings in the folder take up."""
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(-(-size // BLOCK_BYTES) * BLOCK_BYTES for size in sizes)


def file_name(number: int, node_id: NodeId) -> str:
    """Name a stream's file; what a node calls itself may hold anything."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", node_id)[:_SAFE_MAX] or "-"
    return f"{number:06d}-{safe}{SUFFIX}"


def number_of(name: str) -> int | None:
    """Return the number in a file's name; None if it is not ours."""
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() and name.endswith(SUFFIX) else None
