"""What an unknown key was meant to be: its unit, its spelling, or another place."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from xds_server.config.schema import WILDCARD, schema_keys, section_at
from xds_server.config.section import keys_of
from xds_server.config.source import KeyPath, Value

_FACTORS: Final[dict[str, tuple[str, float]]] = {
    "_us": ("_s", 1e-6), "_ms": ("_s", 1e-3), "_millis": ("_s", 1e-3), "_s": ("_s", 1.0),
    "_sec": ("_s", 1.0), "_secs": ("_s", 1.0), "_second": ("_s", 1.0), "_seconds": ("_s", 1.0),
    "_m": ("_s", 60.0), "_min": ("_s", 60.0), "_mins": ("_s", 60.0), "_minutes": ("_s", 60.0),
    "_h": ("_s", 3600.0), "_hours": ("_s", 3600.0),
    "_ratio": ("_ratio", 1.0), "_percent": ("_ratio", 0.01), "_pct": ("_ratio", 0.01),
    "_bytes": ("_bytes", 1.0), "_kb": ("_bytes", 1e3), "_kib": ("_bytes", 1024.0),
    "_mb": ("_bytes", 1e6), "_mib": ("_bytes", 1024.0**2),
    "_gb": ("_bytes", 1e9), "_gib": ("_bytes", 1024.0**3),
    "_rps": ("_rps", 1.0), "_qps": ("_rps", 1.0), "_tps": ("_rps", 1.0), "_rpm": ("_rps", 1 / 60),
    "_usd_per_h": ("_usd_per_h", 1.0), "_usd_per_hour": ("_usd_per_h", 1.0),
    "_usd_per_day": ("_usd_per_h", 1 / 24), "_usd_per_month": ("_usd_per_h", 1 / 730),
    "_usd": ("_usd", 1.0), "_cents": ("_usd", 0.01), "_dollars": ("_usd", 1.0),
}  # fmt: skip
"""Suffix to the suffix that this file uses, and the factor between them."""

_WORDS: Final = {
    "_s": "in seconds",
    "_ratio": "a ratio from 0 to 1",
    "_bytes": "in bytes",
    "_rps": "in requests per second",
    "_usd_per_h": "in US dollars per hour",
    "_usd": "in US dollars",
}


@dataclass(frozen=True, slots=True)
class Guess:
    """What to write instead of an unknown key; ``key`` is "" when nothing is near."""

    key: str
    remedy: str


def nearest(word: str, known: Iterable[str], limit: int = 1) -> list[str]:
    """Return the known words most like ``word``, best first; none when none is close."""
    return difflib.get_close_matches(word[:100], sorted(known), limit, cutoff=0.6)


def guess(at: KeyPath, value: Value) -> Guess:
    """Say what the operator can have meant by the last key of ``at``."""
    section = section_at(at[:-1])
    known = list(keys_of(section)) if section is not None else []
    key = str(at[-1])
    by_unit = _same_but_unit(key, known)
    if by_unit is not None:
        return Guess(by_unit, _with_unit(key, by_unit, value))
    near = nearest(key, known, limit=3)
    if near:
        return Guess(near[0], f"write {' or '.join(f'`{k}`' for k in near)}")
    elsewhere = [k for k in schema_keys() if k.rpartition(".")[2] == key]
    if elsewhere:
        places = [_readable(k) for k in elsewhere[:2]]
        return Guess("", f"write it at {' or '.join(f'`{p}`' for p in places)}, or remove it")
    return Guess("", f"remove it; the keys here are {', '.join(f'`{k}`' for k in known)}")


def _readable(key: str) -> str:
    return key.replace(WILDCARD, "<name>")


def _split(key: str) -> tuple[str, str, float]:
    """Split into stem, the suffix that this file uses, and the factor to it."""
    for suffix in sorted(_FACTORS, key=len, reverse=True):
        if key.endswith(suffix) and key != suffix:
            return key.removesuffix(suffix), *_FACTORS[suffix]
    return key, "", 1.0


def _same_but_unit(key: str, known: Iterable[str]) -> str | None:
    stem, unit, _ = _split(key)
    options = {k: _split(k) for k in known}
    matching = [k for k, (s, u, _) in options.items() if s == stem and u]
    return next((k for k in matching if options[k][1] == unit), next(iter(matching), None))


def _with_unit(key: str, right: str, value: Value) -> str:
    _, unit, factor = _split(key)
    suffix = _split(right)[1]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and unit == suffix and abs(float(value)) < 1e15:  # type: ignore[arg-type]
        return f"write `{right}: {float(value) * factor:.10g}` ({_WORDS[suffix]})"  # type: ignore[arg-type]
    return f"write `{right}`, {_WORDS[suffix]}"
