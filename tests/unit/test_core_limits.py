import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xds_server.core import limits
from xds_server.core.tables import Pairs

SHAPE = st.tuples(st.integers(1, 6), st.integers(1, 6))


def dense(routes: int, providers: int) -> Pairs:
    return Pairs(
        np.repeat(np.arange(routes), providers),
        np.tile(np.arange(providers), routes),
        routes,
        providers,
    )


@st.composite
def plans(draw: st.DrawFn) -> tuple[Pairs, np.ndarray, np.ndarray]:
    routes, providers = draw(SHAPE)
    pairs = dense(routes, providers)
    raw = draw(arrays(float, routes * providers, elements=st.floats(0.0, 1.0)))
    allowed = draw(arrays(bool, routes * providers))
    return pairs, limits.onto_allowed(pairs, raw, allowed), allowed


@given(plans())
def test_shares_sum_to_one_over_every_route_that_has_an_allowed_provider(plan) -> None:
    pairs, shares, allowed = plan
    served = pairs.sum_by_route(allowed.astype(float)) > 0
    assert np.allclose(pairs.sum_by_route(shares), served.astype(float))
    assert np.all(shares[~allowed] == 0.0)


@given(plans())
def test_weights_sum_exactly_and_no_share_is_lost_to_rounding(plan) -> None:
    pairs, shares, _ = plan
    weights = limits.to_weights(pairs, shares)
    total = pairs.sum_by_route(weights.astype(float))
    served = pairs.sum_by_route(shares) > 0
    assert np.array_equal(total, np.where(served, limits.WEIGHT_TOTAL, 0))
    assert np.all(weights[shares > 0.0] >= 1)
    assert np.all(weights[shares == 0.0] == 0)
    assert np.all(np.abs(weights - shares * limits.WEIGHT_TOTAL) <= pairs.providers + 1)


@given(plans(), st.floats(0.0, 0.6))
def test_floors_hold_and_sums_stay(plan, floor: float) -> None:
    pairs, shares, allowed = plan
    floors = np.full(len(shares), floor)
    out = limits.with_floor(pairs, shares, allowed, floors)
    served = pairs.sum_by_route(allowed.astype(float))
    assert np.allclose(pairs.sum_by_route(out), (served > 0).astype(float))
    least = np.minimum(floor, 0.5 / np.maximum(served, 1.0))[pairs.route]
    assert np.all(out[allowed] >= least[allowed] - 1e-12)


@given(plans(), st.floats(0.01, 1.0))
def test_no_step_moves_more_than_it_may(plan, most: float) -> None:
    pairs, after, allowed = plan
    before = limits.onto_allowed(pairs, np.ones(len(after)), allowed)
    out = limits.limit_shift(pairs, before, after, most)
    assert np.all(limits.moved_ratio(pairs, before, out) <= most + 1e-9)
    assert np.allclose(pairs.sum_by_route(out), pairs.sum_by_route(before))
    assert np.all(out >= -1e-12)


def test_a_route_without_any_provider_gets_no_weight() -> None:
    pairs = dense(1, 3)
    shares = limits.onto_allowed(pairs, np.ones(3), np.zeros(3, dtype=bool))
    assert limits.to_weights(pairs, shares).tolist() == [0, 0, 0]
