"""What a node should have: named, versioned, already serialised resources."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from xds_server.model.ids import (
    GroupKey,
    NodeId,
    ProviderName,
    ResourceName,
    ServiceName,
    TypeUrl,
    Version,
)

Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Resource:
    """One named resource as Envoy will parse it; shared by every stream that has it.

    ``body`` is the serialised message that ``type_url`` names, without an ``Any``
    around it; ``version`` changes when, and only when, ``body`` does. ``aliases`` are other
    names by which clients may ask for it (VHDS: ``<routes>/<domain>``). One that is
    ``on_demand`` is not part of a wildcard: only a client that names it gets it. ``needs``
    names the ClusterLoadAssignments of a cluster where they are not called like it.
    """

    type_url: TypeUrl
    name: ResourceName
    version: Version
    body: bytes = field(repr=False)
    ttl_s: float | None = None
    aliases: tuple[ResourceName, ...] = ()
    on_demand: bool = False
    needs: tuple[ResourceName, ...] = ()
    own: bool = False  # somebody's own, not generated: the first to be suspected


NO_ALIASES: Mapping[str, ResourceName] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TypeSnapshot:
    """All resources of one type; ``version`` is a property of their content.

    ``aliases`` says which resource an alias stands for, ``on_demand`` which resources are
    only for those who name them.
    """

    version: Version
    resources: Mapping[ResourceName, Resource]
    aliases: Mapping[str, ResourceName] = field(default_factory=lambda: NO_ALIASES)
    on_demand: frozenset[ResourceName] = frozenset()


EMPTY: TypeSnapshot = TypeSnapshot("0", MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A consistent, immutable set of resources for one node."""

    types: Mapping[TypeUrl, TypeSnapshot]

    def of(self, type_url: TypeUrl) -> TypeSnapshot:
        """Return the resources of one type, empty when there are none."""
        return self.types.get(type_url, EMPTY)


@dataclass(frozen=True, slots=True)
class Node:
    """What a client, as a rule an Envoy, says of itself in the first message of a stream."""

    node_id: NodeId
    application: str  # node.cluster
    locality_region: str = ""
    locality_zone: str = ""
    locality_sub_zone: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    user_agent: str = ""
    build: str = ""  # its version, in its own words

    @property
    def is_grpc(self) -> bool:
        """Whether it is an application that calls without a sidecar, by gRPC's own xDS client."""
        return self.user_agent.startswith("gRPC")


Layout: TypeAlias = tuple[tuple[ServiceName, ProviderName], ...]
"""What a row of weights is of, in order; the providers of a service are neighbours."""


class GroupWeights(Mapping[ServiceName, Mapping[ProviderName, int]]):
    """One group's weights as a row of numbers, and as a mapping for who looks into it.

    A service whose numbers are all 0 is left out of the mapping: it keeps its baseline.
    """

    __slots__ = ("_mapping", "layout", "numbers")

    def __init__(self, layout: Layout, numbers: Ints) -> None:
        """Take over ``numbers`` (W,), one for each key of ``layout``."""
        self.layout, self.numbers = layout, numbers
        self._mapping: dict[ServiceName, Mapping[ProviderName, int]] | None = None

    def _named(self) -> dict[ServiceName, Mapping[ProviderName, int]]:
        if self._mapping is None:
            named: dict[ServiceName, dict[ProviderName, int]] = {}
            for (service, provider), weight in zip(self.layout, self.numbers.tolist(), strict=True):
                named.setdefault(service, {})[provider] = weight
            self._mapping = {s: weights for s, weights in named.items() if any(weights.values())}
        return self._mapping

    def __getitem__(self, service: ServiceName) -> Mapping[ProviderName, int]:
        return self._named()[service]

    def __iter__(self) -> Iterator[ServiceName]:
        return iter(self._named())

    def __len__(self) -> int:
        return len(self._named())

    def __repr__(self) -> str:
        return repr(self._named())


@dataclass(frozen=True, slots=True)
class Overlay:
    """Weights that the engine asks for: per group, per service, per provider.

    Every provider of each service is named; each service's weights are integers
    with a sum above 0.
    """

    weights: Mapping[GroupKey, Mapping[str, Mapping[str, int]]]
