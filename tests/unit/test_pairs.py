"""Rows are allotted once per pair, used again, and bounded."""

from xds_server.registry.pairs import PairRows


def names(count: int) -> tuple[str, ...]:
    return tuple(f"p{i:03}" for i in range(count))


def test_a_pair_keeps_its_row_and_a_freed_one_is_used_again() -> None:
    pairs = PairRows(3)
    assert pairs.allot("a", ("x", "y")).tolist() == [0, 1]
    assert pairs.allot("a", ("y", "z", "x")).tolist() == [1, 2, 0]
    assert pairs.allot("b", ("x",)).tolist() == [-1]
    assert pairs.keep_providers(["x", "z"]) == [1]
    assert (pairs.pairs, pairs.used) == (2, 3)
    assert pairs.allot("b", ("x",)).tolist() == [1]
    assert sorted(pairs.forget("a")) == [0, 2]
    index = pairs.index()
    assert (index.nodes, index.providers, index.rows.tolist()) == (("b",), ("x",), [1])


def test_tables_grow_by_doubling_or_by_what_one_message_needs_up_to_the_bound() -> None:
    pairs = PairRows(1000)
    pairs.allot("a", names(3))
    assert pairs.missing(0) == 64
    assert pairs.missing(64) == 0
    pairs.allot("b", names(90))
    assert pairs.missing(64) == 64
    pairs.allot("c", names(500))
    assert pairs.missing(128) == 593 - 128
    pairs.allot("d", names(900))
    assert (pairs.used, pairs.missing(593)) == (1000, 407)
