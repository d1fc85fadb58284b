"""Endpoints that are containers: the Docker Engine API, over a unix socket or TCP.

A container is an endpoint of the provider that its label ``xds.provider`` names. Its port is
the label ``xds.port``, else the only TCP port that it exposes; its address is the label
``xds.address``, else its own in ``network``, else in the only network that it is in. It has to
run, and its health check, if it has one, has to pass.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Final

import aiohttp
import structlog
from yarl import URL

from adapters.documents.parse import parse_ip
from xds_server.errors import AdapterError
from xds_server.model.ids import ProviderName
from xds_server.model.topology import Address
from xds_server.ports import EndpointUpdate

log = structlog.get_logger()

SOCKET: Final = "unix:///var/run/docker.sock"
LIST_BYTES_MAX: Final = 16 * 2**20
"""About 5,000 containers of one provider; a longer list is refused, not cut."""
LINE_BYTES_MAX: Final = 2**20
GATHER_S: Final = 0.1
"""Events within this time lead to one list."""
MATTERS: Final = frozenset(
    ("start", "die", "stop", "kill", "oom", "pause", "unpause", "destroy", "restart", "update",
     "rename", "health_status")
)  # fmt: skip
"""Events that can change what is listed; health checks make several others each time."""
_HEALTH_IN_STATUS: Final = {"(unhealthy)": "unhealthy", "(health: starting)": "starting"}


class DockerDiscovery:
    """Lists a provider's containers at each event about one of them, and every ``refresh_s``.

    The list is the truth, events only say when to look: one that is lost costs a delay of
    ``refresh_s``. The end of the event stream, or silence for ``timeout_s``, raises. A container
    that cannot be an endpoint is left out, and the log says why.
    """

    def __init__(
        self,
        provider: ProviderName,
        *,
        url: str = SOCKET,
        network: str | None = None,
        refresh_s: float = 30.0,
        timeout_s: float = 5.0,
    ) -> None:
        self._provider, self._network = provider, network
        self._refresh_s, self._timeout_s = refresh_s, timeout_s
        self._url = URL(url)
        pipe = self._url.scheme == "unix"
        self._shown = url if pipe else str(self._url.with_user(None))
        self._skipped: dict[str, str] = {}  # why, by container; those of the newest list

    async def watch(self) -> AsyncIterator[EndpointUpdate]:
        """Yield the set at first and whenever it changes; see ``ports.Discovery``."""
        last: tuple[Address, ...] | None = None
        self._skipped = {}
        async with self._session() as session:
            base = await self._base(session)
            events = await self._open(session, base / "events", self._filters())
            try:
                news = _News(events.content)
                while True:
                    found = await self._list(session, base)
                    if found != last:
                        last = found
                        yield EndpointUpdate(found)
                    await self._wait(news)
            finally:
                events.close()

    def _session(self) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector | None = None
        if self._url.scheme == "unix":
            connector = aiohttp.UnixConnector(self._url.path)
        return aiohttp.ClientSession(connector=connector)

    async def _base(self, session: aiohttp.ClientSession) -> URL:
        """Ask which version the engine speaks: every engine serves its own, and few others."""
        root = self._url
        if root.scheme in ("unix", "tcp"):
            authority = root.authority if root.scheme == "tcp" else "docker"
            root = URL(f"http://{authority}/")
        answer = await self._open(session, root / "_ping", {})
        answer.close()
        version = answer.headers.get("Api-Version", "")
        return root / f"v{version}" if version else root

    def _filters(self, **more: list[str]) -> dict[str, str]:
        wanted = {"label": [f"xds.provider={self._provider}"], **more}
        return {"filters": json.dumps(wanted)}

    async def _list(self, session: aiohttp.ClientSession, base: URL) -> tuple[Address, ...]:
        answer = await self._open(
            session, base / "containers/json", self._filters(status=["running"])
        )
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                async for chunk in answer.content.iter_chunked(65_536):
                    body += chunk
                    if len(body) > LIST_BYTES_MAX:
                        raise self._lost(f"lists more than {LIST_BYTES_MAX} bytes")
            containers = json.loads(body)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            raise self._lost(f"containers: {_said(error)}") from error
        finally:
            answer.close()
        if not isinstance(containers, list):
            raise self._lost("containers: is no list")
        return self._endpoints(containers)

    def _endpoints(self, containers: list[Any]) -> tuple[Address, ...]:
        found: set[Address] = set()
        skipped: dict[str, str] = {}
        for container in containers:
            try:
                if _counts(container):
                    found.add(_address(container, self._network))
            except ValueError as error:
                skipped[str(container.get("Id", ""))[:12]] = str(error)
            except (TypeError, AttributeError, KeyError) as error:
                raise self._lost("containers: is not what the API has") from error
        for container_id, why in skipped.items():
            if self._skipped.get(container_id) != why:
                log.warning(
                    "discovery.container_skipped",
                    provider=self._provider,
                    container=container_id,
                    reason=why,
                )
        self._skipped = skipped
        return tuple(sorted(found))

    async def _open(
        self, session: aiohttp.ClientSession, url: URL, query: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Return the answer when its headers have come; its body has no limit of time."""
        limit = aiohttp.ClientTimeout(total=None)
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await session.get(url, params=query, timeout=limit)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise self._lost(f"{url.name}: {_said(error)}") from error
        if answer.status != 200:
            answer.close()
            raise self._lost(f"{url.name}: answers {answer.status}")
        return answer

    async def _wait(self, news: "_News") -> None:
        """Return at the next event that matters, or after ``refresh_s``."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._refresh_s):
                    await news.wait()
                    await asyncio.sleep(GATHER_S)
            news.drop()
        except (aiohttp.ClientError, OSError, EOFError) as error:
            raise self._lost(f"events: {_said(error)}") from error

    def _lost(self, why: str) -> AdapterError:
        return AdapterError(f"docker at {self._shown}: {why}", retryable=True)


class _News:
    """The event stream, as one question: has anything happened that matters."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content
        self._rest = b""

    async def wait(self) -> None:
        """Return at the next one. Raises EOFError at the stream's end; may be cancelled."""
        while True:
            chunk = await self._content.readany()  # takes nothing if it is cancelled
            if not chunk:
                raise EOFError("the event stream has ended")
            if self._take(chunk):
                return

    def drop(self) -> None:
        """Forget what has come meanwhile: a list follows."""
        self._take(self._content.read_nowait())

    def _take(self, chunk: bytes) -> bool:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            raise EOFError("the event stream has a line without end")
        return any(_matters(line) for line in lines if line.strip())


def _matters(line: bytes) -> bool:
    try:
        action = json.loads(line)["Action"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return True  # whatever that was, a look does no harm
    return str(action).partition(":")[0] in MATTERS


def _counts(container: Mapping[str, Any]) -> bool:
    """Whether it runs and is not known to be ill."""
    health = (container.get("Health") or {}).get("Status", "")  # since API 1.52
    if not health:
        status = str(container.get("Status", ""))
        marks = (mark for ending, mark in _HEALTH_IN_STATUS.items() if status.endswith(ending))
        health = next(marks, "none")
    return container.get("State", "running") == "running" and health in ("none", "healthy")


def _address(container: Mapping[str, Any], network: str | None) -> Address:
    """Return where it serves. Raises ValueError with the reason if nobody can say."""
    labels: Mapping[str, str] = container["Labels"]
    return Address(_host(container, labels, network), _port(container, labels))


def _host(container: Mapping[str, Any], labels: Mapping[str, str], network: str | None) -> str:
    said = labels.get("xds.address", "")
    if not said:
        networks: Mapping[str, Any] = (container.get("NetworkSettings") or {}).get("Networks") or {}
        if network is not None and network not in networks:
            raise ValueError(f"is not in the network {network!r}")
        if network is None and len(networks) != 1:
            raise ValueError(f"is in {len(networks)} networks; say which by `network`")
        mine = networks[network] if network is not None else next(iter(networks.values()))
        said = mine.get("IPAddress") or mine.get("GlobalIPv6Address") or ""
        if not said:
            raise ValueError("has no address of its own; give it the label xds.address")
    try:
        return parse_ip(said)
    except ValueError:
        raise ValueError(f"{said[:60]!r} is no IP address") from None


def _port(container: Mapping[str, Any], labels: Mapping[str, str]) -> int:
    said = labels.get("xds.port", "")
    if said:
        if not (said.isascii() and said.isdecimal() and len(said) < 6 and 0 < int(said) < 65_536):
            raise ValueError(f"the label xds.port is {said[:60]!r}, which is no port")
        return int(said)
    ports = container.get("Ports") or []
    exposed = {int(p["PrivatePort"]) for p in ports if p.get("Type", "tcp") == "tcp"}
    if len(exposed) != 1:
        raise ValueError(f"exposes {len(exposed)} TCP ports; give it the label xds.port")
    return exposed.pop()


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
