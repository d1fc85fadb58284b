"""What programs of bench take on the command line: types for argparse, with bounds.

Each raises ArgumentTypeError with the value and what is allowed; argparse then prints the usage
and exits with 2, before anything has run.
"""

import argparse
import math
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
_QUIET = frozenset({"json"})
"""Flags that change no figure."""


def integer(least: int, most: int) -> Callable[[str], int]:
    """Whole number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            allowed = f"a whole number from {least:,} to {most:,} is allowed"
            raise argparse.ArgumentTypeError(f"{text!r}: {allowed}")
        return value

    return parse


positive_integer = integer(1, 10_000)


def real(least: float, most: float, unit: str = "") -> Callable[[str], float]:
    """Number from ``least`` to ``most``, which are finite; NaN is none."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            allowed = f"a number from {least:,.15g} to {most:,.15g}{' ' * bool(unit)}{unit}"
            raise argparse.ArgumentTypeError(f"{text!r}: {allowed} is allowed")
        return value

    return parse


def comma_separated(part: Callable[[str], _T]) -> Callable[[str], tuple[_T, ...]]:
    """One or more parts, none of them twice."""

    def parse(text: str) -> tuple[_T, ...]:
        found = tuple(part(word) for word in text.split(","))
        if len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"{text!r}: each may be named once")
        return found

    return parse


def name_of(known: Iterable[str]) -> Callable[[str], str]:
    """One of those names."""
    names = tuple(known)

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r}: one of {', '.join(names)} is allowed")
        return text

    return parse


def file_to_write(text: str) -> Path:
    """File in a folder that exists."""
    file = Path(text)
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: a folder; a file is allowed")
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: its folder does not exist")
    return file


def folder_to_write(text: str) -> Path:
    """Folder that exists or can be made."""
    folder = Path(text)
    first = next(part for part in (folder, *folder.absolute().parents) if part.exists())
    if not first.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: {first} is a file; a folder is allowed")
    return folder


def command(module: str, parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """Return the command that gives these figures: each flag that is not at its default.

    Defaults have to be given as values, not as text that is yet to be parsed.
    """
    words = ["python", "-m", module]
    for name, value in vars(options).items():
        if name not in _QUIET and value != parser.get_default(name):
            words += [f"--{name.replace('_', '-')}", as_text(value)]
    return shlex.join(words)


def as_text(value: object) -> str:
    """Say a value as it is given on the command line: tuples by commas, those within by colons."""
    if isinstance(value, tuple):
        return ",".join(
            ":".join(map(as_text, part)) if isinstance(part, tuple) else as_text(part)
            for part in value
        )
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
