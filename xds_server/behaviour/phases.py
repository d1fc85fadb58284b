"""Which phase of its life each instance is in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import structlog

from xds_server.behaviour.rules import Rule, SignalHistory, instance_values, trended
from xds_server.model.ids import NodeId, PhaseName
from xds_server.model.telemetry import InstanceSignals
from xds_server.model.template import Template

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PhaseState:
    """The phase of one instance."""

    phase: PhaseName
    since_s: float
    previous: PhaseName | None


class PhaseTracker:
    """Applies templates' rules to instances, tick by tick.

    The first profile whose ``when`` holds is the phase. A phase lasts at least
    ``min_dwell_s``, except that an instance is born into whatever holds. A rule that fails on
    an instance (it asks for a service not called yet, say) does not hold; that is logged once.
    """

    def __init__(self) -> None:
        self._rules: dict[str, Rule] = {}
        self._trends: dict[tuple[str, ...], frozenset[str]] = {}
        self._failed: set[str] = set()
        self._histories: dict[NodeId, SignalHistory] = {}
        self._states: dict[NodeId, PhaseState] = {}

    def update(
        self,
        instances: Iterable[tuple[InstanceSignals, Template]],
        *,
        now_s: float,
        wall_s: float,
    ) -> Mapping[NodeId, PhaseState]:
        """Return the phase of every given instance; forgets all others."""
        present = set()
        for signals, template in instances:
            node_id = signals.node_id
            present.add(node_id)
            history = self._histories.setdefault(node_id, SignalHistory())
            if names := self._trended(template):  # all others are not asked for
                values = _numbers(signals)
                history.add({n: values[n] for n in names & values.keys()}, now_s)
            self._states[node_id] = self._next(signals, template, history, now_s, wall_s)
        for node_id in self._states.keys() - present:
            del self._states[node_id], self._histories[node_id]
        return dict(self._states)

    def _next(
        self,
        signals: InstanceSignals,
        template: Template,
        history: SignalHistory,
        now_s: float,
        wall_s: float,
    ) -> PhaseState:
        state = self._states.get(signals.node_id)
        names = {p.name for p in template.profiles}
        if state is not None and state.phase not in names:
            state = None  # the configuration changed under it
        if state is not None and now_s - state.since_s < template.phases.min_dwell_s:
            return state
        phase = self._matching(signals, template, history, now_s, wall_s)
        if state is None:
            return PhaseState(phase, now_s, None)
        return state if phase == state.phase else PhaseState(phase, now_s, state.phase)

    def _matching(
        self,
        signals: InstanceSignals,
        template: Template,
        history: SignalHistory,
        now_s: float,
        wall_s: float,
    ) -> PhaseName:
        flags = {f.name: f.default for f in template.flags}
        for profile in template.profiles:
            if profile.when is None:
                return profile.name
            try:
                if self._rule(profile.when).holds(
                    signals, history, flags, now_s=now_s, wall_s=wall_s
                ):
                    return profile.name
            except (KeyError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
                self._report(template.name, profile.name, profile.when, error)
        return template.profiles[-1].name

    def _trended(self, template: Template) -> frozenset[str]:
        rules = tuple(p.when for p in template.profiles if p.when is not None)
        if rules not in self._trends:
            self._trends[rules] = trended(rules)
        return self._trends[rules]

    def _rule(self, text: str) -> Rule:
        if text not in self._rules:
            self._rules[text] = Rule(text)
        return self._rules[text]

    def _report(self, template: str, profile: PhaseName, rule: str, error: Exception) -> None:
        if rule not in self._failed:  # bounded by the configuration's rules
            self._failed.add(rule)
            log.warning(
                "phase.rule_failed",
                template=template,
                profile=profile,
                rule=rule,
                error=f"{type(error).__name__}: {error}"[:500],
            )


def _numbers(signals: InstanceSignals) -> dict[str, float]:
    values = instance_values(signals)
    return {f.name: values[f.name] for f in fields(signals) if isinstance(values[f.name], float)}
