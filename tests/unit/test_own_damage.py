"""Whatever stands in a file of resources: they are read, or problems say what to mend."""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from xds_server.config import load_mesh
from xds_server.errors import ConfigError, Problem
from xds_server.model.topology import Mesh

MESH = (Path(__file__).parents[2] / "envoy-configs/mesh-own.yaml").read_text()
EXAMPLE = Path(__file__).parents[2] / "envoy-configs/own/ingress.yaml"
TEXT = EXAMPLE.read_text()
PLAIN = YAML(typ="safe", pure=True).load(TEXT)


def paths(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if not isinstance(value, dict | list):
        return [at]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [at, *(p for key, inner in items for p in paths(inner, (*at, key)))]


PATHS = [p for p in paths(PLAIN) if p]
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1s", "type.googleapis.com/google.protobuf.Any", "V3", "*", "\ud800"])
)
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.sampled_from(["@type", "value", "name"]), inner)
    ),
    max_leaves=5,
)


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    document = copy.deepcopy(PLAIN)
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=3)):
        holder: Any = document
        for key in path[:-1]:
            try:
                holder = holder[key]
            except (KeyError, IndexError, TypeError):
                holder = None
        if isinstance(holder, list):
            holder[:] = draw(st.lists(anything, max_size=3))
        elif isinstance(holder, dict) and path[-1] in holder:
            old = holder.pop(path[-1])
            how = draw(st.sampled_from(["drop", "rename", "retype"]))
            if how == "rename":
                holder[draw(st.text(max_size=8))] = old
            elif how == "retype":
                holder[path[-1]] = draw(anything)
    return document


def check(text: str, name: str = "own.yaml") -> None:
    """One folder per example: a fixture's would be shared by all of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mesh.yaml"
        path.write_text(MESH.replace("./own", name))
        (Path(folder) / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        for problem in problems_of(path):
            assert problem.path.endswith(name)
            assert problem.line <= max(1, len(text.splitlines()))
            assert problem.message
            assert problem.remedy
            assert str(problem).isprintable()


def problems_of(path: Path) -> tuple[Problem, ...]:
    """None for a mesh; an error without problems is no answer."""
    try:
        mesh = load_mesh(path)
    except ConfigError as error:
        return error.problems or (Problem("", 0, "", "", ""),)
    assert isinstance(mesh, Mesh)
    return ()


@given(damaged())
@settings(max_examples=150, deadline=None)
def test_damaged_values_give_resources_or_problems_with_line_and_remedy(document: Any) -> None:
    check(json.dumps(document), "own.json")


@given(st.integers(0, len(TEXT)), st.integers(0, 12), st.text(max_size=6) | st.sampled_from(
    ["\t", "- ", ": ", "[", "}", "*a", "&a ", "!x ", "? ", "<<: ", "|", "\n---\n"]
))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_scribbled_text_gives_resources_or_problems_with_line_and_remedy(
    start: int, length: int, piece: str
) -> None:
    check(TEXT[:start] + piece + TEXT[start + length :])


@given(anything)
@settings(max_examples=60, deadline=None)
def test_anything_gives_resources_or_problems_with_line_and_remedy(value: Any) -> None:
    check(json.dumps(value), "own.json")


def test_what_is_nested_without_end_is_a_problem() -> None:
    deep = '{"a":' * 3000 + "1" + "}" * 3000
    for kind in ("config.route.v3.RouteConfiguration", "config.listener.v3.Listener"):
        url = f"type.googleapis.com/envoy.{kind}"
        check(f'{{"@type": "{url}", "name": "x", "metadata": {deep}}}', "own.json")
    nested = '{"@type": "type.googleapis.com/google.protobuf.Any", "value": ' * 80 + "{}" + "}" * 80
    check(
        '{"@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",'
        f'"name": "x", "typed_config": {nested}}}',
        "own.json",
    )
