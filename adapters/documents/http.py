"""A document that an HTTP server has: asked for again and again, sent when it has changed."""

import asyncio
from collections.abc import AsyncGenerator

import aiohttp
from yarl import URL

from adapters.documents.feed import BYTES_MAX, Document, Sleep
from adapters.fetch import Server


class HttpFeed:
    """GETs a URL every ``refresh_s``, with the ETag that the server gave last.

    Any answer but 200, or 304 to an ETag, raises, as do silence for ``timeout_s`` and a body
    that is longer than ``BYTES_MAX``.
    """

    def __init__(
        self,
        url: str,
        *,
        refresh_s: float = 30.0,
        timeout_s: float = 5.0,
        sleep_s: Sleep = asyncio.sleep,
    ) -> None:
        self._server = Server(URL(url), timeout_s=timeout_s, bytes_max=BYTES_MAX)
        self._refresh_s, self._sleep_s = refresh_s, sleep_s

    async def looks(self) -> AsyncGenerator[Document | None, None]:
        """See ``Feed``."""
        tag, last = "", b""
        async with self._server.session() as session:
            while True:
                body, new_tag = await self._get(session, tag)
                if body is None or (body == last and body):
                    yield None
                else:
                    last = body
                    yield self._document(body)
                tag = new_tag
                await self._sleep_s(self._refresh_s)

    async def _get(self, session: aiohttp.ClientSession, tag: str) -> tuple[bytes | None, str]:
        """Return the body, or None if it is what ``tag`` names; and its tag."""
        headers = {"If-None-Match": tag} if tag else {}
        async with self._server.ask(session, headers=headers) as answer:
            if answer.status == 304 and tag:
                return None, answer.headers.get("ETag", tag)
            if answer.status != 200:
                raise self._server.lost(f"answers {answer.status}")
            return await self._server.body(answer), answer.headers.get("ETag", "")

    def _document(self, body: bytes) -> Document:
        try:
            return Document(self._server.shown, body.decode("utf-8-sig"))
        except UnicodeDecodeError:
            return Document(self._server.shown, "", fault="is not UTF-8")
