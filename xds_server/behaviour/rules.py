"""``when`` rules: CEL over one instance's signals, and what time adds to them."""

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import cel
import numpy as np
from cronsim import CronSim

from xds_server.model.telemetry import InstanceSignals

SAMPLES_KEPT: Final = 600
"""Samples of each signal kept per instance for ``trend``; the oldest is dropped."""
_TREND: Final = re.compile(r"\btrend\s*\(\s*instance\.(\w+)\s*,")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def trended(rules: Iterable[str]) -> frozenset[str]:
    """Names of the signals of which rules ask a trend."""
    return frozenset(name for text in rules for name in _TREND.findall(text))


def duration_s(text: str) -> float:
    """Seconds of "90s", "1h30m", ...; 0 when it is not a duration (``config`` refused it)."""
    return sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION.findall(text))


class SignalHistory:
    """What one instance's numeric signals were, for trends; bounded by ``SAMPLES_KEPT``."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, dict[str, float]]] = deque(maxlen=SAMPLES_KEPT)

    def add(self, values: Mapping[str, float], now_s: float) -> None:
        """Remember the signals of one tick."""
        self._samples.append((now_s, dict(values)))

    def slope_per_s(self, name: str, over_s: float, now_s: float) -> float:
        """Least-squares slope of a signal over the last ``over_s``; 0 with too few samples."""
        points = [(t, v[name]) for t, v in self._samples if t >= now_s - over_s and name in v]
        if len(points) < 3:
            return 0.0
        t, values = np.array(points).T
        t = t - t.mean()
        spread = float(t @ t)
        return float(t @ (values - values.mean())) / spread if spread > 0.0 else 0.0


class Rule:
    """One compiled ``when``."""

    def __init__(self, text: str) -> None:
        # A function gets a number and cannot know its past, so a trend gets a name instead.
        self._program = cel.compile(_TREND.sub(r'trend("\1",', text))

    def holds(
        self,
        signals: InstanceSignals,
        history: SignalHistory,
        flags: Mapping[str, bool],
        *,
        now_s: float,
        wall_s: float,
    ) -> bool:
        """Evaluate; raises whatever CEL raises for a rule that does not fit the instance."""
        context = cel.Context({"instance": instance_values(signals)})
        context.add_function("flag", lambda name: flags[name])
        context.add_function("schedule", lambda cron, lasts: in_schedule(cron, lasts, wall_s))
        context.add_function(
            "trend", lambda name, over: history.slope_per_s(name, duration_s(over), now_s)
        )
        return bool(self._program.execute(context))


def instance_values(signals: InstanceSignals) -> dict[str, Any]:
    """Signals as CEL sees them; what was never measured is 0."""
    return {f.name: _known(getattr(signals, f.name)) for f in fields(signals)}


def _known(value: Any) -> Any:
    return 0.0 if isinstance(value, float) and not np.isfinite(value) else value


def in_schedule(cron: str, lasts: str, wall_s: float) -> bool:
    """Whether a cron schedule (UTC) fired within the last ``lasts``."""
    now = datetime.fromtimestamp(wall_s, UTC)
    since = now - timedelta(seconds=duration_s(lasts))
    return bool(next(CronSim(cron, since)) <= now)
