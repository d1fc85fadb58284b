"""Records to JSON that every parser takes: NaN and infinity become null."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TypeAlias

from xds_server.model.ids import Locality

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None


def to_json(value: object) -> Json:
    """Return ``value`` as plain JSON data; TypeError for what has no JSON form."""
    match value:
        case None | bool() | str() if not isinstance(value, Enum):
            return value
        case Enum():
            return to_json(value.value)
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else None
        case Locality():
            return str(value)
        case Mapping():
            return {str(k): to_json(v) for k, v in value.items()}
        case list() | tuple():
            return [to_json(v) for v in value]
        case set() | frozenset():
            return [to_json(v) for v in sorted(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def dumps(value: object) -> bytes:
    """Return ``value`` as one JSON document in UTF-8."""
    data = to_json(value)
    return json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
