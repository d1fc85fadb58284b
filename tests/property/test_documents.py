"""Whatever somebody else says: endpoints and prices that are some, or an error."""

import json
import math
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.discovery import DockerDiscovery
from adapters.documents import Document, read_endpoints, read_price
from xds_server.errors import AdapterError
from xds_server.model.topology import Address, Price

_T = TypeVar("_T")
KEYS = st.sampled_from(
    ["endpoints", "address", "port", "per_million_requests_usd", "egress_per_gib_usd", "x", ""]
)
DOCKER_KEYS = st.sampled_from(
    ["Id", "State", "Status", "Health", "Labels", "Ports", "PrivatePort", "Type", "Networks",
     "NetworkSettings", "IPAddress", "xds.port", "xds.address", "mesh"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["127.0.0.1", "::1", "fe80::1%eth0", "unix:/a", "80", "running", "tcp", "Up (unhealthy)", "a"]
)


def values(keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5)
    return st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=12
    )


def check_endpoints(found: tuple[Address, ...]) -> None:
    assert found == tuple(sorted(set(found)))
    assert all(e.is_pipe if e.port == 0 else e.port < 65_536 for e in found)


def read(what: Callable[[], _T]) -> _T | None:
    """Return what it reads; None for an error that can be shown and may pass."""
    try:
        return what()
    except AdapterError as error:
        said = error
    assert said.retryable
    assert "\n" not in str(said)
    assert len(str(said)) < 1_000
    return None


@given(st.one_of(values(KEYS).map(json.dumps), st.text(), st.text("[]{}:,-&*!|>'\"a1 \n#%@?")))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_document_or_an_error_of_one_line(text: str) -> None:
    for is_yaml in (True, False):
        document = Document("w", text, is_yaml)
        endpoints = read(lambda d=document: read_endpoints(d))
        if endpoints is not None:
            check_endpoints(endpoints)
        price = read(lambda d=document: read_price(d, Price(1.0)))
        if price is not None:
            assert all(math.isfinite(usd) and usd >= 0.0 for usd in astuple(price))


@given(st.lists(values(DOCKER_KEYS), max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_list_of_containers_is_endpoints_or_an_error(listed: list[Any]) -> None:
    found = read(lambda: DockerDiscovery("p")._endpoints(listed))
    if found is not None:
        check_endpoints(found)
