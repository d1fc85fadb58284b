"""Where the nodes' counters are, from a process that stopped to the one that comes after it.

What an Envoy counts while no control plane is there is in its next message: the difference to
the last that was heard. So a process that stops in good order writes that down, beside its
history, which has everything up to there. The next takes it over and removes it: after a kill
-9 there is none, and counting starts anew, so what happened meanwhile is missing from history,
but nothing is ever in it twice.
"""

import json
from pathlib import Path
from typing import Final

import structlog

from xds_server.ports import Clock
from xds_server.telemetry.counters import Bases

log = structlog.get_logger()

VALID_S: Final = 900.0
"""A node that was not heard for longer starts anew: what it counted since belongs to no slot."""
_NODES: Final = "nodes_1"
"""Key of the nodes; another number is another layout, which this process does not read."""


class KeptCounters:
    """The file ``NAME.counters`` beside a history file; without one that is ours, none."""

    def __init__(self, history: Path | None, bases: Bases, clock: Clock) -> None:
        self._path = None if history is None else history.with_name(f"{history.name}.counters")
        self._bases, self._clock = bases, clock

    def load(self) -> None:
        """Take over what was left, once; never raises."""
        if self._path is None:
            return
        try:
            text = self._path.read_text()
            self._path.unlink()
            said = json.loads(text)
            away_s = max(self._clock.wall_s() - float(said["at_s"]), 0.0)
            nodes = [n for n in said[_NODES] if n["age_s"] + away_s <= VALID_S]
            self._bases.restore(nodes, self._clock.now_s() - away_s)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("counters.unusable", path=str(self._path), reason=repr(error)[:500])
            return
        log.info("counters.read", nodes=len(nodes), away_s=round(away_s, 1))

    def save(self) -> None:
        """Leave them for the next process; never raises."""
        if self._path is None:
            return
        nodes = self._bases.saved(self._clock.now_s(), VALID_S)
        text = json.dumps({"at_s": self._clock.wall_s(), _NODES: nodes})
        new = self._path.with_name(f".{self._path.name}.new")
        try:
            new.write_text(text)
            new.replace(self._path)
        except OSError as error:
            log.warning("counters.not_saved", path=str(self._path), reason=str(error))
