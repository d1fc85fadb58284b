"""The serving half of the control plane in this process: publisher and ADS on a port."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from xds_server.cache.publisher import Publisher
from xds_server.model.ids import GroupKey, Locality
from xds_server.model.snapshot import Overlay
from xds_server.model.template import Call, Profile, Template
from xds_server.model.topology import (
    Address,
    Application,
    EngineSettings,
    Mesh,
    Mode,
    Provider,
    ServerSettings,
    Service,
    TelemetrySettings,
    WeightsVia,
)
from xds_server.protocol.events import Event
from xds_server.protocol.messages import Response
from xds_server.resources.mesh import MeshResources
from xds_server.wire.ads import DiscoveryServices
from xds_server.wire.pump import Stream

GROUP = GroupKey("shop", "steady", Locality())


class WallClock:
    def now_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return 0.0

    async def sleep_s(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


class Recorder:
    """Observer that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.responses: list[Response] = []
        self.open = 0
        self.reasons: list[str] = []
        self.refusals: Counter[str] = Counter()
        self.waited_most = 0

    def waiting(self, streams: int) -> None:
        self.waited_most = max(self.waited_most, streams)

    def refused(self, reason: str) -> None:
        self.refusals[reason] += 1

    def opened(self, stream: Stream) -> None:
        self.open += 1

    def received(self, stream: Stream, event: Event) -> None:
        self.events.append(event)

    def sent(self, stream: Stream, response: Response) -> None:
        self.responses.append(response)

    def closed(self, stream: Stream, reason: str) -> None:
        self.open -= 1
        self.reasons.append(reason)


def shop(
    xds_port: int,
    listener_port: int,
    endpoints: dict[str, int],
    *,
    baseline: dict[str, int] | None = None,
    ttl_s: float = 10.0,
    via: WeightsVia = WeightsVia.AUTO,
    retries: int = 0,
) -> Mesh:
    """Application ``shop`` calls ``search``, which these endpoints provide."""
    providers = tuple(
        Provider(
            name,
            "search",
            endpoints=(Address("127.0.0.1", port),),
            baseline_weight=(baseline or {}).get(name, 1),
        )
        for name, port in endpoints.items()
    )
    call = Call("search", f"127.0.0.1:{listener_port}", timeout_s=2.0, retries=retries)
    template = Template("web", (call,), (Profile("steady"),))
    return Mesh(
        "test",
        Mode.ENFORCE,
        EngineSettings(weights_ttl_s=ttl_s, weights_via=via),
        TelemetrySettings(0.2, 0.5),
        {"search": Service("search", providers)},
        {"web": template},
        {"shop": Application("shop", template)},
        ServerSettings(xds=Address("127.0.0.1", xds_port)),
    )


def resources(mesh: Mesh) -> MeshResources:
    return MeshResources(mesh, {p.name: p.endpoints for p in mesh.providers.values()})


def overlay(**weights: int) -> Overlay:
    return Overlay({GROUP: {"search": weights}})


@asynccontextmanager
async def listening(*handlers: grpc.GenericRpcHandler, port: int = 0) -> AsyncIterator[int]:
    """Serve until the block ends; then the port, which is given, is dead, as after a crash."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(handlers)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(grace=None)


@asynccontextmanager
async def serving_ads(
    publisher: Publisher, port: int, recorder: Recorder
) -> AsyncIterator[DiscoveryServices]:
    """Serve discovery alone until the block ends."""
    service = DiscoveryServices(publisher, recorder, WallClock())
    async with listening(service.handler(), port=port):
        yield service
