"""mesh.yaml: what is accepted means what it says, what is wrong is named with its remedy."""

from pathlib import Path

import pytest

from xds_server.config import inert_keys, load_mesh, parse_mesh
from xds_server.errors import ConfigError, Problem
from xds_server.model.ids import Locality
from xds_server.model.topology import Address, Mode, TlsSettings, WeightsVia

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "tests/mesh_reference.yaml").read_text()
SMALL = """\
mesh: m
services:
  search:
    providers:
      a:
        endpoints: [{address: 127.0.0.1, port: 9001}]
      b:
        endpoints: [{address: 127.0.0.1, port: 9002}]
templates:
  web:
    calls:
      search: {timeout_s: 1.0}
    profiles:
      busy:
        when: instance.rps > 10.0
      steady: {}
applications:
  shop: {template: web}
"""


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_mesh(text, "mesh.yaml")
    return caught.value.problems


def test_the_reference_configuration_is_accepted_whole() -> None:
    mesh = parse_mesh(REFERENCE, "mesh.yaml")
    assert mesh.mode is Mode.ENFORCE
    assert mesh.engine.weights_via is WeightsVia.AUTO
    east = mesh.providers["search-east"]
    assert east.locality == Locality("us-east-1", "a")
    assert east.endpoints == (Address("127.0.0.1", 9101), Address("127.0.0.1", 9102))
    assert east.price.per_million_requests_usd == 0.4
    assert east.capacity.concurrency == 8
    assert mesh.providers["search-managed"].standby
    west = mesh.providers["search-west"].discovery
    assert west is not None
    assert west.adapter == "dns"
    template = mesh.applications["checkout"].template
    assert [p.name for p in template.profiles] == [
        "initial_load",
        "maintenance",
        "peak_usage",
        "steady",
    ]
    assert template.profile("peak_usage").geography.require == ("us-east-1", "us-west-2")
    assert template.behaviour.error_ratio == (0.0, 0.02)
    assert mesh.history is not None
    assert mesh.history.keep_s == {"1s": 3600.0, "1m": 604800.0, "1h": 34560000.0}


def test_everything_but_the_essentials_has_a_default() -> None:
    mesh = parse_mesh(SMALL, "mesh.yaml")
    assert mesh.mode is Mode.OBSERVE
    assert mesh.engine.tick_s == 1.0
    assert mesh.providers["a"].baseline_weight == 1
    assert mesh.templates["web"].calls[0].listener == "127.0.0.1:15001"
    assert mesh.history is None


def test_inert_keys_are_those_of_the_mesh_that_nothing_acts_on() -> None:
    assert inert_keys(parse_mesh(SMALL, "mesh.yaml")) == ()
    keys = [line.partition(":")[0] for line in inert_keys(parse_mesh(REFERENCE, "mesh.yaml"))]
    assert "services.search.providers.search-east.scale.adapter" in keys
    assert not [key for key in keys if "slow_tick_s" in key or "flags" in key]
    assert "templates.storefront.behaviour.cpu_ratio" in keys


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("{default: true, saves: {search: 0.3}}", "saves"),
        ("{default: true, worth_usd_per_h: 2.0}", "worth_usd_per_h"),
        ("{default: false, saves: {search: 0.3}, worth_usd_per_h: 2.0}", "saves"),
    ],
)
def test_a_feature_that_lacks_what_switching_needs_is_named(flag: str, key: str) -> None:
    usual = "recommendations: {default: true, saves: {search: 0.3}, worth_usd_per_h: 0.8}"
    assert usual in REFERENCE
    text = REFERENCE.replace(usual, f"recommendations: {flag}")
    lines = inert_keys(parse_mesh(text, "mesh.yaml"))
    keys = [line.partition(":")[0] for line in lines]
    assert f"templates.storefront.flags.recommendations.{key}" in keys


def test_features_are_inert_where_weights_travel_in_routes_alone() -> None:
    assert "weights_via: auto" in REFERENCE
    text = REFERENCE.replace("weights_via: auto", "weights_via: rds")
    lines = inert_keys(parse_mesh(text, "mesh.yaml"))
    assert any("flags.recommendations.saves: engine.weights_via is rds" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "line", "key", "message", "remedy"),
    [
        (("timeout_s: 1.0", "timeout_ms: 1000"), 12, "calls.search.timeout_ms", "", "timeout_s"),
        (("timeout_s: 1.0", "timout_s: 1.0"), 12, "calls.search.timout_s", "", "timeout_s"),
        (("timeout_s: 1.0", "timeout_s: fast"), 12, "calls.search.timeout_s", "", ""),
        (("timeout_s: 1.0", "timeout_s: -1"), 12, "calls.search.timeout_s", "", ""),
        (("timeout_s: 1.0", "timeout_s: .nan"), 12, "calls.search.timeout_s", "", ""),
        (("search: {timeout", "serach: {timeout"), 12, "calls.serach", "", "search"),
        (("template: web", "template: wob"), 18, "applications.shop.template", "", "web"),
        (("instance.rps > 10.0", "instance.rsp > 10.0"), 15, "busy.when", "rsp", "instance.rps"),
        (("instance.rps > 10.0", "instance.rps >"), 15, "busy.when", "not CEL", ""),
        (("instance.rps > 10.0", 'flag("off")'), 15, "busy.when", "off", ""),
        (("      b:", "      a:"), 7, "", "", ""),
        (("port: 9002", "port: 99999"), 8, "providers.b.endpoints", "", ""),
        (("mesh: m", "mesh: m\nengine: {weights_ttl_s: 1.0}"), 2, "weights_ttl_s", "", "3"),
        (("mesh: m", "mesh: m\nmode: enforced"), 2, "mode", "", "enforce"),
        (("      steady: {}", "      steady: {when: 'true'}"), 16, "steady", "", "when"),
    ],
)
def test_a_mistake_is_named_with_line_key_and_remedy(
    change: tuple[str, str], line: int, key: str, message: str, remedy: str
) -> None:
    assert change[0] in SMALL
    found = problems(SMALL.replace(change[0], change[1], 1))
    first = next((p for p in found if key in p.key and p.line == line), None)
    assert first is not None, [str(p) for p in found]
    assert message in first.message
    assert remedy in first.remedy
    assert first.path == "mesh.yaml"
    assert first.remedy


def test_listeners_that_are_not_given_take_free_ports_from_their_place_on() -> None:
    calls = "calls:\n      a: {}\n      b: {listener: 127.0.0.1:15001}\n      c: {}"
    services = "".join(
        f"  {n}: {{providers: {{{n}1: {{endpoints: [{{address: 127.0.0.1, port: 1}}]}}}}}}\n"
        for n in "abc"
    )
    text = SMALL.replace("calls:\n      search: {timeout_s: 1.0}", calls)
    text = text.replace("services:\n", "services:\n" + services)
    ports = [c.listener for c in parse_mesh(text, "mesh.yaml").templates["web"].calls]
    assert ports == ["127.0.0.1:15002", "127.0.0.1:15001", "127.0.0.1:15003"]


@pytest.mark.parametrize(
    ("written", "performance", "cost"),
    [
        ("{}", 0.5, 0.5),
        ("{performance: 0.75}", 0.75, 0.25),
        ("{cost: 0.75}", 0.25, 0.75),
        ("{performance: 1, cost: 1}", 0.5, 0.5),
        ("{performance: 0.3, cost: 0.1}", 0.75, 0.25),
        ("{performance: 0, cost: 0.1}", 0.0, 1.0),
    ],
)
def test_profile_weights_sum_to_one(written: str, performance: float, cost: float) -> None:
    text = SMALL.replace("steady: {}", f"steady: {{weights: {written}}}")
    profile = parse_mesh(text, "mesh.yaml").templates["web"].profile("steady")
    assert profile.performance_weight == pytest.approx(performance)
    assert profile.cost_weight == pytest.approx(cost)


def test_a_standby_provider_has_no_baseline_weight() -> None:
    text = SMALL.replace("      b:\n", "      b:\n        standby: true\n")
    mesh = parse_mesh(text, "mesh.yaml")
    assert [p.baseline_weight for p in mesh.services["search"].providers] == [1, 0]


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.0.0.1:1", Address("127.0.0.1", 1)),
        ("'[::1]:18000'", Address("::1", 18000)),
        ("control.example.com:0", Address("control.example.com", 0)),
        ("unix:/run/xds.sock", Address("unix:/run/xds.sock")),
    ],
)
def test_the_server_listens_on_any_kind_of_address(written: str, address: Address) -> None:
    tls = "tls: {cert: c.pem, key: k.pem}"
    text = SMALL + f"server: {{xds: {{address: {written}, {tls}}}}}\n"
    server = parse_mesh(text, "mesh.yaml").server
    assert server.xds == address
    assert server.xds_tls == TlsSettings("c.pem", "k.pem")


def test_an_empty_section_is_a_section_of_defaults() -> None:
    assert parse_mesh(SMALL + "engine:\nserver:\n  xds:\n", "mesh.yaml") == parse_mesh(
        SMALL, "mesh.yaml"
    )


def test_aliases_and_merge_keys_are_followed() -> None:
    text = SMALL.replace("        endpoints: [{address: 127.0.0.1, port: 9001}]", "        &a\n"
                         "        endpoints: [{address: 127.0.0.1, port: 9001}]\n"
                         "        price: {per_million_requests_usd: 3}")  # fmt: skip
    text = text.replace("      b:\n", "      b:\n        <<: *a\n")
    b = parse_mesh(text, "mesh.yaml").providers["b"]
    assert b.price.per_million_requests_usd == 3.0
    assert b.endpoints == (Address("127.0.0.1", 9002),)


def test_all_mistakes_are_told_at_once() -> None:
    text = SMALL.replace("timeout_s: 1.0", "timout_s: 1.0").replace("port: 9002", "port: x")
    text = text.replace("template: web", "template: wob").replace("10.0", "")
    assert [p.line for p in problems(text)] == [8, 12, 15, 18]


@pytest.mark.parametrize(
    "change",
    [
        ("services:", "servicez:"),
        ("templates:", "templatez:"),
        ("    calls:", "    calks:"),
        ("        endpoints: [{address: 127.0.0.1, port: 9001}]", "        endpoints:"),
        ("endpoints: [{address: 127.0.0.1, port: 9001}]", "endpoint: []"),
        ("{address: 127.0.0.1, port: 9001}", "{address: 127.0.0.1}"),
        ("mesh: m", "mash: m"),
        ("template: web", "temp1ate: web"),
        ("timeout_s: 1.0", "timeout_s:"),
    ],
)
def test_one_mistake_is_one_problem(change: tuple[str, str]) -> None:
    text = SMALL.replace(change[0], change[1], 1)
    assert text != SMALL
    assert [str(p) for p in problems(text)] == [str(problems(text)[0])]


def test_an_alias_to_itself_and_a_bomb_of_aliases_are_refused() -> None:
    assert any("itself" in p.message for p in problems("mesh: &m [*m]\n"))
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 8):
        again = ", ".join([f"*a{i - 1}"] * 10)
        lines.append(f"a{i}: &a{i} [{again}]")
    assert "too large" in problems("\n".join(lines))[0].message


@pytest.mark.parametrize("text", ["{" * 5000, "mesh: " + "[" * 5000 + "]" * 5000])
def test_nesting_without_end_is_refused(text: str) -> None:
    assert "nested" in problems(text)[0].message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "mesh: [", "just words", "mesh: m\nmesh: n\n"])
def test_what_is_no_mesh_at_all_is_said_so(text: str) -> None:
    assert all(p.message and p.remedy for p in problems(text))


def test_files_that_cannot_be_read_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_mesh(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_mesh(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"mesh: caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_mesh(tmp_path / "latin.yaml")
