"""An HTTP server that is asked for JSON again and again, within bounds of time and length."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from yarl import URL

from xds_server.errors import AdapterError

REDIRECTS_MAX: Final = 3
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
_CHUNK_BYTES: Final = 65_536


class Server:
    """Whatever it does but answer in ``timeout_s`` with ``bytes_max`` raises AdapterError.

    Bodies are asked for and taken without compression, so that their length is what they cost.
    What is raised names the URL without user, password and query, which are often secrets.
    """

    def __init__(self, url: URL, *, path: str = "", timeout_s: float, bytes_max: int) -> None:
        """``path`` is put behind the URL's own, and errors do not name it."""
        self._url = url
        if path:
            self._url = url.with_path(url.path.rstrip("/") + path).with_query(url.query)
        self.shown = str(url.with_user(None).with_query(None))
        self._timeout_s, self._bytes_max = timeout_s, bytes_max

    def session(self) -> aiohttp.ClientSession:
        """Return what ``ask`` needs; the caller closes it."""
        limit = aiohttp.ClientTimeout(total=self._timeout_s)
        return aiohttp.ClientSession(headers=_HEADERS, timeout=limit, auto_decompress=False)

    @asynccontextmanager
    async def ask(
        self,
        session: aiohttp.ClientSession,
        *,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the answer, whose body may be read inside; by POST with a form, else by GET.

        Of redirects ``REDIRECTS_MAX`` are followed, with a form none, which would lose it.
        """
        try:
            async with session.request(
                "GET" if form is None else "POST",
                self._url,
                data=form,
                headers=headers,
                allow_redirects=form is None,
                max_redirects=REDIRECTS_MAX,
            ) as answer:
                yield answer
        except TimeoutError as error:
            raise self.lost(f"does not answer within {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Some of its messages have the whole URL; the class says enough without it.
            known = isinstance(error, OSError) and error.strerror
            raise self.lost(known or type(error).__name__) from error

    async def body(self, answer: aiohttp.ClientResponse, remedy: str = "") -> bytes:
        """Read a body whole; ``remedy`` is against one that is too long."""
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self.lost("answers with compression, which was not asked for")
        body = bytearray()
        async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._bytes_max:
                why = f"answers with more than {self._bytes_max} bytes"
                raise self.lost(f"{why}; {remedy}" if remedy else why)
        return bytes(body)

    def lost(self, why: str, *, retryable: bool = True) -> AdapterError:
        """Return the error that says why it is no use."""
        return AdapterError(f"{self.shown}: {why}", retryable=retryable)
