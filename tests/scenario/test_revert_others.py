"""What speaks for a provider that is accused of harm, and when its freezing ends early."""

from dataclasses import replace

import numpy as np

from tests.scenario.harm import settled
from xds_server.engine.revert import FREEZE_S
from xds_server.engine.trials import Trials


def freeze_east(plane) -> None:  # type: ignore[no-untyped-def]
    """As after a revert at this moment; the trial began while all was well."""
    problem, models = plane.state.problem, plane.state.models
    pairs = problem.pairs
    mine = pairs.provider == problem.providers.index("east")
    pair = plane.state.trials.pair
    rps = pairs.sum_by_provider(models.demand_rps[pairs.route] * plane.state.shares)
    plane.state.trials = Trials(
        replace(plane.state.trials.route, frozen_rps=models.demand_rps),
        replace(
            pair,
            frozen_until_s=np.where(mine, plane.now_s + FREEZE_S, pair.frozen_until_s),
            frozen_service_s=np.exp(models.service.mean)[pairs.provider],
            frozen_rps=rps[pairs.provider],
        ),
    )


def frozen(plane) -> bool:  # type: ignore[no-untyped-def]
    return bool((plane.state.trials.pair.frozen_until_s > plane.now_s).any())


def test_who_was_slow_without_the_load_as_well_is_free_once_it_is_well() -> None:
    for seed in range(5):
        plane = settled(seed)
        freeze_east(plane)
        plane.stations["east"].service_s *= 5.0
        plane.step(15)
        assert plane.shares["east"] < 0.05
        assert frozen(plane)
        plane.stations["east"].service_s /= 5.0
        plane.step(20)
        assert not frozen(plane)


def test_who_is_well_as_soon_as_it_is_without_the_load_stays_frozen() -> None:
    for seed in range(5):
        plane = settled(seed)
        freeze_east(plane)
        plane.stations["east"].price_usd_per_million = 50.0  # nobody wants it: it is idle, and well
        plane.step(60)
        assert plane.shares["east"] < 0.05
        assert frozen(plane)
