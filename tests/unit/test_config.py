"""mesh.yaml: what is accepted means what it says, what is wrong is named with its remedy."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from xds_server.config import inert_keys, load_mesh, parse_mesh
from xds_server.errors import ConfigError
from xds_server.model.ids import Locality
from xds_server.model.topology import Address, Mode, WeightsVia

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


def problems(text: str):  # type: ignore[no-untyped-def]
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
    assert "services.search.providers.search-east.scale" in keys
    assert "history" in keys
    assert "templates.storefront.behaviour.cpu_ratio" in keys


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


def test_all_mistakes_are_told_at_once() -> None:
    text = SMALL.replace("timeout_s: 1.0", "timout_s: 1.0").replace("port: 9002", "port: x")
    assert {p.line for p in problems(text)} >= {8, 12}


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


def _paths(node: object, at: tuple = ()) -> list[tuple]:  # type: ignore[type-arg]
    items = (
        list(node.items())
        if isinstance(node, dict)
        else list(enumerate(node))
        if isinstance(node, list)
        else []
    )
    return [at, *(p for key, child in items for p in _paths(child, (*at, key)))]


PLAIN = YAML(typ="safe").load(REFERENCE)
PATHS = [p for p in _paths(PLAIN) if p]
junk = st.sampled_from(
    [None, True, -1, 0, 1e308, "", "x", "10s", [], {}, ["x"], {"x": 1}, float("nan"), "a.b", "é"]
)


@given(st.sampled_from(PATHS), st.sampled_from(["drop", "retype", "rename"]), junk)
@settings(max_examples=250, deadline=None)
def test_any_damage_gives_a_mesh_or_problems_that_can_be_acted_on(
    path: tuple[object, ...], how: str, value: object
) -> None:
    document = YAML(typ="safe").load(REFERENCE)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if how == "retype":
        parent[path[-1]] = value
    else:
        old = parent.pop(path[-1])
        if how == "rename" and isinstance(parent, dict):
            parent[f"{path[-1]}x"] = old
    from io import StringIO

    out = StringIO()
    YAML(typ="safe").dump(document, out)
    text = out.getvalue()
    for problem in _damage(text):
        assert 1 <= problem.line <= text.count("\n") + 1
        assert problem.message
        assert problem.remedy


def _damage(text: str):  # type: ignore[no-untyped-def]
    """Problems of a text, none if it is a mesh; an error without any is not allowed."""
    try:
        parse_mesh(text, "mesh.yaml")
    except ConfigError as error:
        return error.problems or [None]
    return ()


def test_every_key_is_documented() -> None:
    from pydantic import BaseModel

    from xds_server.config import schema

    page = (ROOT / "docs/configuration.md").read_text()
    sections = [
        s for s in vars(schema).values() if isinstance(s, type) and issubclass(s, BaseModel)
    ]
    keys = {name for s in sections for name in s.model_fields}
    assert sorted(k for k in keys if f"`{k}`" not in page and f"## {k}" not in page
                  and f"`{k}." not in page and f".{k}`" not in page) == []  # fmt: skip
