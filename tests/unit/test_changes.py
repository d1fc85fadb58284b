"""Suppositions as people write them."""

import pytest

from xds_server.engine.changes import CHANGES_MAX, parse_changes
from xds_server.model.what_if import Change, Quantity


@pytest.mark.parametrize(
    ("text", "provider", "quantity", "value", "is_factor"),
    [
        ("search-east.price=0.9", "search-east", Quantity.PRICE, 0.9, False),
        ("a.b.price=x2", "a.b", Quantity.PRICE, 2.0, True),
        ("a.capacity=400", "a", Quantity.CAPACITY, 400.0, False),
        ("a.capacity=x0.5", "a", Quantity.CAPACITY, 0.5, True),
        ("a.latency=x1.5", "a", Quantity.LATENCY, 1.5, True),
        ("a.endpoints=3", "a", Quantity.ENDPOINTS, 3.0, False),
        ("a.down", "a", Quantity.DOWN, 0.0, True),
        ("demand=500", "", Quantity.DEMAND, 500.0, False),
        (" demand=x1.8 ", "", Quantity.DEMAND, 1.8, True),
    ],
)
def test_every_form_is_read(
    text: str, provider: str, quantity: Quantity, value: float, is_factor: bool
) -> None:
    assert parse_changes([text]) == (Change(provider, quantity, value, is_factor, text.strip()),)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "add --set: PROVIDER.price=USD"),
        (["a.colour=red"], "a.colour=red: unknown; write one of PROVIDER.price"),
        (["price=1"], "price=1: unknown"),
        (["a.demand=1"], "a.demand=1: unknown"),
        (["a.price"], "'' is no number"),
        (["a.price=cheap"], "'cheap' is no number"),
        (["a.price=-1"], "'-1' is no number of 0 or more"),
        (["a.price=nan"], "'nan' is no number"),
        (["demand=inf"], "'inf' is no number"),
        (["a.latency=20"], "changed by a factor; write it like x20"),
        (["a.capacity=0"], "write PROVIDER.down"),
        (["a.endpoints=1.5"], "endpoints are whole"),
        (["a.price=1e308"], "a.price: 1e+308 is out of bounds; 0 to 1e+12 is allowed"),
        (["a.price=x1e308"], "a.price: x1e+308 is out of bounds; x0 to x1e+06 is allowed"),
        (["demand=1e300"], "demand: 1e+300 is out of bounds; 0 to 1e+09 is allowed"),
        (["demand=x1e7"], "demand: x1e+07 is out of bounds"),
        (["a.capacity=2e9"], "a.capacity: 2e+09 is out of bounds; 1e-06 to 1e+09 is allowed"),
        (["a.capacity=1e-300"], "a.capacity: 1e-300 is out of bounds"),
        (["a.latency=x1e-9"], "a.latency: x1e-09 is out of bounds; x1e-06 to x1e+06 is allowed"),
        (["a.latency=x1e9"], "a.latency: x1e+09 is out of bounds"),
        (["a.endpoints=100001"], "a.endpoints: 100001 is out of bounds; 0 to 100000 is allowed"),
        (["a.down=1"], "a.down takes no value; write a.down alone"),
        (["a.price=1", "a.price=2"], "a.price=1 is said as well; keep one"),
        ([f"a{i}.down" for i in range(CHANGES_MAX + 1)], "at most 64"),
    ],
)
def test_what_cannot_be_read_is_answered_with_what_to_write(texts: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refused:
        parse_changes(texts)
    assert says in str(refused.value)
