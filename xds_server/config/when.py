"""Faults in the CEL of ``when``: it compiles, and uses only what an instance has."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final

import cel
from cronsim import CronSim, CronSimError

from xds_server.config.fields import duration_s
from xds_server.config.units import nearest
from xds_server.model.telemetry import InstanceSignals

LENGTH_MAX: Final = 2000
ATTRIBUTES: Final = tuple(f.name for f in fields(InstanceSignals))
"""What ``instance`` has."""

_NUMBERS: Final = tuple(f.name for f in fields(InstanceSignals) if f.type is float)
OWN_FUNCTIONS: Final = ("flag", "trend", "schedule")
_CEL_FUNCTIONS: Final = frozenset(
    ("size", "int", "uint", "double", "string", "bool", "bytes", "type", "contains", "startsWith",
     "endsWith", "matches", "timestamp", "duration", "getFullYear", "getMonth", "getDate",
     "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getHours", "getMinutes", "getSeconds",
     "getMilliseconds", "min", "max")
)  # fmt: skip
_SAMPLE_DATE: Final = datetime(2026, 1, 1, tzinfo=UTC)
_TEXT: Final = r"""("[^"\\]*"|'[^'\\]*')"""
_FLAG: Final = re.compile(rf"\bflag\s*\(\s*{_TEXT}\s*\)")
_SCHEDULE: Final = re.compile(rf"\bschedule\s*\(\s*{_TEXT}\s*,\s*{_TEXT}\s*\)")
_TREND: Final = re.compile(rf"\btrend\s*\(\s*instance\.(\w+)\s*,\s*{_TEXT}\s*\)")
_ATTRIBUTE: Final = re.compile(r"\binstance\s*\.\s*(\w+)")
_BOUND: Final = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*(\w+)\s*,")
_STRINGS: Final = re.compile(r"""\"(?:\\.|[^"\\])*\"|'(?:\\.|[^'\\])*'""")
_USES: Final = {
    "flag": (_FLAG, 'write `flag("name")`'),
    "schedule": (_SCHEDULE, 'write `schedule("0 3 * * *", "1h")`: when it starts, how long it is'),
    "trend": (_TREND, 'write `trend(instance.rps, "30s")`: what rises, over how long'),
}


def faults(text: str, flags: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (message, remedy) for everything wrong with one ``when``."""
    if len(text) > LENGTH_MAX:
        yield f"is longer than {LENGTH_MAX} characters", "shorten it"
        return
    try:
        program = cel.compile(text)
        used = program.references()
    except ValueError as error:
        yield f"is not CEL: {_first_fault(error)}", "write it like `instance.age_s < 30.0`"
        return
    code = _STRINGS.sub('""', text)
    yield from _unknown_names(code, used)
    for name, (pattern, remedy) in _USES.items():
        whole = len(re.findall(rf"\b{name}\s*\(", code))
        if whole != len(pattern.findall(text)):
            yield f"{name}() is not used as it can be", remedy
    yield from _bad_arguments(text, flags)
    yield from _not_a_condition(program)


def _first_fault(error: ValueError) -> str:
    said = str(error).partition("ERROR: ")[2] or str(error)
    return said.partition("\n")[0][:160].removeprefix("<input>:")


def _unknown_names(code: str, used: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    bound = set(_BOUND.findall(code))
    for name in sorted(set(used["variables"]) - bound - {"instance"}):
        yield f"nothing is named `{name}`", "write `instance.` and one of its values"
    for attribute in sorted(set(_ATTRIBUTE.findall(code)) - set(ATTRIBUTES)):
        near = nearest(attribute, ATTRIBUTES)
        options = near or [a for a in ATTRIBUTES if a != "node_id"]
        remedy = "write " + " or ".join(f"`instance.{a}`" for a in options)
        yield f"an instance has no `{attribute}`", remedy
    named = {f for f in used["functions"] if re.fullmatch(r"[A-Za-z]\w*", f)}
    for name in sorted(named - _CEL_FUNCTIONS - set(OWN_FUNCTIONS)):
        options = nearest(name, OWN_FUNCTIONS) or list(OWN_FUNCTIONS)
        remedy = "write " + " or ".join(f"`{f}()`" for f in options)
        yield f"there is no function `{name}()`", remedy


def _bad_arguments(text: str, flags: Iterable[str]) -> Iterator[tuple[str, str]]:
    declared = sorted(flags)
    for quoted in _FLAG.findall(text):
        if quoted[1:-1] not in declared:
            near = nearest(quoted[1:-1], declared)
            remedy = f'write `flag("{near[0]}")`' if near else "declare it under `flags`"
            yield f"no flag is named {quoted[1:-1]!r}", remedy
    for cron, lasts in _SCHEDULE.findall(text):
        try:
            CronSim(cron[1:-1], _SAMPLE_DATE)
        except CronSimError:
            remedy = 'write minute, hour, day, month, weekday, like "0 3 * * *"'
            yield f"{cron} is not a cron expression", remedy
        if not duration_s(lasts[1:-1]):
            yield f"{lasts} is not a duration", 'write it like "90s", "15m", "1h"'
    for attribute, over in _TREND.findall(text):
        if attribute in ATTRIBUTES and attribute not in _NUMBERS:
            remedy = "write " + " or ".join(f"`instance.{n}`" for n in _NUMBERS)
            yield f"instance.{attribute} is no number, so it has no trend", remedy
        if not duration_s(over[1:-1]):
            yield f"{over} is not a duration", 'write it like "30s"'


def _not_a_condition(program: Any) -> Iterator[tuple[str, str]]:
    """Try it on one made-up instance; what it gives must be true or false."""
    sample = dict.fromkeys(ATTRIBUTES, 1.0) | {
        "node_id": "n1",
        "rps_by_service": {},
        "response_bytes_by_service": {},
    }
    context = cel.Context({"instance": sample})
    context.add_function("flag", lambda *_: False)
    context.add_function("schedule", lambda *_: False)
    context.add_function("trend", lambda *_: 0.0)
    try:
        result = program.execute(context)
    except TypeError as error:
        remedy = "write numbers with a decimal point, and compare like with like"
        yield f"mixes types: {str(error).partition('.')[0]}", remedy
    except (ValueError, RuntimeError, KeyError, ArithmeticError):
        return  # depends on the instance, like a service that it has not called yet
    else:
        if not isinstance(result, bool):
            remedy = "compare it with something, like `instance.rps > 80.0`"
            yield "gives no true or false", remedy
