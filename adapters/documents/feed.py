"""What a feed of documents yields, and how a fault in one is said once."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from xds_server.errors import AdapterError

BYTES_MAX: Final = 1_048_576
"""A longer document is refused, not cut."""

Sleep: TypeAlias = Callable[[float], Awaitable[None]]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Document:
    """One version of a document. ``fault``: why there is no text, like a file that is gone."""

    where: str  # a path or a URL, as errors name it; without secrets
    text: str
    is_yaml: bool = False  # else JSON
    fault: str = ""


class Feed(Protocol):
    """One document that changes."""

    def looks(self) -> AsyncGenerator[Document | None, None]:
        """Yield the document at first, then one look after the other: it, if it is new, or None.

        Raises AdapterError when nobody answers. States between two looks are skipped.
        """
        ...


class Reader(Generic[_T]):
    """Reads documents with ``parse``, which raises AdapterError for what is wrong with one.

    The same fault is raised once: the caller would only back off from a document that cannot
    get better before it changes, and would then be late when it does.
    """

    def __init__(self, parse: Callable[[Document], _T]) -> None:
        self._parse = parse
        self._refused: int | None = None

    async def read(self, document: Document) -> _T | None:
        """Return what it says; None if its fault has been raised already."""
        try:
            # In a thread: YAML of the greatest length takes half a second.
            value = await asyncio.to_thread(self._read, document)
        except AdapterError:
            if hash(document) == self._refused:
                return None
            self._refused = hash(document)
            raise
        self._refused = None
        return value

    def _read(self, document: Document) -> _T:
        if document.fault:
            raise AdapterError(f"{document.where}: {document.fault}", retryable=True)
        return self._parse(document)
