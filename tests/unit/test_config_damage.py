"""Whatever is done to a good file: a mesh, or problems that can be acted on; nothing else."""

import io
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tests.unit.test_config import REFERENCE
from xds_server.config import parse_mesh
from xds_server.errors import ConfigError, Problem
from xds_server.model.topology import Mesh

Path = tuple[str | int, ...]


def paths(node: Any, at: Path = ()) -> list[Path]:
    """All nodes below the root."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    children = [(child, (*at, key)) for key, child in items]
    below = [p for c, here in children if isinstance(c, dict | list) for p in paths(c, here)]
    return [here for _, here in children] + below


def plain() -> Any:
    return YAML(typ="safe", pure=True).load(REFERENCE)


PATHS = paths(plain())
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1s", "unix:/x", "flag(1)", "127.0.0.1:1", "[::1]:0", "_a._tcp.b", "a.b"])
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """The reference with a few nodes dropped, renamed or replaced by something else."""
    document = plain()
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=3)):
        holder = document
        for key in path[:-1]:
            reached = isinstance(holder, dict) and key in holder
            reached |= isinstance(holder, list) and isinstance(key, int) and key < len(holder)
            holder = holder[key] if reached else None
        last = path[-1]
        if isinstance(holder, list):
            holder[:] = draw(st.lists(anything, max_size=3))
        elif isinstance(holder, dict) and last in holder:
            how = draw(st.sampled_from(["drop", "rename", "retype"]))
            old = holder[last] if how == "retype" else holder.pop(last)
            if how == "rename":
                holder[draw(st.text(max_size=8) | st.just(f"{last}_ms"))] = old
            elif how == "retype":
                holder[last] = draw(anything)
    out = io.StringIO()
    YAML(typ="safe", pure=True).dump(document, out)
    return out.getvalue()


@st.composite
def scribbled(draw: st.DrawFn) -> str:
    """The reference with a piece of its text replaced by other text."""
    start = draw(st.integers(0, len(REFERENCE)))
    length = draw(st.integers(0, 12))
    yaml_words = st.sampled_from(
        ["\t", "- ", ": ", "[", "}", "*a", "&a ", "!x ", "? ", "<<: ", "|"]
    )
    piece = draw(st.text(max_size=6) | yaml_words)
    return REFERENCE[:start] + piece + REFERENCE[start + length :]


def check(text: str) -> None:
    for problem in problems_of(text):
        assert 1 <= problem.line <= max(1, len(text.splitlines()))
        assert problem.key
        assert problem.message
        assert problem.remedy
        assert "\n" not in str(problem)


def problems_of(text: str) -> tuple[Problem, ...]:
    """None for a mesh; an error without problems is no answer."""
    try:
        mesh = parse_mesh(text, "mesh.yaml")
    except ConfigError as error:
        return error.problems or (Problem("", 0, "", "", ""),)
    assert isinstance(mesh, Mesh)
    return ()


@given(damaged())
@settings(max_examples=150, deadline=None)
def test_damaged_nodes_give_a_mesh_or_problems_with_line_and_remedy(text: str) -> None:
    check(text)


@given(scribbled())
@settings(max_examples=100, deadline=None)
def test_scribbled_text_gives_a_mesh_or_problems_with_line_and_remedy(text: str) -> None:
    check(text)


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_gives_a_mesh_or_problems_with_line_and_remedy(text: str) -> None:
    check(text)


def test_every_single_node_can_be_missing() -> None:
    for path in PATHS:
        document = plain()
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]
        out = io.StringIO()
        YAML(typ="safe", pure=True).dump(document, out)
        check(out.getvalue())
