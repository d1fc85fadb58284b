"""Numbers written into serialised messages, for many copies at once.

A message is authored once with placeholders that can be found again in its bytes; a tick
then tiles those bytes and writes the real numbers over the placeholders as one array
operation. Weights are 3-byte varints, padded where the number is small (Envoy accepts
non-minimal varints; verified on 1.40), runtime values are 8-byte doubles.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xds_server.core.tables import Floats, Ints

VARINT_MAX = 2**21 - 1
"""Largest number in a 3-byte varint."""
_PLACEHOLDER = 2_000_000  # needs all three bytes
_DOUBLE = 1.0e300


@dataclass(frozen=True, slots=True)
class VarintTemplate:
    """Bytes with W places for a 3-byte varint."""

    body: bytes = field(repr=False)
    offsets: tuple[int, ...]  # (W,)

    @classmethod
    def authored(cls, author: Callable[[list[int]], bytes], count: int) -> "VarintTemplate":
        """Let ``author`` serialise placeholders, and find each in the bytes, exactly once."""
        values = [_PLACEHOLDER + i for i in range(count)]
        body = author(values)
        return cls(body, tuple(_find(body, _padded(v)) for v in values))

    def fill(self, numbers: Ints) -> list[bytes]:
        """(G, W) numbers in 0..VARINT_MAX -> G messages."""
        if numbers.size and (numbers.min() < 0 or numbers.max() > VARINT_MAX):
            raise ValueError(f"weights must be within 0..{VARINT_MAX}")
        tiled = _tile(self.body, len(numbers))
        at = np.array(self.offsets, dtype=np.int64)
        tiled[:, at] = numbers & 0x7F | 0x80
        tiled[:, at + 1] = numbers >> 7 & 0x7F | 0x80
        tiled[:, at + 2] = numbers >> 14
        return [row.tobytes() for row in tiled]


@dataclass(frozen=True, slots=True)
class DoubleTemplate:
    """Bytes with W places for a little-endian double."""

    body: bytes = field(repr=False)
    offsets: tuple[int, ...]  # (W,)

    @classmethod
    def authored(cls, author: Callable[[list[float]], bytes], count: int) -> "DoubleTemplate":
        """Let ``author`` serialise placeholders, and find each in the bytes, exactly once."""
        values = [_DOUBLE * (1.0 + i * 1e-6) for i in range(count)]
        body = author(values)
        return cls(body, tuple(_find(body, np.float64(v).tobytes()) for v in values))

    def fill(self, numbers: Floats) -> list[bytes]:
        """(G, W) numbers -> G messages."""
        tiled = _tile(self.body, len(numbers))
        places = (np.array(self.offsets, dtype=np.int64)[:, None] + np.arange(8)).ravel()
        little = np.ascontiguousarray(numbers, dtype="<f8")
        tiled[:, places] = little.view(np.uint8).reshape(len(numbers), -1)
        return [row.tobytes() for row in tiled]


def _padded(number: int) -> bytes:
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))


def _tile(body: bytes, copies: int) -> NDArray[np.uint8]:
    tiled: NDArray[np.uint8] = np.tile(np.frombuffer(body, dtype=np.uint8), (copies, 1))
    return tiled


def _find(body: bytes, placeholder: bytes) -> int:
    if body.count(placeholder) != 1:
        raise ValueError("a placeholder is not unique in the message")
    return body.index(placeholder)
