"""Blocks of pairs that share no provider: how they are laid out, and that they are solved alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xds_server.core import blocks, latency, limits, solver
from xds_server.core.blocks import blocks_of
from xds_server.core.latency import Stations
from xds_server.core.tables import Floats, Pairs

seeds = st.integers(0, 10_000)


def mesh(seed: int, services: int = 8, *, crowd: int = 0) -> Pairs:
    """Services of all sizes, some pairs missing, providers in any order; some without a caller.

    ``crowd`` providers more are shared in a ring: one block that is far from dense.
    """
    rng = np.random.default_rng(seed)
    rows: list[list[int]] = []
    providers = 0
    for _ in range(services):
        width = int(rng.choice([1, 2, 3, 5, 8, 20]))
        for _ in range(int(rng.choice([1, 2, 7, 30]))):
            mine = np.flatnonzero(rng.random(width) < 0.9)
            rows.append([providers + k for k in (mine if len(mine) else [0])])
        providers += width
    rows += [sorted({providers + k, providers + (k + 1) % crowd}) for k in range(crowd)]
    rng.shuffle(rows)
    count = providers + crowd
    name = rng.permutation(count)
    return Pairs(
        np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        np.concatenate([name[row] for row in rows]).astype(np.int64),
        len(rows),
        count,
    )


def question(pairs: Pairs, seed: int, load: float = 0.6):
    rng = np.random.default_rng(seed)
    p, j = len(pairs.route), pairs.providers
    stations = Stations(
        rng.uniform(0.005, 0.05, j),
        rng.integers(1, 16, j).astype(float),
        np.ones(j),
        rng.uniform(0.5, 2.0, j),
        np.full(j, 2.0),
    )
    allowed = rng.random(p) < 0.9
    demand = rng.uniform(0.5, 2.0, pairs.routes)
    demand *= load * stations.capacity_rps.sum() / demand.sum()
    now = limits.onto_allowed(pairs, rng.uniform(0.1, 1.0, p), allowed)
    # As the engine does: reluctance in proportion to the route's present mean latency.
    mean = latency.mean_s(stations, pairs.sum_by_provider(demand[pairs.route] * now))
    tau = 0.3e3 * np.maximum(pairs.sum_by_route(now * mean[pairs.provider]), 1e-4)
    return allowed, now, demand, rng.uniform(0.0, 40.0, p), tau, stations


def answer(pairs: Pairs, price_ms: Floats, allowed, now, fixed, tau) -> Floats:
    """What each route does at these prices, by the definition."""
    anchor = np.log(np.maximum(now, solver.SHARE_FLOOR))
    logits = anchor - (fixed + price_ms[pairs.provider]) / tau[pairs.route]
    return solver.softmax_by_route(pairs, logits, allowed)[0]


@given(seeds, st.sampled_from([0, 90]))
@settings(max_examples=60, deadline=None)
def test_every_pair_has_one_cell_and_every_cell_is_of_its_route_and_provider(
    seed: int, crowd: int
) -> None:
    pairs = mesh(seed, crowd=crowd)
    found = blocks_of(pairs)
    own = [block.own_pair for block in found.dense]
    if found.sparse is not None:
        own.append(found.sparse.own_pair)
        rest = found.sparse
        assert np.array_equal(rest.route[rest.pairs.route], pairs.route[rest.own_pair])
        assert np.array_equal(rest.provider[rest.pairs.provider], pairs.provider[rest.own_pair])
    assert np.array_equal(np.sort(np.concatenate(own)), np.arange(len(pairs.route)))
    assert (found.sparse is None) == (crowd == 0)
    for block in found.dense:
        assert np.array_equal(block.pair.ravel()[block.own_cell], block.own_pair)
        assert block.present.sum() == len(block.own_pair)
        k, b, n = np.nonzero(block.present)
        pair = block.pair[block.present]
        assert np.array_equal(block.route[b, n], pairs.route[pair])
        assert np.array_equal(block.provider[k, b], pairs.provider[pair])
        assert block.routed[b, n].all()
        assert block.provided[k, b].all()


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_cells_are_bounded_by_the_pairs(seed: int) -> None:
    pairs = mesh(seed, services=30)
    cells = [block.pair.size for block in blocks_of(pairs).dense]
    most = len(pairs.route) / blocks.FILLED_RATIO / (1.0 - blocks.WASTE_RATIO)
    assert sum(cells) <= most + blocks.WASTE_CELLS * len(cells)


def test_one_giant_service_that_few_share_takes_no_more_memory_than_its_pairs() -> None:
    rng = np.random.default_rng(1)
    routes, providers = 5_000, 2_000
    pairs = Pairs(
        np.repeat(np.arange(routes), 4),
        np.concatenate([rng.choice(providers, 4, replace=False) for _ in range(routes)]),
        routes,
        providers,
    )
    found = blocks_of(pairs)
    assert found.sparse is not None
    assert sum(block.pair.size for block in found.dense) == 0
    assert blocks_of(pairs) is found


@given(seeds, st.sampled_from([0, 90]), st.floats(0.1, 1.5))
@settings(max_examples=40, deadline=None)
def test_every_block_comes_to_its_optimum(seed: int, crowd: int, load: float) -> None:
    """At the optimum routes answer to prices that are the marginals of what they then ask for."""
    pairs = mesh(seed, crowd=crowd)
    allowed, now, demand, fixed, tau, stations = question(pairs, seed, load)
    found = solver.solve(pairs, allowed, now, demand, fixed, tau, stations, gap_ratio=1e-10)
    rps = pairs.sum_by_provider(demand[pairs.route] * found.shares)
    marginal = 1e3 * latency.marginal_s(stations, rps)[0]
    assert found.gap_ratio < 1e-7
    assert np.sum(rps * np.abs(found.price_ms - marginal)) < 1e-3 * np.sum(rps * marginal)
    wanted = answer(pairs, found.price_ms, allowed, now, fixed, tau)
    np.testing.assert_allclose(found.shares, wanted, atol=1e-9)


def test_a_service_is_solved_the_same_whoever_else_is_in_the_mesh() -> None:
    pairs = mesh(3)
    allowed, now, demand, fixed, tau, stations = question(pairs, 3)
    whole = solver.solve(pairs, allowed, now, demand, fixed, tau, stations)
    for block in blocks_of(pairs).dense:
        for b in range(block.pair.shape[1]):
            mine = np.sort(block.pair[:, b][block.present[:, b]])
            routes, row = np.unique(pairs.route[mine], return_inverse=True)
            few = Pairs(row, pairs.provider[mine], len(routes), pairs.providers)
            alone = solver.solve(
                few, allowed[mine], now[mine], demand[routes], fixed[mine], tau[routes], stations
            )
            np.testing.assert_allclose(alone.shares, whole.shares[mine], atol=1e-9)


@pytest.mark.parametrize("what", ["no demand", "all masked", "no capacity", "one provider"])
@pytest.mark.parametrize("crowd", [0, 90])
def test_odd_meshes_give_finite_plans(what: str, crowd: int) -> None:
    pairs = mesh(5, crowd=crowd)
    if what == "one provider":
        pairs = Pairs(np.arange(4), np.array([0, 1, 0, 2]), 4, 4)
    allowed, now, demand, fixed, tau, stations = question(pairs, 5)
    allowed |= what != "all masked"
    if what == "no demand":
        demand = demand * 0.0
    elif what == "all masked":
        allowed &= pairs.route != 0
    elif what == "no capacity":
        stations = Stations(
            stations.service_s,
            stations.servers,
            stations.kappa * (np.arange(pairs.providers) % 3 != 0),
            stations.variability,
            stations.tail_ratio,
        )
    found = solver.solve(pairs, allowed, now, demand, fixed, tau, stations)
    served = pairs.any_by_route(allowed)
    np.testing.assert_allclose(pairs.sum_by_route(found.shares), served.astype(float))
    assert (found.shares[~allowed] == 0.0).all()
    assert np.isfinite(found.price_ms).all()
    assert np.isfinite(found.gap_ratio)


def test_a_mesh_without_routes_has_prices_and_nothing_else() -> None:
    pairs = Pairs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), 0, 2)
    stations = Stations(*(np.ones(2),) * 5)
    none = np.empty(0)
    found = solver.solve(pairs, none.astype(bool), none, none, none, none, stations)
    assert len(found.shares) == 0
    np.testing.assert_allclose(found.price_ms, 1e3)
