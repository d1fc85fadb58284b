"""What is taken for an ACK without being parsed is one, and reads as protobuf reads it."""

import contextlib
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from xds_server.model.ids import SHORT
from xds_server.protocol.messages import DeltaRequest
from xds_server.wire.requests import _plain_ack

texts = st.one_of(
    st.sampled_from(["", "7", "a-12", "ü", "n" * 127, "n" * 128]), st.text(max_size=9)
)
requests: st.SearchStrategy[Any] = st.builds(
    discovery_pb2.DeltaDiscoveryRequest,
    type_url=st.one_of(st.sampled_from(sorted(SHORT)), texts),
    response_nonce=texts,
    resource_names_subscribe=st.lists(texts, max_size=1),
    resource_names_unsubscribe=st.lists(texts, max_size=1),
    initial_resource_versions=st.dictionaries(texts, texts, max_size=1),
    error_detail=st.sampled_from([None, None, {"code": 0}, {"message": "bad"}]),
    node=st.sampled_from([None, None, {"id": "n"}]),
)


def check(body: bytes) -> None:
    found = _plain_ack(body)
    if found is None:
        return
    message = discovery_pb2.DeltaDiscoveryRequest.FromString(body)
    assert found == DeltaRequest(message.type_url, response_nonce=message.response_nonce)
    only = discovery_pb2.DeltaDiscoveryRequest(
        type_url=message.type_url, response_nonce=message.response_nonce
    )
    assert message == only


@given(requests)
@settings(max_examples=500, deadline=None)
def test_a_request_that_is_taken_for_an_ack_is_one(message: Any) -> None:
    check(message.SerializeToString(deterministic=True))


@given(requests, st.integers(0, 80), st.binary(max_size=3), st.integers(0, 3))
@settings(max_examples=500, deadline=None)
def test_damage_is_not_taken_for_an_ack(message: Any, at: int, bytes_: bytes, dropped: int) -> None:
    body = message.SerializeToString(deterministic=True)
    damaged = body[:at] + bytes_ + body[at + dropped :]
    with contextlib.suppress(DecodeError):
        check(damaged)
        return
    assert _plain_ack(damaged) is None


@given(st.binary(max_size=64))
def test_noise_is_not_an_ack(body: bytes) -> None:
    check(body)


def test_every_type_has_its_ack() -> None:
    for url in SHORT:
        body = discovery_pb2.DeltaDiscoveryRequest(type_url=url, response_nonce="12")
        assert _plain_ack(body.SerializeToString()) == DeltaRequest(url, response_nonce="12")
