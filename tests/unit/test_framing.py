"""What is joined by hand is what the protobuf runtime reads."""

from datetime import timedelta

from envoy.service.discovery.v3 import discovery_pb2 as discovery_pb
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from xds_server.model.ids import CDS, EDS, RTDS
from xds_server.model.snapshot import Resource
from xds_server.protocol import framing

TYPES = st.sampled_from((CDS, EDS, RTDS))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
BODIES = st.binary(max_size=400)
MICROSECONDS = st.integers(0, 10**12)
TTLS_S = st.none() | MICROSECONDS.map(lambda us: us / 1e6)


@st.composite
def resources(draw: st.DrawFn) -> tuple[Resource, ...]:
    names = draw(st.lists(TEXT, max_size=5, unique=True))
    url = draw(TYPES)
    return tuple(Resource(url, n, draw(TEXT), draw(BODIES), draw(TTLS_S)) for n in names)


def as_pb(resource: Resource, *, body: bool = True) -> discovery_pb.Resource:
    """The same resource, built by the protobuf runtime."""
    message = discovery_pb.Resource(name=resource.name, version=resource.version)
    if body:
        message.resource.CopyFrom(Any(type_url=resource.type_url, value=resource.body))
    if resource.ttl_s is not None:
        message.ttl.FromTimedelta(timedelta(microseconds=round(resource.ttl_s * 1e6)))
    return message


@given(st.integers(0, 2**64 - 1))
def test_a_varint_is_the_one_that_the_runtime_writes(value: int) -> None:
    from google.protobuf.wrappers_pb2 import UInt64Value

    assert framing.varint(value) == (UInt64Value(value=value).SerializeToString()[1:] or b"\0")


@given(resources(), TYPES, TEXT, TEXT)
def test_case_73_a_sotw_response_wraps_only_what_has_a_ttl(
    drawn: tuple[Resource, ...], url: str, version: str, nonce: str
) -> None:
    payload = framing.sotw_response(url, version, nonce, drawn)
    parsed = discovery_pb.DiscoveryResponse.FromString(payload)
    assert (parsed.type_url, parsed.version_info, parsed.nonce) == (url, version, nonce)
    for resource, packed in zip(drawn, parsed.resources, strict=True):
        if resource.ttl_s is None:
            assert packed == Any(type_url=resource.type_url, value=resource.body)
        else:
            inner = discovery_pb.Resource()
            assert packed.Unpack(inner)
            assert inner == as_pb(resource)


@given(resources(), TYPES, TEXT, TEXT, st.lists(TEXT, max_size=5))
def test_case_54_a_delta_response_names_and_versions_each_resource(
    drawn: tuple[Resource, ...], url: str, version: str, nonce: str, removed: list[str]
) -> None:
    expected = discovery_pb.DeltaDiscoveryResponse(
        system_version_info=version,
        type_url=url,
        nonce=nonce,
        resources=[as_pb(r) for r in drawn],
        removed_resources=removed,
    )
    payload = framing.delta_response(url, version, nonce, drawn, removed)
    assert discovery_pb.DeltaDiscoveryResponse.FromString(payload) == expected


@given(resources(), TYPES, TEXT, TEXT)
def test_case_73_a_delta_heartbeat_has_names_versions_and_ttls_but_no_bodies(
    drawn: tuple[Resource, ...], url: str, version: str, nonce: str
) -> None:
    expected = discovery_pb.DeltaDiscoveryResponse(
        system_version_info=version,
        type_url=url,
        nonce=nonce,
        resources=[as_pb(r, body=False) for r in drawn],
    )
    payload = framing.delta_heartbeat(url, version, nonce, drawn)
    parsed = discovery_pb.DeltaDiscoveryResponse.FromString(payload)
    assert parsed == expected
    assert not any(r.HasField("resource") for r in parsed.resources)


def test_case_79_a_resource_is_framed_once_for_all_streams_unless_it_is_large() -> None:
    small = Resource(CDS, "shared", "1", b"body")
    large = Resource(CDS, "large", "1", b"x" * (framing.SHARED_MAX_BYTES + 1))
    for shared in (framing._delta, framing._sotw):
        assert shared(small) is shared(small)
        assert shared(large) == shared(large)
        assert shared(large) is not shared(large)


@given(BODIES, BODIES)
def test_frames_of_equal_names_and_versions_differ_when_their_bodies_do(
    one: bytes, other: bytes
) -> None:
    frames = [framing.wrapped(Resource(CDS, "n", "1", body)) for body in (one, other)]
    assert (frames[0] == frames[1]) == (one == other)
