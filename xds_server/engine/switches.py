"""Which features are switched off while the calls that they make cost more than they are worth.

A feature that is off makes fewer calls: part ``saves`` of each service's. What that is worth is the
fall of the objective between two optima, with and without it, in dollars: what the calls that are
not made would have cost, and the time and objectives of latency that all others, of whatever
application, get back. It is switched off where that exceeds ``worth_usd_per_h`` by a margin.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np

from xds_server.engine.changes import ms_per_usd
from xds_server.engine.optima import RELIEF_RATIO, Optima
from xds_server.engine.settle import Settled
from xds_server.engine.work import Work
from xds_server.model.ids import ApplicationName, ServiceName
from xds_server.model.slow import SlowDecision, SlowKind, SlowStatus
from xds_server.model.template import Flag
from xds_server.model.topology import Mesh, WeightsVia

OFF_RATIO: Final = 1.25
"""It has to save this many times its worth before it is switched off."""
ON_RATIO: Final = 0.75
"""Below this many times its worth it may be on again."""
OFF_TICKS: Final = 2
"""Slow ticks in a row that have to say so."""
ON_S: Final = 300.0
_LEFT_MIN: Final = 0.05
"""Less than this part of its calls left says nothing of what it would call if it were on."""

Variant: TypeAlias = tuple[ApplicationName, str]
"""An application under one template, by names: what has one set of features."""
_Key: TypeAlias = tuple[ApplicationName, str, str]


@dataclass(frozen=True, slots=True)
class _Saving:
    """What a feature costs while it is on."""

    usd_per_h: float
    breaches: bool  # time has no price there, and calls are too slow for their profile if it is on

    def ratio(self, flag: Flag) -> float:
        """In units of its worth."""
        return np.inf if self.breaches else self.usd_per_h / flag.worth_usd_per_h


@dataclass(slots=True)
class Switches:
    """Memory of what is off; bounded by the features that the mesh declares."""

    off: frozenset[_Key] = frozenset()
    asked: dict[_Key, int] = field(default_factory=dict)  # slow ticks in a row
    idle_since_s: dict[_Key, float] = field(default_factory=dict)
    changed_s: dict[_Key, float] = field(default_factory=dict)
    shown: dict[_Key, SlowStatus] = field(default_factory=dict)

    @property
    def _memories(self) -> tuple[dict[_Key, Any], ...]:
        return (self.asked, self.idle_since_s, self.changed_s, self.shown)

    @property
    def states(self) -> Mapping[Variant, Mapping[str, bool]]:
        """Features that are not as their default is."""
        states: dict[Variant, dict[str, bool]] = {}
        for application, template, name in sorted(self.off):
            states.setdefault((application, template), {})[name] = False
        return states

    def keep(self, mesh: Mesh) -> None:
        """Forget what the mesh does not declare any more, or gives to its operator."""
        known = {
            (application, template, flag.name)
            for application in mesh.applications
            for template in mesh.templates
            for flag in ours(mesh, template)
        }
        self.off &= known
        for memory in self._memories:
            for key in memory.keys() - known:
                del memory[key]

    def release(self) -> None:
        """Leave every feature at its default."""
        self.off = frozenset()
        for memory in self._memories:
            memory.clear()

    def look(
        self,
        mesh: Mesh,
        application: ApplicationName,
        variants: Iterable[str],
        optima: Mapping[ServiceName, Optima],
        *,
        enforced: bool,
        now_s: float,
    ) -> Work[tuple[SlowDecision, ...]]:
        """Switch at most one feature of an application, the one that matters most.

        Parameters
        ----------
        variants : templates under which it calls, by name
        optima : of the services of which its features save calls
        """
        found: list[tuple[float, _Key, SlowDecision]] = []
        for template in variants:
            for flag in ours(mesh, template):
                key = (application, template, flag.name)
                asked = [(optima[s], saves) for s, saves in flag.saves.items() if s in optima]
                saving = yield from _saving(asked, key, is_off=key in self.off)
                if decision := self._judge(key, flag, saving, enforced=enforced, now_s=now_s):
                    found.append((saving.ratio(flag), key, decision))
        found = sorted(found, key=lambda f: (-f[0], f[1]))[:1]
        if enforced:
            for _, key, decision in found:
                self._apply(key, decision, now_s)
        return tuple(decision for _, _, decision in found)

    def pending(self, application: ApplicationName) -> bool:
        """Whether another look may switch something off."""
        return any(n > 0 and key[0] == application for key, n in self.asked.items())

    def status(self, now_s: float) -> tuple[SlowStatus, ...]:
        """One row per feature that slow ticks have looked at."""
        return tuple(
            replace(
                row,
                state="off" if key in self.off else "on",
                since_s=now_s - self.changed_s[key] if key in self.changed_s else 0.0,
            )
            for key, row in sorted(self.shown.items())
        )

    def _judge(
        self, key: _Key, flag: Flag, saving: _Saving, *, enforced: bool, now_s: float
    ) -> SlowDecision | None:
        ratio, because = saving.ratio(flag), _because(flag, saving)
        target = f"{key[0]}/{flag.name}"
        if key in self.off:
            if ratio >= ON_RATIO:
                self.idle_since_s.pop(key, None)
                self._show(key, because)
                return None
            since_s = self.idle_since_s.setdefault(key, now_s)
            self._show(key, because, pending="on")
            if now_s - since_s < ON_S:
                return None
            return SlowDecision(SlowKind.FLAG, target, "on", because, enforced)
        ready = ratio > OFF_RATIO
        self.asked[key] = self.asked.get(key, 0) + 1 if ready else 0
        if self.asked[key] < OFF_TICKS:
            self._show(key, because, pending="off" if ready else "")
            return None
        self._show(key, because, recommended="" if enforced else "off")
        if not enforced and self.asked[key] > OFF_TICKS:
            return None  # said before
        return SlowDecision(SlowKind.FLAG, target, "off", because, enforced)

    def _apply(self, key: _Key, decision: SlowDecision, now_s: float) -> None:
        self.off = self.off | {key} if decision.action == "off" else self.off - {key}
        self.asked.pop(key, None)
        self.idle_since_s.pop(key, None)
        self.changed_s[key] = now_s
        self._show(key, decision.because)

    def _show(self, key: _Key, because: str, *, recommended: str = "", pending: str = "") -> None:
        target = f"{key[0]}/{key[2]}"
        self.shown[key] = SlowStatus(
            SlowKind.FLAG.value, target, "", recommended, pending, because, 0.0
        )


def ours(mesh: Mesh, template: str) -> tuple[Flag, ...]:
    """Features that the engine may switch: on by default, with what they save and are worth.

    They travel in runtime layers, so there are none where weights never do.
    """
    if mesh.engine.weights_via is WeightsVia.RDS:
        return ()
    return tuple(
        flag
        for flag in mesh.templates[template].flags
        if flag.owner == "engine" and flag.default and flag.saves and flag.worth_usd_per_h > 0.0
    )


def _saving(asked: Iterable[tuple[Optima, float]], key: _Key, *, is_off: bool) -> Work[_Saving]:
    """Compare the optima with the feature on and off, over the services of which it saves calls.

    Services share nothing, so what it costs is the sum over them.
    """
    application, template, _ = key
    usd_per_h, breaches = 0.0, False
    for optima, saves in asked:
        problem, evaluation = optima.problem, optima.evaluation
        mine = np.array(
            [
                r.group.application == application and problem.groups[r.group].template == template
                for r in problem.routes
            ],
            dtype=bool,
        )
        left, demand = np.where(mine, 1.0 - saves, 1.0), evaluation.demand_rps
        rps = demand / np.maximum(left, _LEFT_MIN) if is_off else demand * left
        now = yield from optima.now()
        then = yield from optima.of(problem, replace(evaluation, demand_rps=rps))
        on, off = (then, now) if is_off else (now, then)
        usd_per_h += optima.usd_per_h(on, off)
        breaches = breaches or _breaches(optima, on, off)
    return _Saving(usd_per_h, breaches)


def _breaches(optima: Optima, on: Settled, off: Settled) -> bool:
    """Whether calls are too slow if it is on, are helped if it is off, and time has no price."""
    evaluation = optima.evaluation
    relief_s = RELIEF_RATIO * evaluation.slo_s
    breaches = (
        (ms_per_usd(optima.problem, evaluation) <= 0.0)
        & (on.forecast.latency_p95_s > evaluation.slo_s)
        & (on.forecast.latency_p95_s - off.forecast.latency_p95_s > relief_s)
        & (off.evaluation.demand_rps > 0.0)
    )
    return bool(breaches.any())


def _because(flag: Flag, saving: _Saving) -> str:
    if saving.breaches:
        return "with it, calls are slower than a profile allows, and nothing has a price"
    return f"its calls cost {saving.usd_per_h:.3g} $/h, it is worth {flag.worth_usd_per_h:.3g} $/h"
