"""One tick as history takes it: names once per problem, numbers once per tick."""

import numpy as np

from xds_server.core import latency
from xds_server.core.calibration import Z_90
from xds_server.core.tables import Floats, Ints
from xds_server.engine.gain import Gains, decided_gains, gain_terms
from xds_server.engine.loop import Tick
from xds_server.engine.types import Problem
from xds_server.model.decision import MOVES, Move
from xds_server.model.history import (
    MOVES_EXPLAINED,
    OUTCOME_SUMS,
    Breach,
    Frame,
    SlotTables,
    TickRecord,
)
from xds_server.model.topology import Mesh

_HOLD = MOVES.index(Move.HOLD)


class Records:
    """Makes records; holds the frame of the problem that the last one was made for."""

    def __init__(self) -> None:
        self._problem: Problem | None = None
        self._frame: Frame | None = None

    def of(
        self,
        mesh: Mesh,
        problem: Problem,
        tick: Tick,
        slot: SlotTables,
        *,
        at_s: float,
        span_s: float,
        breaches: tuple[Breach, ...] = (),
    ) -> TickRecord:
        """Return the record of ``tick``, which ended ``at_s`` after the epoch."""
        if self._frame is None or problem is not self._problem:
            self._problem, self._frame = problem, _frame(mesh, problem)
        decision, deployed = tick.decision, tick.deployment
        explained = _explained(tick)
        gains = _gains(problem, tick) if len(explained) else None
        return TickRecord(
            at_s=at_s,
            span_s=span_s,
            frame=self._frame,
            slot=slot,
            provider_gauges=_provider_gauges(tick, problem.servers),
            pair_gauges=deployed.shares[:, None],
            route_gauges=_route_gauges(tick),
            outcomes=_outcomes(problem, tick),
            moves=tuple(MOVES[m].value for m in decision.move),
            hold_reasons=_reasons(tick),
            gain_ms=decision.gain_ms if gains is None else gains.net_ms,
            explained=explained,
            gain_terms={}
            if gains is None
            else gain_terms(problem, tick.evaluation, gains, explained),
            hold_predicted_s=decision.hold.latency_s,
            hold_usd_per_million=decision.hold.usd_per_million,
            weights=deployed.weights,
            breaches=breaches,
        )


def _reasons(tick: Tick) -> tuple[str, ...]:
    """(R,) why each route holds, or was reverted."""
    reasons = [r.value for r in tick.decision.hold_reason]
    for found in tick.reverted:
        reasons[found.row] = found.because
    return tuple(reasons)


def _explained(tick: Tick) -> Ints:
    """Rows of the routes that moved, those of the most traffic if there are too many."""
    moved = np.flatnonzero(tick.decision.move != _HOLD)
    if len(moved) > MOVES_EXPLAINED:
        most = np.argsort(-tick.evaluation.demand_rps[moved], kind="stable")
        moved = np.sort(moved[most[:MOVES_EXPLAINED]])
    return moved


def _gains(problem: Problem, tick: Tick) -> Gains:
    return decided_gains(problem, tick.evaluation, tick.simulated, tick.decision)


def _frame(mesh: Mesh, problem: Problem) -> Frame:
    known = mesh.providers
    return Frame(
        routes=problem.routes,
        providers=problem.providers,
        services=tuple(known[p].service if p in known else "" for p in problem.providers),
        pair_route=problem.pairs.route,
        pair_provider=problem.pairs.provider,
        groups=problem.group_keys,
        group_of_node=problem.group_of_node,
    )


def _provider_gauges(tick: Tick, servers: Floats) -> Floats:
    """(J, len(PROVIDER_GAUGES)) in that order."""
    evaluation, models = tick.evaluation, tick.lesson.models
    stations = evaluation.stations
    return np.column_stack(
        [
            latency.utilisation_ratio(stations, evaluation.observation.provider_rps),
            stations.capacity_rps,
            1e6 * evaluation.price_usd,
            np.exp(models.service.mean),  # NaN: nobody has measured it
            np.sqrt(models.service.variance),
            # Measured capacity over what as many servers would have at this service time.
            stations.capacity_rps * stations.service_s / servers,
            models.tail_ratio,
            models.errors.ratio,
            models.cv2,
        ]
    )


def _route_gauges(tick: Tick) -> Floats:
    """(R, len(ROUTE_GAUGES)) in that order."""
    evaluation, models, plan = tick.evaluation, tick.lesson.models, tick.deployment.forecast
    slo_s = np.where(np.isfinite(evaluation.slo_s), evaluation.slo_s, np.nan)
    return np.column_stack(
        [
            evaluation.demand_rps,
            plan.latency_s,
            plan.latency_p95_s,
            slo_s,
            plan.usd_per_million,
            models.calibration,
            models.budget_pressure,
        ]
    )


def _outcomes(problem: Problem, tick: Tick) -> Floats:
    """(R, len(OUTCOME_SUMS)) zeros where no forecast could be compared."""
    out = np.zeros((len(problem.routes), len(OUTCOME_SUMS)))
    found = tick.lesson.outcomes
    rows, z = found.route, found.z
    out[rows, 0] = 1.0
    out[rows, 1], out[rows, 2] = found.predicted_s, found.observed_s
    out[rows, 3], out[rows, 4] = z, z**2
    out[rows, 5] = np.abs(z) > Z_90
    return out
