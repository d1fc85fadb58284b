"""A document that an HTTP server has: asked for again and again, sent when it has changed."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

import aiohttp
from yarl import URL

from adapters.documents.feed import BYTES_MAX, Document, Sleep
from xds_server.errors import AdapterError

REDIRECTS_MAX: Final = 3
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
_CHUNK_BYTES: Final = 65_536


class HttpFeed:
    """GETs a URL every ``refresh_s``, with the ETag that the server gave last.

    Any answer but 200, or 304 to an ETag, raises, as do silence for ``timeout_s`` and a body
    that is longer than ``BYTES_MAX``. Bodies are asked for and taken without compression, so
    that their length is what they cost.
    """

    def __init__(
        self,
        url: str,
        *,
        refresh_s: float = 30.0,
        timeout_s: float = 5.0,
        sleep_s: Sleep = asyncio.sleep,
    ) -> None:
        self._url = URL(url)
        # User, password and query are often secrets.
        self._shown = str(self._url.with_user(None).with_query(None))
        self._refresh_s, self._timeout_s, self._sleep_s = refresh_s, timeout_s, sleep_s

    async def looks(self) -> AsyncGenerator[Document | None, None]:
        """See ``Feed``."""
        tag, last = "", b""
        limit = aiohttp.ClientTimeout(total=self._timeout_s)
        async with aiohttp.ClientSession(
            headers=_HEADERS, timeout=limit, auto_decompress=False
        ) as session:
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
        try:
            async with session.get(
                self._url, headers=headers, max_redirects=REDIRECTS_MAX
            ) as answer:
                if answer.status == 304 and tag:
                    return None, answer.headers.get("ETag", tag)
                if answer.status != 200:
                    raise self._lost(f"answers {answer.status}")
                if answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise self._lost("answers with compression, which was not asked for")
                return await self._body(answer), answer.headers.get("ETag", "")
        except TimeoutError as error:
            raise self._lost(f"does not answer within {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Some of its messages have the whole URL; the class says enough without it.
            known = isinstance(error, OSError) and error.strerror
            raise self._lost(known or type(error).__name__) from error

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > BYTES_MAX:
                raise self._lost(f"answers with more than {BYTES_MAX} bytes")
        return bytes(body)

    def _document(self, body: bytes) -> Document:
        try:
            return Document(self._shown, body.decode("utf-8-sig"))
        except UnicodeDecodeError:
            return Document(self._shown, "", fault="is not UTF-8")

    def _lost(self, why: str) -> AdapterError:
        return AdapterError(f"{self._shown}: {why}", retryable=True)
