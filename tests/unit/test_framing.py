from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given
from hypothesis import strategies as st

from xds_server.model.ids import CDS, RTDS
from xds_server.model.snapshot import Resource
from xds_server.protocol import framing

names = st.text(st.characters(codec="utf-8"), max_size=40)
resources = st.builds(
    Resource,
    st.sampled_from((CDS, RTDS)),
    names,
    names,
    st.binary(max_size=300),
    st.none() | st.floats(0.001, 1e6).map(lambda s: round(s, 6)),
)


def same_resource(message: discovery_pb2.Resource, resource: Resource) -> None:
    assert message.name == resource.name
    assert message.version == resource.version
    assert message.HasField("ttl") == (resource.ttl_s is not None)
    if resource.ttl_s is not None:
        assert (
            abs(message.ttl.ToNanoseconds() / 1e9 - resource.ttl_s) < 1e-6 * resource.ttl_s + 1e-9
        )


@given(names, names, st.lists(resources, max_size=5), st.lists(names, max_size=3))
def test_a_delta_response_reads_as_it_was_meant(version, nonce, sent, removed) -> None:
    body = framing.delta_response(CDS, version, nonce, sent, removed)
    message = discovery_pb2.DeltaDiscoveryResponse.FromString(body)
    assert (message.system_version_info, message.nonce, message.type_url) == (version, nonce, CDS)
    assert list(message.removed_resources) == removed
    assert len(message.resources) == len(sent)
    for got, resource in zip(message.resources, sent, strict=True):
        same_resource(got, resource)
        assert got.resource.type_url == resource.type_url
        assert got.resource.value == resource.body


@given(names, names, st.lists(resources, max_size=5))
def test_a_sotw_response_reads_as_it_was_meant(version, nonce, sent) -> None:
    body = framing.sotw_response(CDS, version, nonce, sent)
    message = discovery_pb2.DiscoveryResponse.FromString(body)
    assert (message.version_info, message.nonce, message.type_url) == (version, nonce, CDS)
    for got, resource in zip(message.resources, sent, strict=True):
        if resource.ttl_s is None:
            assert (got.type_url, got.value) == (resource.type_url, resource.body)
            continue
        inner = discovery_pb2.Resource()
        assert got.Unpack(inner)
        same_resource(inner, resource)
        assert inner.resource.value == resource.body


@given(resources)
def test_case_73_a_heartbeat_has_name_version_and_ttl_and_no_body(resource: Resource) -> None:
    body = framing.delta_heartbeat(RTDS, "v", "n", [resource])
    (got,) = discovery_pb2.DeltaDiscoveryResponse.FromString(body).resources
    same_resource(got, resource)
    assert not got.HasField("resource")


@given(st.integers(0, 2**63))
def test_varints_are_canonical(number: int) -> None:
    body = b"\x08" + framing.varint(number)
    assert discovery_pb2.Resource.FromString(b"") is not None
    length, shift, value = len(body) - 1, 0, 0
    for byte in body[1:]:
        value |= (byte & 0x7F) << shift
        shift += 7
    assert value == number
    assert length == max(1, -(-number.bit_length() // 7))
