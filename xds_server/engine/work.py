"""Work that may be interrupted: its caller goes on with it when there is time again."""

from collections.abc import Generator
from typing import Final, TypeAlias, TypeVar

STEP_PAIRS: Final = 500
"""What one step of settling costs beside its pairs, in pairs (measured: 0.5 ms, and 0.7 ms per
1,000 pairs)."""

T = TypeVar("T")
Work: TypeAlias = Generator[int, None, T]
"""Yields after each step what that cost, in pairs: time is no part of it, so what is decided when
is the same in a replay."""


def done_at_once(work: Work[T]) -> T:
    """Go on without interruption, to the result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: T = end.value
            return found
