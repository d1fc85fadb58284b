"""Values to models. Every fault of form becomes a Problem; what is left is still checked.

A faulty value is taken out, so that its default or nothing stands in for it, and the rest of
the file can be checked for faults of meaning in the same run. ``broken`` says what was
taken out, so that nobody complains about its absence.
"""

import copy
import re
from typing import Any, Final, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from xds_server.config.schema import MeshFile, field_at, is_mapping, section_at
from xds_server.config.source import Document, KeyPath, Value
from xds_server.config.units import guess
from xds_server.errors import ConfigError, Problem

_STAND_INS: Final[dict[str, Value]] = {
    "mesh": "mesh",
    "services": {},
    "templates": {},
    "applications": {},
}
_MAX_ROUNDS: Final = 100  # each takes out at least one value and all that lack it

_UNKNOWN: Final = "extra_forbidden"
_NEEDS: Final = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "`true` or `false`",
    "string_type": "text (in quotes, if it looks like something else)",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "finite_number": "a finite number",
}
_BOUNDS: Final = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def validate(document: Document, problems: list[Problem]) -> tuple[MeshFile, set[KeyPath]]:
    """Return the models and the paths that had to be taken out; add why to ``problems``."""
    data = copy.deepcopy(document.data)
    broken: set[KeyPath] = set()
    for at in _fill_empty(data, (), problems, document):
        _take_out(data, at)
        broken.add(at)
    for turn in range(_MAX_ROUNDS):
        try:
            return MeshFile.model_validate(data), broken
        except ValidationError as error:
            details = error.errors(include_url=False)
            broken |= {_meant(tuple(d["loc"]), d) for d in details if d["type"] == _UNKNOWN}
            for detail in details:
                at, kind = tuple(detail["loc"]), detail["type"]
                follows = turn > 0 or (kind == "missing" and at in broken)
                if not follows:
                    problems.append(_problem(document, at, detail))
                if kind != _UNKNOWN:
                    broken.add(at)
                _repair(data, at, missing=kind == "missing")
    raise ConfigError(tuple(problems))


def _fill_empty(
    value: Value, at: KeyPath, problems: list[Problem], document: Document
) -> list[KeyPath]:
    """Turn "key:" into "key: {}" where keys are expected; report it elsewhere."""
    empty: list[KeyPath] = []
    items: list[tuple[str | int, Value]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, tuple):
        items = list(enumerate(value))
    for key, inner in items:
        here = (*at, key)
        if inner is not None:
            empty += _fill_empty(inner, here, problems, document)
        elif isinstance(value, dict) and is_mapping(here):
            value[str(key)] = {}
        elif isinstance(value, tuple) or field_at(here) is not None or not _unknown(here):
            problem = document.problem(here, "has no value", _write(here, "a value, or remove it"))
            if not any(p.key == problem.key for p in problems):
                problems.append(problem)
            empty.append(here)
    return empty


def _unknown(at: KeyPath) -> bool:
    return section_at(at[:-1]) is not None and field_at(at) is None


def _repair(data: dict[str, Any], at: KeyPath, *, missing: bool) -> None:
    if not missing:
        _take_out(data, at)
    elif len(at) == 1:
        data[str(at[0])] = copy.deepcopy(_STAND_INS[str(at[0])])
    elif _reach(data, at) is None:
        _take_out(data, at[:-1])


def _take_out(data: dict[str, Any], at: KeyPath) -> None:
    """Delete the value, with the list around it if it is in one; nothing if it is gone."""
    while at and isinstance(at[-1], int):
        at = at[:-1]
    holder = _reach(data, at[:-1])
    if at and isinstance(holder, dict):
        holder.pop(at[-1], None)
    elif len(at) > 1:  # what holds it is no mapping any more: a list of lists
        _take_out(data, at[:-1])


def _reach(data: Any, at: KeyPath) -> Any:
    for key in at:
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, tuple) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return None
    return data


def _meant(at: KeyPath, detail: ErrorDetails) -> KeyPath:
    """Return the path that an unknown key leaves without a value."""
    near = guess(at, cast("Value", detail["input"])).key
    return (*at[:-1], near) if near else at


def _problem(document: Document, at: KeyPath, detail: ErrorDetails) -> Problem:
    kind, context = detail["type"], detail.get("ctx", {})
    shown = _shown(detail["input"])
    if kind == _UNKNOWN:
        remedy = guess(at, cast("Value", detail["input"])).remedy
        return document.problem(at, "is not a known key", remedy)
    if kind == "missing":
        if at and isinstance(at[-1], int):
            at = at[:-1]
            return document.problem(at, "needs two numbers", _write(at, "[lowest, highest]"))
        return document.problem(at, "is missing", _write(at, "it"))
    if kind == "wrong":
        return document.problem(at, str(context["message"]), str(context["remedy"]))
    if kind == "literal_error":
        options = str(context["expected"]).replace("'", "`")
        return document.problem(at, f"{shown} is not one of its values", f"write {options}")
    if kind == "too_long":
        return document.problem(at, "has too many values", _write(at, "[lowest, highest]"))
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        need = f"a number {words} {context[name]:.10g}"
        return document.problem(at, f"{shown} is out of bounds: {words} {context[name]:.10g}",
                                _write(at, need))  # fmt: skip
    need = _NEEDS.get(kind, "another value")
    remedy = _same_value(kind, detail["input"]) or _write(at, need)
    return document.problem(at, f"{shown} is not {need}", remedy)


def _same_value(kind: str, value: object) -> str:
    """Return how to write the same value so that it has the right type; "" if there is no way."""
    if kind == "string_type" and isinstance(value, int | float):
        return f'put it in quotes: "{_shown(value)}"'
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"write {value:.0f}, without a point"
    if kind in {"int_type", "float_type"} and isinstance(value, str):
        number = re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", value)
        if number and (kind == "float_type" or not number[1]):
            return f"write {value}, without quotes"
    return ""


def _write(at: KeyPath, what: str) -> str:
    """Name the remedy, with an example where the schema has one."""
    field_path = at
    while field_path and isinstance(field_path[-1], int):
        field_path = field_path[:-1]
    field = field_at(field_path)
    if field is None:
        return f"write {what}"
    example = next(iter(field.examples or ()), None)
    if example is None and isinstance(field.default, str | int | float):
        example = field.default
    if example is None or example == "":
        return f"write {what}"
    text = str(example).lower() if isinstance(example, bool) else example
    return f"write {what}, like `{field_path[-1]}: {text}`"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, tuple):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)[:60]
    return text if len(text) <= 60 else text[:57] + "..."
