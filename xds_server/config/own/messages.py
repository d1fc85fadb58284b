"""Values to Envoy's messages, strictly; and every fault with the path of its key."""

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from xds_server.config.source import KeyPath, Value
from xds_server.config.units import nearest

_Kind: TypeAlias = Any  # upb's descriptors are not descriptor.Descriptor
_Field: TypeAlias = Any

TYPE: Final = "@type"
PREFIX: Final = "type.googleapis.com/"
_ANY: Final = "google.protobuf.Any"
_WELL_KNOWN: Final = "google.protobuf."
_ROOTS: Final = frozenset({"envoy", "xds", "udpa", "google", "opencensus"})
_NAME: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*){1,30}", re.ASCII)
_DEPTH_MAX: Final = 90  # json_format stops at 100 messages


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at a key, and what to write instead."""

    at: KeyPath
    message: str
    remedy: str


@lru_cache(maxsize=4096)
def message_class(name: str) -> type[Message] | None:
    """Return the class of a message by its full name; None if there is no such message.

    Python's modules of the API have the names of the API's packages, so a message's module
    is imported when a file first names it.
    """
    if not _NAME.fullmatch(name) or name.partition(".")[0] not in _ROOTS or _is_old(name):
        return None
    package = name.rpartition(".")[0]
    while package and not _import(package):
        package = package.rpartition(".")[0]  # a message inside a message
    try:
        found: Any = descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError:
        return None
    return message_factory.GetMessageClass(found)


def _is_old(name: str) -> bool:
    """Whether a name is of the v2 API, which Envoy has no more."""
    return any(part.startswith("v2") for part in name.split("."))


def _import(package: str) -> bool:
    """Import every module of messages in a package; False if there is none."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.submodule_search_locations is None:
        return False
    names = [m.name for m in pkgutil.iter_modules(spec.submodule_search_locations)]
    messages = [name for name in names if name.endswith("_pb2")]
    for name in messages:
        importlib.import_module(f"{package}.{name}")
    return bool(messages)


def parse(value: dict[str, Value], name: str, at: KeyPath) -> Message | list[Fault]:
    """Return the message of that full name, or everything that is wrong with the value.

    KeyError if there is no such message.
    """
    cls = message_class(name)
    if cls is None:
        raise KeyError(name)
    _import_named(value)
    message = cls()
    try:
        json_format.ParseDict(_plain(value), message)
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        found = list(_faults(value, message.DESCRIPTOR, at, 0))
        return found or [Fault(at, _said(error), "write it as Envoy's API has it")]
    except RecursionError:
        return [Fault(at, "is nested too deeply", "flatten it")]
    return message


def type_fault(type_url: Value, at: KeyPath) -> Fault | None:
    """Say what is wrong with the type that an ``@type`` names."""
    if not isinstance(type_url, str) or not type_url.startswith(PREFIX):
        return Fault(at, "is not a type URL", f"write `{PREFIX}<full name of the message>`")
    name = type_url.removeprefix(PREFIX)
    if message_class(name) is not None:
        return None
    package, _, last = name.rpartition(".")
    if _is_old(name):
        remedy = "write its v3 name: Envoy has no v2 API any more"
    else:
        options = _names_in(package)
        near = nearest(last, options)
        remedy = f"write `{PREFIX}{package}.{near[0]}`" if near else "check its spelling"
    return Fault(at, f"no message of Envoy's API is named {name[:120]!r}", remedy)


def _names_in(package: str) -> list[str]:
    if not _NAME.fullmatch(package) or package.partition(".")[0] not in _ROOTS:
        return []
    spec_names: list[str] = []
    if _import(package):
        path = importlib.import_module(package).__path__
        for module in pkgutil.iter_modules(path):
            if module.name.endswith("_pb2"):
                file = importlib.import_module(f"{package}.{module.name}").DESCRIPTOR
                spec_names += list(file.message_types_by_name)
    return spec_names


def _import_named(value: Value) -> None:
    """Import the message of every ``@type`` inside."""
    if isinstance(value, Mapping):
        url = value.get(TYPE)
        if isinstance(url, str):
            message_class(url.rpartition("/")[2])
        for inner in value.values():
            _import_named(inner)
    elif isinstance(value, tuple):
        for inner in value:
            _import_named(inner)


def _plain(value: Value) -> Any:
    """Lists for tuples: json_format asks for them."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _said(error: Exception) -> str:
    """Return what json_format says, without its paths: ours have lines."""
    text = re.sub(r"^(Failed to parse \S+ field: )+", "", str(error).partition("\n")[0])
    text = re.sub(r' at "?\w+(\.[\w.\[\]]+)?"?\.*$', "", text)
    return text.strip(" .")[:200]


# -- where the faults are ------------------------------------------------------------


def _faults(value: Value, kind: _Kind, at: KeyPath, depth: int) -> Iterator[Fault]:
    if kind.full_name == _ANY:
        yield from _any_faults(value, at, depth)
    elif kind.full_name.startswith(_WELL_KNOWN):
        yield from _leaf_faults(value, kind, at)
    elif not isinstance(value, Mapping):
        yield Fault(at, f"is not a {kind.name}", "write keys and values")
    elif depth > _DEPTH_MAX:
        yield Fault(at, "is nested too deeply", "flatten it")
    else:
        yield from _field_faults(value, kind, at, depth)


def _any_faults(value: Value, at: KeyPath, depth: int) -> Iterator[Fault]:
    if not value and isinstance(value, Mapping):
        return
    if not isinstance(value, Mapping) or TYPE not in value:
        remedy = f'write `"{TYPE}": {PREFIX}<full name of the message>` in it'
        yield Fault(at, f"has no {TYPE}, which says what it is", remedy)
        return
    wrong = type_fault(value[TYPE], (*at, TYPE))
    if wrong is not None:
        yield wrong
        return
    cls = message_class(str(value[TYPE]).removeprefix(PREFIX))
    assert cls is not None
    inner: Value = {key: v for key, v in value.items() if key != TYPE}
    if cls.DESCRIPTOR.full_name.startswith(_WELL_KNOWN):
        inner, at = value.get("value"), (*at, "value")
    yield from _faults(inner, cls.DESCRIPTOR, at, depth + 1)


def _leaf_faults(value: Value, kind: _Kind, at: KeyPath) -> Iterator[Fault]:
    try:
        json_format.ParseDict(_plain(value), message_factory.GetMessageClass(kind)())
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        remedy = {
            "google.protobuf.Duration": "write it in seconds, like `0.25s`",
            "google.protobuf.BoolValue": "write `true` or `false`",
            "google.protobuf.StringValue": "write text (in quotes, if it looks like a number)",
        }.get(kind.full_name, f"write a {kind.name} as Envoy's API has it")
        yield Fault(at, _said(error) or f"is not a {kind.name}", remedy)


def _field_faults(
    value: Mapping[str, Value], kind: _Kind, at: KeyPath, depth: int
) -> Iterator[Fault]:
    chosen: dict[str, str] = {}
    for key, inner in value.items():
        here = (*at, key)
        found = field_of(kind, key)
        if found is None:
            yield _unknown(key, kind, here)
            continue
        if inner is None:
            continue
        group = found.containing_oneof
        other = chosen.setdefault(group.name, key) if group is not None else key
        if other != key:
            yield Fault(here, f"cannot stand beside `{other}`", "keep one of the two")
        yield from _value_faults(inner, found, here, depth)


def field_of(kind: _Kind, key: str) -> _Field | None:
    """Return the field that a key means, in either spelling (lb_policy, lbPolicy)."""
    found: _Field | None = kind.fields_by_name.get(key)
    return found or kind.fields_by_camelcase_name.get(key)


def _unknown(key: str, kind: _Kind, at: KeyPath) -> Fault:
    names = list(kind.fields_by_name)
    near = nearest(key, names, limit=3)
    listed = near or names[:8]
    options = " or ".join(f"`{name}`" for name in listed)
    remedy = f"write {options}" if near else f"remove it; a {kind.name} has {options or 'no keys'}"
    return Fault(at, f"is no field of {kind.full_name}", remedy)


def _value_faults(value: Value, found: _Field, at: KeyPath, depth: int) -> Iterator[Fault]:
    kind = found.message_type
    if kind is not None and kind.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            yield Fault(at, "is not a map", "write keys and values")
            return
        held = kind.fields_by_name["value"]
        for key, inner in value.items():
            yield from _one_fault(inner, held, (*at, key), depth)
    elif found.is_repeated:
        if not isinstance(value, tuple):
            yield Fault(at, "is not a list", f"write `{at[-1]}: [...]`")
            return
        for i, inner in enumerate(value):
            yield from _one_fault(inner, found, (*at, i), depth)
    else:
        yield from _one_fault(value, found, at, depth)


def _one_fault(value: Value, found: _Field, at: KeyPath, depth: int) -> Iterator[Fault]:
    if found.message_type is not None:
        yield from _faults(value, found.message_type, at, depth + 1)
        return
    alone: Value = (value,) if found.is_repeated else value
    owner = message_factory.GetMessageClass(found.containing_type)()
    try:
        json_format.ParseDict({found.name: _plain(alone)}, owner)
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        yield Fault(at, _said(error), _scalar_remedy(value, found))


def _scalar_remedy(value: Value, found: _Field) -> str:
    if found.enum_type is not None:
        names = [v.name for v in found.enum_type.values]
        near = nearest(str(value).upper(), names)
        return "write " + " or ".join(f"`{name}`" for name in near or names[:12])
    if found.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if isinstance(value, int | float):
            return f'put it in quotes: "{str(value).lower() if value in (True, False) else value}"'
        return "write text"
    if found.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "write `true` or `false`"
    return "write a number"
