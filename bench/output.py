"""Figures as JSON that every reader takes: what is no finite number is null."""

import json
import math


def dumped(figures: object, indent: int | None = None) -> str:
    """Return figures as JSON; NaN and infinity, which JSON does not have, as null."""
    return json.dumps(_finite(figures), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
