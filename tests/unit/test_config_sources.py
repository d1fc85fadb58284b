"""Where endpoints and prices come from, and what egress costs, as mesh.yaml says it."""

import pytest

from tests.unit.test_config import SMALL, problems
from xds_server.config import parse_mesh
from xds_server.model.topology import (
    Address,
    DiscoverySource,
    Egress,
    Price,
    PriceSource,
    PriceWindow,
    Provider,
)

ENDPOINTS = "endpoints: [{address: 127.0.0.1, port: 9002}]"


def written(text: str) -> str:
    """The small mesh, whose provider b is that."""
    return SMALL.replace(ENDPOINTS, text)


def provider(text: str) -> Provider:
    return parse_mesh(written(text), "mesh.yaml").providers["b"]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("adapter: file, path: ./a.json", {"path": "./a.json"}),
        ("adapter: file, path: a, refresh_s: 0.5", {"path": "a", "refresh_s": 0.5}),
        ("adapter: http, url: 'https://u:p@a.example/b?c=d'",
         {"url": "https://u:p@a.example/b?c=d"}),
        ("adapter: docker", {}),
        ("adapter: docker, url: unix:///run/docker.sock, network: mesh, refresh_s: 60",
         {"url": "unix:///run/docker.sock", "network": "mesh", "refresh_s": 60.0}),
        ("adapter: docker, url: 'tcp://[::1]:2375'", {"url": "tcp://[::1]:2375"}),
        ("adapter: registry", {}),
        ("adapter: dns, name: a.b, port: 1, nameserver: 127.0.0.1:53",
         {"name": "a.b", "port": 1, "refresh_min_s": 1.0, "nameserver": Address("127.0.0.1", 53)}),
    ],
)  # fmt: skip
def test_an_adapter_gets_its_own_options_alone(text: str, options: dict[str, object]) -> None:
    adapter = text.split()[1].rstrip(",")
    assert provider(f"discovery: {{{text}}}").discovery == DiscoverySource(adapter, options)


@pytest.mark.parametrize(
    ("text", "key", "message", "remedy"),
    [
        ("adapter: file", "discovery", "has no path", "./search.json"),
        ("adapter: http", "discovery", "has no url", "http://"),
        ("adapter: http, url: unix:///a", "discovery.url", "no unix://", "`https://`"),
        ("adapter: http, url: a.example", "discovery.url", "is not a URL", "http://"),
        ("adapter: http, url: 'http://'", "discovery.url", "is not a URL", "http://"),
        ("adapter: http, url: 'http://a:b/'", "discovery.url", "is not a URL", "http://"),
        ("adapter: http, url: 'http://a:0/'", "discovery.url", "is not a URL", "http://"),
        ("adapter: http, url: 'http://a /'", "discovery.url", "is not a URL", "http://"),
        ("adapter: docker, url: ftp://a/", "discovery.url", "no ftp://", "`unix://`"),
        ("adapter: docker, url: unix:a", "discovery.url", "is not a URL", "http://"),
        ("adapter: http, url: http://a/, path: b", "discovery.path", "means nothing", "`url`"),
        ("adapter: file, path: b, port: 1", "discovery.port", "means nothing", "`path`"),
        ("adapter: dns, name: a.b, port: 1, refresh_s: 1", "discovery.refresh_s", "nothing",
         "`refresh_min_s`"),
        ("adapter: registry, name: a.b", "discovery.name", "means nothing", "none"),
        ("adapter: file, path: b, refresh_s: 0", "discovery.refresh_s", "0.1", "30"),
        ("adapter: file, path: ''", "discovery.path", "is not a name", "word"),
        ("adapter: dockerd", "discovery.adapter", "'dockerd'", "`docker`"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_work_is_named(text: str, key: str, message: str, remedy: str) -> None:
    (problem,) = problems(written(f"discovery: {{{text}}}"))
    assert problem.key == f"services.search.providers.b.{key}"
    assert message in problem.message
    assert remedy in problem.remedy


PRICE = "per_million_requests_usd: 0.4, egress_per_gib_usd: 0.02"
NIGHT = 'when: "0 22 * * *", for: 8h, per_million_requests_usd: 0.1'


def test_a_schedule_changes_what_it_says_and_leaves_the_rest() -> None:
    found = provider(f"{ENDPOINTS}\n        price: {{{PRICE}, schedule: [{{{NIGHT}}}]}}")
    assert found.price == Price(0.4, 0.0, 0.02)
    window = PriceWindow("0 22 * * *", 28_800.0, Price(0.1, 0.0, 0.02))
    assert found.price_source == PriceSource("schedule", {"windows": (window,)})


def test_a_price_has_a_source() -> None:
    source = "source: {adapter: http, url: http://a.example/p, refresh_s: 30}"
    found = provider(f"{ENDPOINTS}\n        price: {{{PRICE}, {source}}}")
    options = {"url": "http://a.example/p", "refresh_s": 30.0}
    assert found.price_source == PriceSource("http", options)
    assert provider(ENDPOINTS).price_source is None


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (f"source: {{adapter: file, path: a}}, schedule: [{{{NIGHT}}}]", "", "both"),
        ("source: {adapter: file}", "source", "has no path"),
        ("source: {adapter: spot}", "source.adapter", "no pricing adapter"),
        ("source: {adapter: http, url: unix:///a}", "source.url", "no unix://"),
        ("source: {adapter: http, url: http://a/, path: b}", "source.path", "means nothing"),
        ("schedule: []", "schedule", "has no entry"),
        ("schedule: [{for: 8h, per_million_requests_usd: 1}]", "schedule.0.when", "is missing"),
        ('schedule: [{when: "0 1 * * *", per_million_requests_usd: 1}]', "schedule.0.for",
         "is missing"),
        ('schedule: [{when: "0 1 * * *", for: 8h}]', "schedule.0", "changes no price"),
        ('schedule: [{when: "0 25 * * *", for: 8h, per_million_requests_usd: 1}]',
         "schedule.0.when", "not a cron"),
        ('schedule: [{when: "* * * * * *", for: 8h, per_million_requests_usd: 1}]',
         "schedule.0.when", "not a cron"),
        ('schedule: [{when: "0 1 * * *", for: 90s, per_million_requests_usd: 1}]',
         "schedule.0.for", "hold for 90 s"),
        ('schedule: [{when: "0 1 * * *", for: 32d, per_million_requests_usd: 1}]',
         "schedule.0.for", "hold for"),
        ('schedule: [{when: "0 1 * * *", for: 8, per_million_requests_usd: 1}]',
         "schedule.0.for", "unit"),
        ('schedule: [{when: "0 1 * * *", fors: 8h, per_million_requests_usd: 1}]',
         "schedule.0.fors", "known key"),
        ('schedule: [{when: "0 1 * * *", lasts_s: 8, per_million_requests_usd: 1}]',
         "schedule.0.lasts_s", "known key"),
    ],
)  # fmt: skip
def test_a_price_that_cannot_be_is_named(text: str, key: str, message: str) -> None:
    found = problems(written(f"{ENDPOINTS}\n        price: {{{text}}}"))
    wanted = f"services.search.providers.b.price.{key}".rstrip(".")
    assert [p for p in found if p.key == wanted and message in p.message], [str(p) for p in found]


REGIONS = SMALL.replace("      a:\n", "      a:\n        locality: {region: east}\n")


def test_egress_is_a_matrix_by_region() -> None:
    cells = "[{from: east, to: mars, per_gib_usd: 0.1}, {from: '*', to: '*', per_gib_usd: 0}]"
    mesh = parse_mesh(f"{REGIONS}egress: {cells}\n", "mesh.yaml")
    assert mesh.egress == (Egress("east", "mars", 0.1), Egress("*", "*", 0.0))


@pytest.mark.parametrize(
    ("cells", "key", "message"),
    [
        ("[{from: esat, to: east, per_gib_usd: 1}]", "egress.0.from", "no provider is in region"),
        ("[{from: east, to: '*', per_gib_usd: 1}, {from: east, to: '*', per_gib_usd: 2}]",
         "egress.1", "same as entry 0"),
        ("[{from: east, per_gib_usd: 1}]", "egress.0.to", "is missing"),
        ("[{from: east, to: mars}]", "egress.0.per_gib_usd", "is missing"),
        ("[{origin: east, to: mars, per_gib_usd: 1}]", "egress.0.origin", "known key"),
        ("[{from: east, to: mars, per_gib_usd: -1}]", "egress.0.per_gib_usd", "at least 0"),
    ],
)  # fmt: skip
def test_an_egress_that_cannot_be_is_named(cells: str, key: str, message: str) -> None:
    found = problems(f"{REGIONS}egress: {cells}\n")
    assert [p for p in found if p.key == key and message in p.message], [str(p) for p in found]
