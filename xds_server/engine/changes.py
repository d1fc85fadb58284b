"""Suppositions: read as people write them, and put into a problem and its evaluation."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from xds_server.core import objective
from xds_server.core.tables import Bools, Floats
from xds_server.engine.types import Evaluation, Problem
from xds_server.model.ids import ProviderName
from xds_server.model.what_if import Change, Quantity

CHANGES_MAX: Final = 64
FORMS: Final = (
    "PROVIDER.price=USD, PROVIDER.capacity=RPS, PROVIDER.latency=xFACTOR, PROVIDER.endpoints=N, "
    "PROVIDER.down, demand=RPS; a number may be a factor, like x1.5"
)
_BOUNDS: Final = {
    Quantity.PRICE: (0.0, 1e12),
    Quantity.CAPACITY: (1e-6, 1e9),
    Quantity.ENDPOINTS: (0.0, 100_000.0),
    Quantity.DEMAND: (0.0, 1e9),
}
"""What is allowed of a value: up to what mesh.yaml allows."""
_FACTOR_MAX: Final = 1e6
_FACTOR_MIN: Final = 1e-6
"""Of what must be above 0. A model that is further from what was measured says nothing, and at the
ends of what floats hold its costs are no numbers."""
_DEAD_SERVICE_S: Final = 1e-9
"""A provider that is down answers nothing, so it adds nothing to the latency of answers."""


def parse_changes(texts: Sequence[str]) -> tuple[Change, ...]:
    """Read ``FORMS``. Raises ValueError that says what to write instead."""
    if not texts:
        raise ValueError(f"nothing is supposed to change; add --set: {FORMS}")
    if len(texts) > CHANGES_MAX:
        raise ValueError(f"{len(texts)} changes at once, at most {CHANGES_MAX} are answered")
    found = tuple(_parse(text.strip()) for text in texts)
    first: dict[tuple[str, Quantity], str] = {}
    for change in found:
        other = first.setdefault((change.provider, change.quantity), change.text)
        if other is not change.text:
            raise ValueError(f"{change.text}: {other} is said as well; keep one")
    return found


def _parse(text: str) -> Change:
    left, equals, right = text.partition("=")
    provider, _, name = left.rpartition(".")
    if name not in tuple(Quantity) or bool(provider) == (name == Quantity.DEMAND):
        raise ValueError(f"{text}: unknown; write one of {FORMS}")
    quantity = Quantity(name)
    if quantity is Quantity.DOWN:
        if equals:
            raise ValueError(f"{text}: {left} takes no value; write {left} alone")
        return Change(provider, quantity, 0.0, is_factor=True, text=text)
    is_factor = right.startswith("x")
    try:
        value = float(right.removeprefix("x"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0.0:
        raise ValueError(f"{text}: {right!r} is no number of 0 or more; write one of {FORMS}")
    _check_value(quantity, value, text, is_factor=is_factor)
    return Change(provider, quantity, value, is_factor, text)


def _check_value(quantity: Quantity, value: float, text: str, *, is_factor: bool) -> None:
    if quantity is Quantity.LATENCY and not is_factor:
        raise ValueError(f"{text}: a latency is changed by a factor; write it like x{value or 1.5}")
    if quantity in (Quantity.LATENCY, Quantity.CAPACITY) and value == 0.0:
        raise ValueError(f"{text}: must be above 0; write PROVIDER.down for one that is gone")
    if quantity is Quantity.ENDPOINTS and not is_factor and value != int(value):
        raise ValueError(f"{text}: endpoints are whole")
    least, most = _bounds(quantity, is_factor=is_factor)
    if not least <= value <= most:
        x, key = "x" if is_factor else "", text.partition("=")[0]
        raise ValueError(
            f"{key}: {x}{value:g} is out of bounds; {x}{least:g} to {x}{most:g} is allowed"
        )


def _bounds(quantity: Quantity, *, is_factor: bool) -> tuple[float, float]:
    if not is_factor:
        return _BOUNDS[quantity]
    above_0 = quantity in (Quantity.LATENCY, Quantity.CAPACITY)
    return (_FACTOR_MIN if above_0 else 0.0), _FACTOR_MAX


def check_providers(changes: Iterable[Change], service: str, known: Sequence[str]) -> None:
    """Raise ValueError unless every change is about a provider of the service."""
    for change in changes:
        if change.provider and change.provider not in known:
            raise ValueError(
                f"{change.text}: {change.provider} does not provide {service}; "
                f"its providers: {', '.join(known)}"
            )


def apply_changes(
    problem: Problem,
    evaluation: Evaluation,
    changes: Iterable[Change],
    endpoints: Mapping[ProviderName, int],
    asked: Bools,
) -> tuple[Problem, Evaluation]:
    """Return both as they would be; nothing that is given is changed.

    Parameters
    ----------
    evaluation : its price terms have the exchange rate that goes on to hold
    endpoints : how many each provider has now; absent: unknown, taken as 1
    asked : (R,) routes whose demand ``demand`` is about
    """
    row = {name: j for j, name in enumerate(problem.providers)}
    for change in changes:
        if change.quantity is Quantity.DEMAND:
            evaluation = _with_demand(evaluation, change, asked)
            continue
        j = row[change.provider]
        match change.quantity:
            case Quantity.PRICE:
                evaluation = _with_price(problem, evaluation, j, change)
            case Quantity.CAPACITY:
                now = float(evaluation.stations.capacity_rps[j])
                factor = change.value if change.is_factor else change.value / now
                evaluation = _with_stations(evaluation, j, capacity=factor)
            case Quantity.LATENCY:
                evaluation = _with_stations(evaluation, j, service=change.value)
            case Quantity.ENDPOINTS:
                now = float(endpoints.get(change.provider, 1))
                count = now * change.value if change.is_factor else change.value
                problem, evaluation = _with_endpoints(problem, evaluation, j, now, count)
            case Quantity.DOWN:
                problem, evaluation = _without(problem, evaluation, j, "down")
    return problem, evaluation


def ms_per_usd(problem: Problem, evaluation: Evaluation) -> Floats:
    """(R,) what a dollar per request is worth to each route, as its prices were weighed.

    0 where nothing costs anything: money is then no part of the objective.
    """
    costs, usd = evaluation.costs, evaluation.usd_per_request
    rate = np.where(usd > 0.0, (costs.price + costs.egress) / np.maximum(usd, 1e-15), 0.0)
    return problem.pairs.max_by_route(rate)


def _with_price(problem: Problem, before: Evaluation, j: int, change: Change) -> Evaluation:
    rate = ms_per_usd(problem, before)
    price = before.price_usd.copy()
    price[j] = price[j] * change.value if change.is_factor else change.value / 1e6
    provider, route = problem.pairs.provider, problem.pairs.route
    egress_usd = before.usd_per_request - before.price_usd[provider]
    return replace(
        before,
        price_usd=price,
        usd_per_request=price[provider] + egress_usd,
        costs=replace(before.costs, price=rate[route] * price[provider]),
    )


def _with_stations(
    before: Evaluation, j: int, *, service: float = 1.0, capacity: float = 1.0, servers: float = 1.0
) -> Evaluation:
    """Scale one provider's model; a slower service alone leaves its capacity as it is."""
    s = before.stations
    power = s.power
    if power is not None:  # has no capacity: the load at which it has risen so far moves
        power = replace(
            power,
            base_s=_times(power.base_s, j, service),
            rise_s=_times(power.rise_s, j, service),
            scale_rps=_times(power.scale_rps, j, capacity * servers),
        )
    stations = replace(
        s,
        service_s=_times(s.service_s, j, service),
        servers=np.maximum(_times(s.servers, j, servers), 1.0),
        kappa=_times(s.kappa, j, service * capacity),
        power=power,
    )
    return replace(before, stations=stations)


def _with_endpoints(
    problem: Problem, before: Evaluation, j: int, now: float, count: float
) -> tuple[Problem, Evaluation]:
    if count < 1.0:
        return _without(problem, before, j, "no endpoints")
    if now < 1.0:  # it was excluded for that alone: its model is of one endpoint
        back = (problem.pairs.provider == j) & np.array(
            [reason == "no endpoints" for reason in problem.excluded_because], dtype=bool
        )
        problem, before = _allow(problem, before, back, "")
    return problem, _with_stations(before, j, servers=count / max(now, 1.0))


def _without(
    problem: Problem, before: Evaluation, j: int, reason: str
) -> tuple[Problem, Evaluation]:
    """Let everything that is still sent there fail, at no price and without a latency."""
    mine = problem.pairs.provider == j
    failing = objective.error_ms(np.ones(1), problem.failure_ms[problem.pairs.route])
    error, price = before.error_ratio.copy(), before.price_usd.copy()
    error[j], price[j] = 1.0, 0.0
    costs = replace(
        before.costs,
        distance=np.where(mine, 0.0, before.costs.distance),
        error=np.where(mine, failing, before.costs.error),
        price=np.where(mine, 0.0, before.costs.price),
        egress=np.where(mine, 0.0, before.costs.egress),
    )
    gone = replace(
        _with_stations(before, j, service=_DEAD_SERVICE_S / before.stations.service_s[j]),
        error_ratio=error,
        price_usd=price,
        rtt_s=np.where(mine, 0.0, before.rtt_s),
        usd_per_request=np.where(mine, 0.0, before.usd_per_request),
        costs=costs,
    )
    return _allow(problem, gone, mine, reason)


def _allow(
    problem: Problem, before: Evaluation, pairs: Bools, reason: str
) -> tuple[Problem, Evaluation]:
    """Exclude pairs for that reason; with none, admit them."""
    reasons = tuple(
        reason if mine else old for mine, old in zip(pairs, problem.excluded_because, strict=True)
    )
    return (
        replace(
            problem,
            excluded_because=reasons,
            allowed=np.where(pairs, not reason, problem.allowed),
        ),
        replace(before, allowed=np.where(pairs, not reason, before.allowed)),
    )


def _with_demand(before: Evaluation, change: Change, asked: Bools) -> Evaluation:
    """Scale what the asked routes call, each in proportion; equally where none calls."""
    now = before.demand_rps
    total = float(now[asked].sum())
    if change.is_factor:
        wanted = now * change.value
    elif total > 0.0:
        wanted = now * change.value / total
    else:
        wanted = np.full_like(now, change.value / max(int(asked.sum()), 1))
    return replace(before, demand_rps=np.where(asked, wanted, now))


def _times(values: Floats, j: int, factor: float) -> Floats:
    out = values.copy()
    out[j] *= factor
    return out
