"""Decisions and anomalies: written when something changes, not every tick."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xds_server.core.tables import Ints
from xds_server.history.schema import PAIR, ROUTE
from xds_server.model.decision import Move
from xds_server.model.history import ROUTE_GAUGES, Breach, TickRecord

Columns = dict[str, NDArray[Any]]

DECISIONS_PER_TICK: Final = 100
"""Decisions kept of one tick, those of the most traffic first; the rest is counted."""
ANOMALIES_PER_TICK: Final = 100
"""Beginnings and ends noted in one tick; more wait for the next."""
BREACHES_KNOWN: Final = 10_000
"""Breaches that are followed at once; more are not noticed until some of them end."""

_DEMAND, _PREDICTED, _USD = (
    ROUTE_GAUGES.index(name) for name in ("demand_rps", "predicted_s", "usd_per_million")
)


class DecisionLog:
    """Picks the decisions worth keeping: moves, and holds for another reason than before."""

    def __init__(self) -> None:
        self._reason: dict[int, str] = {}  # by series; cleared with the frame
        self._frame: object = None

    def rows(
        self, record: TickRecord, ids: Mapping[str, Ints], dropped: Counter[str]
    ) -> Iterator[tuple[str, Columns]]:
        """Yield rows of ``decision``, ``decision_weight`` and ``decision_term``."""
        routes, pairs = ids[ROUTE.name], ids[PAIR.name]
        if record.frame is not self._frame:
            self._frame = record.frame
            self._reason = {i: r for i, r in self._reason.items() if i in set(routes.tolist())}
        chosen = self._news(record, routes)
        demand = record.route_gauges[:, _DEMAND]
        if len(chosen) > DECISIONS_PER_TICK:
            dropped["decisions"] += len(chosen) - DECISIONS_PER_TICK
            most = np.argsort(-np.nan_to_num(demand[chosen]), kind="stable")
            chosen = np.sort(chosen[most[:DECISIONS_PER_TICK]])
        at_us = round(record.at_s * 1e6)
        yield (
            "decision",
            {
                "at_utc": np.full(len(chosen), at_us, dtype=np.int64),
                "series": routes[chosen],
                "move": np.array([record.moves[r] for r in chosen], dtype=object),
                "hold_reason": np.array([record.hold_reasons[r] for r in chosen], dtype=object),
                "gain_ms": record.gain_ms[chosen],
                "demand_rps": demand[chosen],
                "predicted_s": record.route_gauges[chosen, _PREDICTED],
                "hold_predicted_s": record.hold_predicted_s[chosen],
                "usd_per_million": record.route_gauges[chosen, _USD],
                "hold_usd_per_million": record.hold_usd_per_million[chosen],
            },
        )
        mine = np.isin(record.frame.pair_route, chosen) & (pairs > 0)
        yield (
            "decision_weight",
            {
                "at_utc": np.full(int(mine.sum()), at_us, dtype=np.int64),
                "series": pairs[mine],
                "weight": record.weights[mine],
            },
        )

        yield "decision_term", _term_rows(record, routes, chosen, at_us)

    def _news(self, record: TickRecord, routes: Ints) -> Ints:
        found = []
        for r, (series, move, reason) in enumerate(
            zip(routes.tolist(), record.moves, record.hold_reasons, strict=True)
        ):
            if not series:
                continue
            moved = move != Move.HOLD.value
            if moved or self._reason.get(series) != reason:
                found.append(r)
            self._reason[series] = reason
        return np.array(found, dtype=np.int64)


def _term_rows(record: TickRecord, routes: Ints, chosen: Ints, at_us: int) -> Columns:
    """Gains of the chosen moves by term, but for terms that are 0."""
    mine = np.isin(record.explained, chosen)
    series = [np.empty(0, dtype=np.int64)]
    names: list[str] = []
    values = [np.empty(0)]
    for name, gain_ms in record.gain_terms.items():
        some = mine & (gain_ms != 0.0)
        series.append(routes[record.explained[some]])
        names += [name] * int(some.sum())
        values.append(gain_ms[some])
    return {
        "at_utc": np.full(len(names), at_us, dtype=np.int64),
        "series": np.concatenate(series),
        "term": np.array(names, dtype=object),
        "gain_ms": np.concatenate(values),
    }


class AnomalyLog:
    """Notes when an instance leaves a declared band, and when it is back."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, str], Breach] = {}

    def rows(self, record: TickRecord) -> Columns:
        """Rows of ``anomaly``: what began and what ended in this tick."""
        now = {(b.node_id, b.band, b.service): b for b in record.breaches}
        begun = [key for key in now if key not in self._open]
        ended = [key for key in self._open if key not in now][:ANOMALIES_PER_TICK]
        room = max(0, BREACHES_KNOWN - len(self._open) + len(ended))
        kept = begun[: min(room, ANOMALIES_PER_TICK)]
        events = [("breach", now[key]) for key in kept]
        events += [("ok", self._open[key]) for key in ended]
        for key in ended:
            del self._open[key]
        self._open.update((key, now[key]) for key in kept)
        return _anomaly_rows(events, round(record.at_s * 1e6))


def _anomaly_rows(events: list[tuple[str, Breach]], at_us: int) -> Columns:
    def words(values: list[str]) -> NDArray[Any]:
        return np.array(values, dtype=object)

    found = [breach for _, breach in events]
    return {
        "at_utc": np.full(len(events), at_us, dtype=np.int64),
        "state": words([state for state, _ in events]),
        "node_id": words([b.node_id for b in found]),
        "application": words([b.application for b in found]),
        "phase": words([b.phase for b in found]),
        "band": words([b.band for b in found]),
        "service": words([b.service for b in found]),
        "value": np.array([b.value for b in found], dtype=np.float64),
        "low": np.array([b.low for b in found], dtype=np.float64),
        "high": np.array([b.high for b in found], dtype=np.float64),
    }
