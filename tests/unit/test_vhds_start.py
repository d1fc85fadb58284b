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
