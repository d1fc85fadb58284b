"""A document in a file, looked at now and then."""

import asyncio
import stat
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final, TypeAlias

from adapters.documents.feed import BYTES_MAX, Document, Sleep

SETTLE_S: Final = 0.02
SETTLE_TRIES: Final = 5
"""A file that is being written in place is read when it has stayed the same for a moment."""

_Stamp: TypeAlias = tuple[int, ...]
_GONE: Final[_Stamp] = ()


class FileFeed:
    """Looks at a file's times and identity, and reads it when they have changed.

    It is looked at, not watched: one watch per provider would use up the system's watches, and
    of links, mounts and network folders none reports anything. So it does not matter how the
    file is replaced. A name that ends in ``.json`` is JSON, any other YAML.
    """

    def __init__(
        self, path: Path, *, refresh_s: float = 1.0, sleep_s: Sleep = asyncio.sleep
    ) -> None:
        self._path, self._refresh_s, self._sleep_s = path, refresh_s, sleep_s

    async def looks(self) -> AsyncGenerator[Document | None, None]:
        """See ``Feed``; a file that cannot be read is a document with a fault."""
        known: _Stamp | None = None
        while True:
            stamp, document = await asyncio.to_thread(self._look, known)
            known = stamp
            yield document
            await self._sleep_s(self._refresh_s)

    def _look(self, known: _Stamp | None) -> tuple[_Stamp, Document | None]:
        stamp = self._stamp()
        if stamp == known:
            return stamp, None
        for _ in range(SETTLE_TRIES):
            document = self._read()
            time.sleep(SETTLE_S)
            before, stamp = stamp, self._stamp()
            if stamp == before:
                return stamp, document
        return (), self._fault("is being written without end")

    def _stamp(self) -> _Stamp:
        try:
            found = self._path.stat()
        except OSError:
            return _GONE
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev

    def _read(self) -> Document:
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                return self._fault("is no file")  # to open a pipe would wait for its writer
            with self._path.open("rb") as file:
                raw = file.read(BYTES_MAX + 1)
        except OSError as error:
            return self._fault(f"cannot be read: {error.strerror or type(error).__name__}")
        if len(raw) > BYTES_MAX:
            return self._fault(f"has more than {BYTES_MAX} bytes")
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            return Document(f"{self._path}:{line}", "", fault="is not UTF-8")
        return Document(str(self._path), text, is_yaml=self._path.suffix != ".json")

    def _fault(self, why: str) -> Document:
        return Document(str(self._path), "", fault=why)
