"""Stories: what a slow tick may take, who comes first, and that nobody waits for ever."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.property.test_part import SERVICES, evaluation_of, mesh_of, problem_of
from xds_server.core import latency, solver
from xds_server.engine.agenda import PENDING_TICKS, Agenda, Question, declare
from xds_server.engine.loop import Tick
from xds_server.engine.offline import look
from xds_server.engine.problem import build_problem
from xds_server.engine.slow import SLICE_PAIRS, SlowLoop
from xds_server.engine.state import initial_state
from xds_server.engine.types import Problem
from xds_server.engine.work import STEP_PAIRS
from xds_server.model.slow import SlowDecision, SlowKind
from xds_server.model.template import Flag
from xds_server.model.topology import Application, Mesh, Mode, Scale, Service

EVERY_S = 5.0


def declaring(mesh: Mesh) -> Mesh:
    """Scale bounds for all, one on standby in each service, a feature of each application."""
    services = {}
    for name, service in mesh.services.items():
        first, *rest = (
            replace(p, scale=Scale("process", 1, 8, 0.0), standby=False) for p in service.providers
        )
        spare = replace(first, standby=True, baseline_weight=0)
        services[name] = Service(name, (spare, *rest))
    templates = {
        name: replace(
            t,
            flags=(Flag("extra", True, saves={t.calls[0].service: 0.4}, worth_usd_per_h=1.0),),
        )
        for name, t in mesh.templates.items()
    }
    applications = {
        n: Application(n, templates[a.template.name]) for n, a in mesh.applications.items()
    }
    settings = replace(mesh.engine, slow_tick_s=EVERY_S)
    return replace(
        mesh, services=services, templates=templates, applications=applications, engine=settings
    )


class Frozen:
    """A mesh whose evaluation stays as it is; only slow ticks go on."""

    def __init__(self, seed: int = 4, load: float = 0.8) -> None:
        rng = np.random.default_rng(seed)
        mesh, self.groups = mesh_of(rng)
        self.mesh = declaring(mesh)
        self.problem: Problem = problem_of(self.mesh, self.groups)
        evaluation = evaluation_of(rng, self.problem, load)
        self.evaluation = replace(evaluation, measured=np.ones_like(evaluation.measured))
        self.counts = dict.fromkeys(self.problem.providers, 2)
        self.slow = SlowLoop()
        self.slow.set_mesh(self.mesh)
        self.now_s = 0.0
        seen = look(initial_state(self.problem), self.mesh.engine, {}, 0.0)
        self.tick: Tick = replace(seen, evaluation=self.evaluation)

    def run(self, ticks: int) -> Iterator[tuple[float, tuple[SlowDecision, ...]]]:
        """Yield what was decided at each tick."""
        for _ in range(ticks):
            found = self.slow.run(self.mesh, self.problem, self.tick, self.counts, self.now_s)
            yield self.now_s, found
            self.now_s += 1.0

    def begun(self, ticks: int) -> list[tuple[float, SlowKind, str]]:
        """What was asked at which tick, in that order."""
        found = []
        for now_s, _ in self.run(ticks):
            looked_s = self.slow.agenda.looked_s.items()
            found += [(now_s, *asked) for asked, at_s in looked_s if at_s == now_s]
        return found


def sliced(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    monkeypatch.setattr("xds_server.engine.slow.SLICE_PAIRS", pairs)


def test_a_tick_takes_a_slice_and_one_step_at_most_and_a_slice_on_average(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mesh, taken = Frozen(), [0]

    def counted(*args: Any, **options: Any) -> Any:
        taken[-1] += STEP_PAIRS + len(args[1])
        return solve(*args, **options)

    solve = solver.solve
    monkeypatch.setattr("xds_server.core.solver.solve", counted)
    slice_pairs = 3 * STEP_PAIRS
    sliced(monkeypatch, slice_pairs)
    taken.extend(0 for _ in mesh.run(60))
    step = STEP_PAIRS + len(mesh.evaluation.allowed)
    assert 0 < max(taken) <= slice_pairs + step
    assert sum(taken) <= slice_pairs * 60
    assert taken.count(0) < 20  # there is more to do than there is time for


def test_each_has_its_turn_and_the_dearest_congestion_has_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mesh = Frozen()
    mesh.mesh = replace(mesh.mesh, mode=Mode.RECOMMEND)  # what is changed would have to wait
    sliced(monkeypatch, 3 * STEP_PAIRS)
    found = mesh.begun(600)
    e, pairs = mesh.evaluation, mesh.problem.pairs
    rps = pairs.sum_by_provider(e.demand_rps[pairs.route] * e.shares_now)
    rent = dict(zip(mesh.problem.providers, rps * latency.wait_s(e.stations, rps), strict=True))
    scaled = [target for _, kind, target in found if kind is SlowKind.SCALE]
    asked = {name for name in rent if not mesh.mesh.providers[name].standby}
    assert set(scaled) == asked
    assert scaled[: len(asked)] == sorted(asked, key=lambda name: -rent[name])
    served = [target for _, kind, target in found if kind is SlowKind.SUBSTITUTE]
    assert set(served) == set(SERVICES)
    called = {name: sum(rent[p] for p in rent if p.startswith(name)) for name in SERVICES}
    assert served[0] == max(called, key=called.__getitem__)
    assert {target for _, kind, target in found if kind is SlowKind.FLAG} == {"a0", "a1", "a2"}
    for target in asked:  # again, and not only those that are about to change
        assert scaled.count(target) > 1
    again = [
        now_s for now_s, kind, target in found if (kind, target) == (SlowKind.SCALE, scaled[0])
    ]
    assert min(np.diff(again)) >= EVERY_S


def test_what_was_interrupted_comes_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = Frozen(), Frozen()
    # One look each: what the second says depends on the first.
    for mesh in (whole, parts):
        mesh.mesh = replace(mesh.mesh, engine=replace(mesh.mesh.engine, slow_tick_s=1e4))
    whole.now_s = parts.now_s = 1e4 - 1.0
    for mesh in (whole, parts):
        mesh.slow.agenda.since_s, mesh.slow._due_s = 0.0, 1e4
    sliced(monkeypatch, 10**9)
    decided = [found for _, found in whole.run(3) if found]
    sliced(monkeypatch, STEP_PAIRS)
    ticks = [now_s for now_s, _ in parts.run(3000) if parts.slow._asked is not None]
    assert len(decided) <= 1
    assert len(ticks) > 50
    told = [{row.target: row.because for row in m.slow.status(0.0)} for m in (whole, parts)]
    assert len(told[0]) > 8
    assert told[0] == told[1]


def test_who_has_nobody_left_is_answered_at_once_whatever_else_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mesh = Frozen()
    sliced(monkeypatch, 1)
    assert not any(found for _, found in mesh.run(30))
    assert mesh.slow._asked is not None  # a slice is far from enough
    endpoints = {
        name: () if p.service == "mail" and not p.standby else p.endpoints
        for name, p in mesh.mesh.providers.items()
    }
    mesh.problem = build_problem(mesh.mesh, endpoints, mesh.groups)
    ((_, found),) = mesh.run(1)
    assert [(d.target, d.action) for d in found] == [("mail-0", "enter")]
    assert mesh.slow.substitutes.active == {"mail-0"}
    assert not any(found for _, found in mesh.run(1))  # once


def test_a_look_outlives_a_change_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Frozen()
    sliced(monkeypatch, STEP_PAIRS)
    for _ in mesh.run(200):
        if mesh.slow._asked is not None:
            break
    ((_, before),) = list(mesh.slow.agenda.looked_s.items())[:1]
    asked = mesh.slow._asked
    mesh.problem = problem_of(mesh.mesh, mesh.groups[:-1])
    kept = np.array([key in mesh.problem.routes for key in Frozen().problem.routes])
    seen = look(initial_state(mesh.problem), mesh.mesh.engine, {}, 0.0)
    demand = mesh.evaluation.demand_rps[kept]
    mesh.tick = replace(seen, evaluation=replace(seen.evaluation, demand_rps=demand))
    assert asked is not None
    for now_s, _ in mesh.run(200):
        if mesh.slow._asked is not asked:
            assert now_s > before
            break
    else:
        raise AssertionError("it was never answered")
    assert asked[0].kind is SlowKind.SUBSTITUTE
    assert any(row.kind == "substitute" for row in mesh.slow.status(0.0))


def test_what_was_changed_is_left_alone_for_a_slow_tick() -> None:
    mesh = Frozen()
    agenda, declared = Agenda(since_s=0.0), declare(mesh.mesh, mesh.problem)

    def due(now_s: float) -> Iterator[Question]:
        return agenda.due(declared, mesh.evaluation, lambda _: True, lambda _: False, now_s)

    assert list(due(EVERY_S - 1.0)) == []
    asked = due(EVERY_S)
    first = next(asked)
    assert first.kind is SlowKind.SUBSTITUTE
    agenda.change(first.services, EVERY_S)
    others = list(asked)
    assert {q.kind for q in others} == set(SlowKind)
    assert not any(set(q.services) & set(first.services) for q in others)
    assert list(due(2.0 * EVERY_S - 1.0)) == []
    assert len(list(due(2.0 * EVERY_S))) == len(agenda.looked_s) > len(others) + 1


def test_who_is_about_to_change_is_looked_at_before_who_was_asked_longer_ago() -> None:
    mesh = Frozen()
    agenda, declared = Agenda(since_s=0.0), declare(mesh.mesh, mesh.problem)
    ahead = {"mail"}

    def served(now_s: float) -> list[str]:
        asked = agenda.due(
            declared, mesh.evaluation, lambda _: True, lambda q: q.target in ahead, now_s
        )
        return [q.target for q in asked if q.kind is SlowKind.SUBSTITUTE]

    assert len(served(EVERY_S)) == len(SERVICES)
    agenda.looked_s[SlowKind.SUBSTITUTE, "mail"] += 2.0 * EVERY_S
    assert served(4.0 * EVERY_S)[0] == "mail"
    # Nobody is put off for ever.
    agenda.looked_s[SlowKind.SUBSTITUTE, "auth"] -= (PENDING_TICKS + 1.0) * EVERY_S
    assert served(5.0 * EVERY_S)[0] == "auth"


def test_a_slice_is_enough_for_a_small_mesh() -> None:
    mesh = Frozen()
    found = mesh.begun(12)
    assert SLICE_PAIRS >= 50 * STEP_PAIRS
    assert {now_s for now_s, *_ in found} <= {EVERY_S + n for n in range(7)}
    assert len({target for _, _, target in found}) == len(mesh.slow.agenda.looked_s)
