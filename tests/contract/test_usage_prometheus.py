"""The Metering contract on Prometheus's HTTP API, and what is wrong with an answer."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from adapters.testing.metering import AskedMeteringContract
from adapters.usage import PrometheusMetering
from adapters.usage.prometheus import BODY_BYTES_MAX
from tests.contract.exporter import QUERIES, USAGES, Exporter, PrometheusApi, failure, vector
from tests.contract.servers import serving
from xds_server.errors import AdapterError
from xds_server.model.usage import Usage

NODE = {"metric": {"node": "n1"}, "value": [1.7e9, "0.5"]}


@dataclass
class ApiWorld:
    url: str
    exporter: Exporter
    api: PrometheusApi
    usages: Mapping[str, Usage] = field(default_factory=lambda: dict(USAGES))

    def __post_init__(self) -> None:
        self.metering = self.asking(QUERIES)

    def asking(self, queries: Mapping[str, str], **options: object) -> PrometheusMetering:
        said = {"of_providers": False, "every_s": 0.01, "timeout_s": 1.0, **options}
        return PrometheusMetering(self.url, queries, "node", **said)  # type: ignore[arg-type]

    def is_true(self, found: Usage) -> bool:
        return found == self.usages[found.of]

    async def set_present(self, *names: str) -> None:
        self.exporter.present = set(names)

    async def set_answering(self, answering: bool) -> None:
        self.api.answering = answering


@pytest.fixture
async def world() -> AsyncIterator[ApiWorld]:
    exporter = Exporter()
    api = PrometheusApi(exporter)
    app = web.Application()
    app.router.add_post("/prom/api/v1/query", api.query)
    async with serving(app, None) as port:
        url = f"http://user:secret@127.0.0.1:{port}/prom/?token=secret"
        yield ApiWorld(url, exporter, api)


class TestPrometheusApi(AskedMeteringContract):
    @pytest.fixture
    def world(self, world: ApiWorld) -> ApiWorld:
        return world


async def failing(world: ApiWorld, answer: web.Response) -> AdapterError:
    world.api.instead = lambda _: answer
    with pytest.raises(AdapterError) as raised:
        await anext(world.asking({"cpu_ratio": "up"}).watch())
    assert "secret" not in str(raised.value)
    assert len(str(raised.value)) < 600
    return raised.value


async def test_a_query_is_asked_with_a_time_limit_and_what_its_url_says(world: ApiWorld) -> None:
    await anext(world.metering.watch())
    path, authorization, form = world.api.asked[0]
    assert path == "/prom/api/v1/query?token=secret"
    assert authorization.startswith("Basic ")
    assert form == {"query": QUERIES["cpu_ratio"], "timeout": "1s"}


async def test_what_is_not_asked_for_is_unknown(world: ApiWorld) -> None:
    (one, _) = (await anext(world.asking({"cpu_ratio": QUERIES["cpu_ratio"]}).watch())).usages
    assert one.cpu_ratio == 0.25
    assert one.memory_bytes != one.memory_bytes  # NaN


async def test_the_label_may_name_providers(world: ApiWorld) -> None:
    (one, _) = (await anext(world.asking(QUERIES, of_providers=True).watch())).usages
    assert one.is_provider


@pytest.mark.parametrize(
    ("answer", "said", "retryable"),
    [
        (lambda: failure(400, "bad_data", "1:4: parse error"), "refuses cpu_query: 1:4", False),
        (lambda: failure(422, "execution", "many-to-many"), "answers 422: many-to-many", True),
        (lambda: failure(503, "timeout", "query timed out"), "answers 503: query timed", True),
        (lambda: web.Response(status=401, text="Unauthorized"), "user and password", True),
        (lambda: web.Response(status=404, text="404"), "url of the server alone", True),
        (lambda: web.Response(status=400, text="<html>"), "answers 400", True),
        (lambda: web.Response(text="<html>"), "answers 200", True),
        (lambda: web.json_response([]), "answers 200", True),
        (lambda: web.json_response({"status": "success"}), "like a Prometheus", True),
        (lambda: web.json_response({"status": "success", "data": {"resultType": "scalar"}}),
         "cpu_query gives a scalar; write one that gives a vector with the label `node`", False),
        (lambda: vector(NODE, NODE), "more than one series for 'n1'; write `sum by (node)", True),
        (lambda: vector(7), "like a Prometheus", True),
        (lambda: vector({"metric": {"node": "n1"}}), "like a Prometheus", True),
        (lambda: vector({"metric": {"node": "n1"}, "value": [1, "x"]}), "a Prometheus", True),
        (lambda: vector({"metric": {"node": "n1"}, "value": [1, 10**400]}), "a Prometheus", True),
        (lambda: web.Response(body=b"[" * 100_000), "answers 200", True),
        (lambda: web.Response(body=b" " * (BODY_BYTES_MAX + 1)), "sum by (node)", True),
        (lambda: web.Response(status=308, headers={"Location": "/"}), "as its url", True),
        (lambda: web.Response(body=b"x", headers={"Content-Encoding": "gzip"}), "compress", True),
    ],
)  # fmt: skip
async def test_an_answer_with_a_fault_is_refused_and_says_what_helps(
    world: ApiWorld, answer, said: str, retryable: bool
) -> None:
    error = await failing(world, answer())
    assert said in str(error)
    assert error.retryable is retryable


async def test_values_that_are_no_number_and_series_of_nobody_are_left_out(
    world: ApiWorld,
) -> None:
    series = [
        {"metric": {"node": name}, "value": [1.7e9, value]}
        for name, value in (("n1", "NaN"), ("n2", "+Inf"), ("n3", "0.5"), ("", "1"))
    ]
    nobody = {"metric": {"__name__": "up"}, "value": [1.7e9, "1"]}
    world.api.instead = lambda _: vector(*series, nobody)
    with capture_logs() as logs:
        (one,) = (await anext(world.asking({"cpu_ratio": "up"}).watch())).usages
    assert (one.of, one.cpu_ratio) == ("n3", 0.5)
    (log,) = logs
    assert (log["event"], log["label"], log["series"]) == ("usage.unlabelled", "node", 2)


async def test_silence_and_a_closed_port_raise(world: ApiWorld) -> None:
    hang = asyncio.Event()

    async def query(_: web.Request) -> web.Response:
        await hang.wait()
        return web.Response()

    app = web.Application()
    app.router.add_post("/api/v1/query", query)
    async with serving(app, None) as port:
        world.url = f"http://127.0.0.1:{port}"
        with pytest.raises(AdapterError, match="does not answer within"):
            await anext(world.asking({"cpu_ratio": "up"}, timeout_s=0.05).watch())
        hang.set()
    with pytest.raises(AdapterError, match=f"http://127.0.0.1:{port}: ") as raised:
        await anext(world.asking({"cpu_ratio": "up"}).watch())
    assert raised.value.retryable


SCALARS = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8)
KEYS = st.sampled_from(
    ["status", "data", "resultType", "result", "metric", "value", "node", "error"]
)
JSON = st.recursive(
    SCALARS | st.sampled_from(["success", "vector", "NaN", "1e400"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
)
ANSWERS = JSON | st.fixed_dictionaries(
    {
        "status": st.just("success"),
        "data": st.fixed_dictionaries({"resultType": st.just("vector"), "result": JSON}),
    }
)


@given(
    st.sampled_from([200, 400, 500]), ANSWERS.map(lambda a: json.dumps(a).encode()) | st.binary()
)
def test_any_answer_is_finite_values_or_an_error_that_says_why(status: int, body: bytes) -> None:
    asking = PrometheusMetering(
        "http://a", {"cpu_ratio": "up"}, "node", of_providers=False, every_s=1
    )
    values: dict[str, float] = {}
    with suppress(AdapterError):
        values = asking._read("cpu_ratio", status, body)
    assert all(math.isfinite(value) for value in values.values())


def test_an_answer_of_the_greatest_length_holds_more_series_than_there_can_be_streams() -> None:
    series = {"metric": {"node": "n" * 60}, "value": [1.7e9, "0.123456789012345"]}
    assert BODY_BYTES_MAX / len(json.dumps(series)) > 50_000
