"""What endpoints and time are worth."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xds_server.core.scaling import best_count, counts_to_try, usd_per_h

RELIEFS = st.floats(-100.0, 100.0)
PRICES = st.floats(0.0, 50.0)


@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 100))
def test_what_is_tried_is_within_bounds_and_has_the_present(now: int, low: int, more: int) -> None:
    counts = counts_to_try(now, low, low + more).tolist()
    assert now in counts
    assert counts == sorted(set(counts))
    assert all(low <= n <= low + more or n == now for n in counts)


@given(st.data(), st.integers(1, 40), PRICES, PRICES)
def test_dearer_endpoints_are_never_more(
    data: st.DataObject, now: int, one: float, other: float
) -> None:
    counts = counts_to_try(now, 1, 80)
    relief = np.array([data.draw(RELIEFS) for _ in counts])
    cheap, dear = sorted((one, other))
    assert best_count(now, counts, relief, dear)[0] <= best_count(now, counts, relief, cheap)[0]


@given(st.data(), st.integers(1, 40), PRICES)
def test_a_change_is_only_made_for_a_gain(data: st.DataObject, now: int, price: float) -> None:
    counts = counts_to_try(now, 1, 80)
    relief = np.array([data.draw(RELIEFS) for _ in counts])
    best, gain = best_count(now, counts, relief, price)
    assert gain >= 0.0
    assert (gain > 0.0) == (best != now)
    assert gain <= relief[counts.tolist().index(best)] - price * (best - now) + 1e-6 or best == now


def test_more_endpoints_are_worth_it_exactly_above_their_price_and_a_tenth() -> None:
    counts = np.array([2, 3])
    assert best_count(2, counts, np.array([0.0, 1.12]), 1.0)[0] == 3
    assert best_count(2, counts, np.array([0.0, 1.09]), 1.0)[0] == 2


def test_what_may_not_be_is_not_chosen() -> None:
    assert best_count(2, np.array([1, 2]), np.array([-np.inf, 0.0]), 5.0)[0] == 2


def test_time_has_a_price_only_where_money_is_part_of_the_objective() -> None:
    one = np.array([100.0])
    # 100 requests/s, 20 ms shorter, 1000 ms a dollar: 2 dollars a second.
    assert usd_per_h(one, np.array([20.0]), np.array([1e3])) == 7200.0
    assert usd_per_h(one, np.array([20.0]), np.array([0.0])) == 0.0
