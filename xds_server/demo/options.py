"""What the operator of the demo may choose."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_DURATION_S: Final = 81.0
MIN_DURATION_S: Final = 30.0
"""Below this the dead man's switch (16 s of real time) leaves no room for the rest."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of ``xds-server demo``; ``duration_s`` is the length of ONE of the two stories."""

    duration_s: float = DEFAULT_DURATION_S
    report: Path | None = None
    ui: bool = True
    seed: int = 7
