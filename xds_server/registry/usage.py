"""What sources of usage said last of instances and providers."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from xds_server.model.services import UNKNOWN, Reading
from xds_server.model.usage import Usage

FIELDS: Final = ("cpu_ratio", "memory_bytes", "utilisation_ratio")
_MOST: Final = {"cpu_ratio": 1e4, "memory_bytes": 2.0**60, "utilisation_ratio": 1e4}
"""Above these a value is taken for a mistake, as is one below 0."""


@dataclass(frozen=True, slots=True)
class _Said:
    source: str  # the adapter's name
    at_s: float
    valid_s: float
    usages: dict[tuple[str, bool], Usage]


class Usages:
    """The newest update of each source, by its place in mesh.yaml.

    Bounded by what one update holds. Each replaces the one before whole; who is not in it is not
    known any more. A value that cannot be is left out and counted.
    """

    def __init__(self, refused: Counter[str] | None = None) -> None:
        """``refused`` is what counts."""
        self._refused = Counter() if refused is None else refused
        self._said: dict[int, _Said] = {}

    def take(
        self, place: int, source: str, usages: Iterable[Usage], *, valid_s: float, now_s: float
    ) -> None:
        """Put an update in force, for ``valid_s``."""
        checked = {(u.of, u.is_provider): self._checked(u) for u in usages}
        self._said[place] = _Said(source, now_s, valid_s, checked)

    def forget(self, place: int) -> None:
        """Its source is another one now, or none."""
        self._said.pop(place, None)

    def reading(self, of: str, field: str, now_s: float, *, is_provider: bool = False) -> Reading:
        """Return one value: of the first source whose word is valid, else of the newest stale one.

        ``field`` is one of ``FIELDS``.
        """
        stale = UNKNOWN
        for _, said in sorted(self._said.items()):
            usage = said.usages.get((of, is_provider))
            value = math.nan if usage is None else getattr(usage, field)
            if math.isnan(value):
                continue
            age_s = now_s - said.at_s
            reading = Reading(value, age_s, said.source, stale=age_s > said.valid_s)
            if not reading.stale:
                return reading
            if stale.age_s is None or age_s < stale.age_s:
                stale = reading
        return stale

    def value(self, of: str, field: str, now_s: float, *, is_provider: bool = False) -> float:
        """Return that value while it is valid, else NaN."""
        reading = self.reading(of, field, now_s, is_provider=is_provider)
        return math.nan if reading.value is None or reading.stale else reading.value

    def _checked(self, usage: Usage) -> Usage:
        absurd = [f for f in FIELDS if not _is_possible(getattr(usage, f), _MOST[f])]
        if not absurd:
            return usage
        self._refused["absurd usage"] += len(absurd)
        kept = (math.nan if f in absurd else getattr(usage, f) for f in FIELDS)
        return Usage(usage.of, usage.is_provider, *kept)


def _is_possible(value: float, most: float) -> bool:
    return math.isnan(value) or 0.0 <= value <= most
