"""Names, and the type URLs of the xDS APIs that are served."""

from dataclasses import dataclass
from typing import Final, TypeAlias

NodeId: TypeAlias = str
ApplicationName: TypeAlias = str
ServiceName: TypeAlias = str
ProviderName: TypeAlias = str
"""A provider's name is the name of its Envoy cluster."""
PhaseName: TypeAlias = str
TypeUrl: TypeAlias = str
ResourceName: TypeAlias = str
Version: TypeAlias = str
Nonce: TypeAlias = str

_PREFIX: Final = "type.googleapis.com/"
CDS: Final[TypeUrl] = _PREFIX + "envoy.config.cluster.v3.Cluster"
EDS: Final[TypeUrl] = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LDS: Final[TypeUrl] = _PREFIX + "envoy.config.listener.v3.Listener"
RDS: Final[TypeUrl] = _PREFIX + "envoy.config.route.v3.RouteConfiguration"
RTDS: Final[TypeUrl] = _PREFIX + "envoy.service.runtime.v3.Runtime"
SRDS: Final[TypeUrl] = _PREFIX + "envoy.config.route.v3.ScopedRouteConfiguration"
VHDS: Final[TypeUrl] = _PREFIX + "envoy.config.route.v3.VirtualHost"
SDS: Final[TypeUrl] = _PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
ECDS: Final[TypeUrl] = _PREFIX + "envoy.config.core.v3.TypedExtensionConfig"

SHORT: Final[dict[TypeUrl, str]] = {
    CDS: "CDS",
    EDS: "EDS",
    LDS: "LDS",
    RDS: "RDS",
    RTDS: "RTDS",
    SRDS: "SRDS",
    VHDS: "VHDS",
    SDS: "SDS",
    ECDS: "ECDS",
}
"""Type URL to the short form that logs, metrics and tests use."""


@dataclass(frozen=True, slots=True, order=True)
class Locality:
    """Where something runs, in Envoy's three levels."""

    region: str = ""
    zone: str = ""
    sub_zone: str = ""

    def __str__(self) -> str:
        return "/".join(p for p in (self.region, self.zone, self.sub_zone) if p) or "-"


class _Hashed:
    """Room for a hash that is computed once: keys are looked up many times every tick."""

    __slots__ = ("_hash",)
    _hash: int


@dataclass(frozen=True, slots=True, order=True)
class GroupKey(_Hashed):
    """Instances that share application, phase and locality share their weights.

    So do only those with the same template: ``template`` names it where a node's metadata
    overrides its application's; "" is the application's own.
    """

    application: ApplicationName
    phase: PhaseName
    locality: Locality
    template: str = ""

    def __post_init__(self) -> None:
        parts = (self.application, self.phase, self.locality, self.template)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True, order=True)
class RouteKey:
    """One row that the engine decides: what one group calls."""

    group: GroupKey
    service: ServiceName
