from envoy.service.discovery.v3 import discovery_pb2

from tests.unit.client import resource, snapshot
from xds_server.model.ids import RDS, VHDS
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.messages import DeltaRequest


def test_the_answer_without_hosts_names_the_routes_that_wait_for_them() -> None:
    """Envoy 1.40 looks at the prefix of what is in it, and else waits 15 s."""
    stream = DeltaStream()
    world = snapshot([resource("VHDS", "r/late")], RDS={"q": "1", "r": "1"})
    stream.receive(DeltaRequest(RDS, ("r", "q")), 0.0)
    assert len(stream.poll(world, 0.0)) == 1
    stream.receive(DeltaRequest(VHDS), 0.0)
    (response,) = stream.poll(world, 0.0)
    message = discovery_pb2.DeltaDiscoveryResponse.FromString(response.payload)
    assert list(message.removed_resources) == ["q/", "r/"]
    assert list(message.resources) == []


def test_routes_that_come_later_are_named_at_once_and_once() -> None:
    """Envoy asks nothing more on a stream that has asked for virtual hosts already."""
    stream = DeltaStream()
    stream.receive(DeltaRequest(RDS, ("r",)), 0.0)
    stream.receive(DeltaRequest(VHDS), 0.0)
    first, second = stream.poll(snapshot(RDS={"r": "1"}), 0.0)
    assert (first.names, second.names) == (("r",), ())
    for response in (first, second):
        stream.receive(DeltaRequest(response.type_url, response_nonce=response.nonce), 0.0)
    both = snapshot(RDS={"r": "2", "late": "1"})
    stream.receive(DeltaRequest(RDS, ("late",)), 0.0)
    first, second = stream.poll(both, 0.0)
    assert first.names == ("late", "r")
    message = discovery_pb2.DeltaDiscoveryResponse.FromString(second.payload)
    assert list(message.removed_resources) == ["late/"]
    for response in (first, second):
        stream.receive(DeltaRequest(response.type_url, response_nonce=response.nonce), 0.0)
    assert stream.poll(both, 0.0) == []
