"""The mesh that ``bench.push`` serves: one application that calls one service."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
)

APPLICATION, SERVICE = "shop", "search"


@dataclass(frozen=True, slots=True)
class Shape:
    """How much there is in one resource, and for how many groups of nodes."""

    providers: int = 10
    name_bytes: int = 12  # of a provider
    groups: int = 40

    @property
    def names(self) -> tuple[str, ...]:
        """Of the providers."""
        return tuple(f"p{i:03}-".ljust(self.name_bytes, "x") for i in range(self.providers))


def mesh(shape: Shape, port: int) -> Mesh:
    """Route one service over all providers; serve on that port of the loopback."""
    providers = tuple(
        Provider(name, SERVICE, endpoints=(Address("127.0.0.1", 9000),), baseline_weight=1)
        for name in shape.names
    )
    call = Call(SERVICE, "127.0.0.1:15001", timeout_s=1.0, retries=1)
    template = Template("web", (call,), (Profile("steady"),))
    return Mesh(
        "bench",
        Mode.ENFORCE,
        EngineSettings(),
        TelemetrySettings(),
        {SERVICE: Service(SERVICE, providers)},
        {"web": template},
        {APPLICATION: Application(APPLICATION, template)},
        ServerSettings(xds=Address("127.0.0.1", port)),
    )


def group_keys(count: int) -> tuple[GroupKey, ...]:
    """That many groups, one per zone."""
    return tuple(GroupKey(APPLICATION, "steady", Locality("here", f"z{i}")) for i in range(count))


def overlay(shape: Shape, groups: Sequence[GroupKey], generator: np.random.Generator) -> Overlay:
    """Other weights for every group."""
    drawn = generator.integers(1, 1000, (len(groups), shape.providers)).tolist()
    return Overlay(
        {
            group: {SERVICE: dict(zip(shape.names, weights, strict=True))}
            for group, weights in zip(groups, drawn, strict=True)
        }
    )
