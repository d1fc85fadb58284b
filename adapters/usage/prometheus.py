"""What Prometheus knows of instances or providers: instant queries over its HTTP API.

https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import aiohttp
import structlog
from yarl import URL

from adapters.fetch import Server
from xds_server.model.usage import Usage
from xds_server.ports import UsageUpdate

log = structlog.get_logger()

BODY_BYTES_MAX: Final = 8 * 2**20
"""About 80,000 series with one label; a longer answer is refused, not cut."""
SHOWN: Final = 200
_MOVED: Final = frozenset((301, 302, 303, 307, 308))
_REMEDIES: Final = {
    401: "write user and password in its url",
    403: "write user and password in its url",
    404: "write the url of the server alone, as before `/api/v1/query`",
    405: "write the url of the server alone, as before `/api/v1/query`",
}


class PrometheusMetering:
    """Asks each query every ``every_s``; one label of the series says whose they are.

    Loss policy: an answer with a fault is refused whole, with all the others of that look, and
    raises. A fault that only another configuration can mend (a query that Prometheus cannot
    parse) is final. Series without the label, and values that are no number, are left out.
    """

    def __init__(
        self,
        url: str,
        queries: Mapping[str, str],
        label: str,
        *,
        of_providers: bool,
        every_s: float,
        timeout_s: float = 5.0,
        sleep_s: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``queries`` are PromQL, by the field of ``Usage`` that they give."""
        self._server = Server(
            URL(url), path="/api/v1/query", timeout_s=timeout_s, bytes_max=BODY_BYTES_MAX
        )
        self._lost = self._server.lost
        self._queries, self._label, self._of_providers = dict(queries), label, of_providers
        self._every_s, self._timeout_s, self._sleep_s = every_s, timeout_s, sleep_s

    async def watch(self) -> AsyncIterator[UsageUpdate]:
        """Yield what is in use now, and again at each look; see ``ports.Metering``."""
        async with self._server.session() as session:
            while True:
                yield await self._look(session)
                await self._sleep_s(self._every_s)

    async def _look(self, session: aiohttp.ClientSession) -> UsageUpdate:
        found: dict[str, dict[str, float]] = {}
        for name, query in self._queries.items():
            status, body = await self._ask(session, query)
            # In a thread: an answer of the greatest length takes a while.
            values = await asyncio.to_thread(self._read, name, status, body)
            for of, value in values.items():
                found.setdefault(of, {})[name] = value
        return UsageUpdate(tuple(Usage(of, self._of_providers, **v) for of, v in found.items()))

    async def _ask(self, session: aiohttp.ClientSession, query: str) -> tuple[int, bytes]:
        # By POST, since a query may be longer than a URL may be.
        form = {"query": query, "timeout": f"{self._timeout_s:g}s"}
        async with self._server.ask(session, form=form) as answer:
            if answer.status in _MOVED:
                remedy = "write where it is as its url"
                raise self._lost(f"answers {answer.status}, it is elsewhere; {remedy}")
            remedy = f"write a query that keeps one label: `sum by ({self._label}) (...)`"
            return answer.status, await self._server.body(answer, remedy)

    def _read(self, name: str, status: int, body: bytes) -> dict[str, float]:
        """Return the values of one answer by label; raises for what is no vector."""
        answer = self._parsed(body)
        if status == 400 and answer.get("errorType") == "bad_data":
            said = str(answer.get("error", ""))[:SHOWN]
            raise self._lost(f"refuses {_key(name)}: {said}; mend the query", retryable=False)
        if status != 200 or answer.get("status") != "success":
            said = str(answer.get("error", ""))[:SHOWN]
            remedy = _REMEDIES.get(status, "")
            words = [f"answers {status}", *([said] if said else [])]
            raise self._lost(": ".join(words) + (f"; {remedy}" if remedy else ""))
        data = answer.get("data")
        kind = data.get("resultType") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(kind, str):
            raise self._lost("does not answer like a Prometheus; look at its url")
        if kind != "vector":
            remedy = f"write one that gives a vector with the label `{self._label}`"
            raise self._lost(f"{_key(name)} gives a {kind}; {remedy}", retryable=False)
        return self._values(name, data.get("result"))

    def _values(self, name: str, result: object) -> dict[str, float]:
        values: dict[str, float] = {}
        unlabelled = 0
        for series in result if isinstance(result, list) else ():
            try:
                of, value = series["metric"].get(self._label), float(series["value"][1])
            except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
                raise self._lost("does not answer like a Prometheus; look at its url") from error
            if not isinstance(of, str) or not of:
                unlabelled += 1
            elif of in values:
                remedy = f"write `sum by ({self._label}) (...)` or `max by ...`"
                raise self._lost(
                    f"{_key(name)} gives more than one series for {of[:SHOWN]!r}; {remedy}"
                )
            elif math.isfinite(value):
                values[of] = value
        if unlabelled:
            log.warning(
                "usage.unlabelled", source=self._server.shown, query=_key(name), label=self._label,
                series=unlabelled,
            )  # fmt: skip
        return values

    def _parsed(self, body: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        return answer if isinstance(answer, dict) else {}


def _key(name: str) -> str:
    """Return what the query is called in mesh.yaml."""
    return f"{name.partition('_')[0]}_query"
