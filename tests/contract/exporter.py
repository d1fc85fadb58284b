"""Instances that Prometheus knows: what they use, and a stand-in for its HTTP API.

The stand-in answers as Prometheus 2.42 does for the three queries of ``QUERIES``; that it does is
checked by hand, ``pytest tests/contract/check_prometheus.py``, which runs the same contract against
the real one.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from tests.contract.servers import Counting
from xds_server.model.usage import Usage

USAGES = {
    "checkout-1": Usage("checkout-1", False, 0.25, 300e6, 0.5),
    "checkout-2": Usage("checkout-2", False, 1.5, 0.0, 0.0),
}
QUERIES = {
    "cpu_ratio": "sum by (node) (demo_cpu_ratio)",
    "memory_bytes": "sum by (node) (demo_memory_bytes)",
    "utilisation_ratio": "sum by (node) (demo_utilisation_ratio)",
}


class Exporter:
    """What the instances say of themselves, in Prometheus's text format."""

    def __init__(self) -> None:
        self.present = set(USAGES)

    @property
    def rows(self) -> list[tuple[str, str, float]]:
        """Metric, node and value."""
        return [
            (f"demo_{field}", name, getattr(usage, field))
            for name, usage in USAGES.items()
            if name in self.present
            for field in QUERIES
        ]

    async def metrics(self, _: web.Request) -> web.Response:
        lines = [f'{metric}{{node="{node}"}} {value!r}\n' for metric, node, value in self.rows]
        return web.Response(text="".join(lines), content_type="text/plain")


class PrometheusApi(Counting):
    """``/api/v1/query`` over an exporter that was scraped just now."""

    def __init__(self, exporter: Exporter) -> None:
        super().__init__()
        self._exporter = exporter
        self.answering = True
        self.instead: Callable[[Mapping[str, str]], web.Response] | None = None

    async def query(self, request: web.Request) -> web.Response:
        form = dict(await request.post())
        self.note((request.path_qs, request.headers.get("Authorization", ""), form))
        if not self.answering:
            return web.Response(status=503, text="Service Unavailable")
        if self.instead is not None:
            return self.instead(form)
        metric = next(f"demo_{field}" for field, query in QUERIES.items() if query == form["query"])
        return vector(
            *[
                {"metric": {"node": node}, "value": [1.7e9, _written(value)]}
                for name, node, value in self._exporter.rows
                if name == metric
            ]
        )


def vector(*series: Any) -> web.Response:
    """Return a successful answer with these."""
    data = {"resultType": "vector", "result": list(series)}
    return web.json_response({"status": "success", "data": data})


def failure(status: int, kind: str, error: str) -> web.Response:
    """Return an answer that says what was wrong."""
    body = {"status": "error", "errorType": kind, "error": error}
    return web.Response(status=status, text=json.dumps(body), content_type="application/json")


def _written(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) and value == int(value) else repr(value)
