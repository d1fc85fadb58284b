"""People's own Envoy resources, and which nodes get them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from xds_server.model.ids import TypeUrl
from xds_server.model.snapshot import Node, Resource

_GLOB: Final = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class NodeSelector:
    """Which nodes are meant: those that match everything that is given; all without.

    ``id`` and ``cluster`` are shell globs, matched with their case. ``metadata`` must be
    part of the node's: mappings by what they hold, anything else by equality.
    """

    id: str | None = None
    cluster: str | None = None
    region: str | None = None
    zone: str | None = None
    sub_zone: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)

    def matches(self, node: Node) -> bool:
        """Whether that node is meant."""
        return (
            _fits(self.id, node.node_id)
            and _fits(self.cluster, node.application)
            and self.region in (None, node.locality_region)
            and self.zone in (None, node.locality_zone)
            and self.sub_zone in (None, node.locality_sub_zone)
            and _within(self.metadata, node.metadata)
        )

    def covers(self, other: "NodeSelector") -> bool:
        """Whether this certainly matches every node that ``other`` does."""
        return (
            _includes(self.id, other.id)
            and _includes(self.cluster, other.cluster)
            and self.region in (None, other.region)
            and self.zone in (None, other.zone)
            and self.sub_zone in (None, other.sub_zone)
            and _within(self.metadata, other.metadata)
        )

    def excludes(self, other: "NodeSelector") -> bool:
        """Whether no node can match both; False where that is not certain."""
        return (
            _apart(self.id, other.id)
            or _apart(self.cluster, other.cluster)
            or _differ(self.region, other.region)
            or _differ(self.zone, other.zone)
            or _differ(self.sub_zone, other.sub_zone)
            or any(
                key in other.metadata and _contrary(value, other.metadata[key])
                for key, value in self.metadata.items()
            )
        )

    def __str__(self) -> str:
        given: dict[str, object] = {
            name: getattr(self, name)
            for name in ("id", "cluster", "region", "zone", "sub_zone")
            if getattr(self, name) is not None
        }
        given |= {f"metadata.{key}": value for key, value in self.metadata.items()}
        return ", ".join(f"{name} {value}" for name, value in given.items()) or "every node"


EVERY_NODE: Final = NodeSelector()


@dataclass(frozen=True, slots=True)
class ResourceSet:
    """Resources that the selected nodes get beside the generated ones.

    Within a set, names are unique per type.
    """

    selector: NodeSelector
    resources: Mapping[TypeUrl, tuple[Resource, ...]]


def is_glob(pattern: str) -> bool:
    """Whether a pattern can match more than itself."""
    return not _GLOB.isdisjoint(pattern)


def _fits(pattern: str | None, text: str) -> bool:
    return pattern is None or fnmatchcase(text, pattern)


def _includes(pattern: str | None, other: str | None) -> bool:
    if pattern is None or pattern == other or pattern == "*":
        return True
    return other is not None and not is_glob(other) and fnmatchcase(other, pattern)


def _apart(one: str | None, other: str | None) -> bool:
    if one is None or other is None or (is_glob(one) and is_glob(other)):
        return False
    return not (fnmatchcase(one, other) if is_glob(other) else fnmatchcase(other, one))


def _differ(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one != other


def _within(part: object, whole: object) -> bool:
    if isinstance(part, Mapping):
        return isinstance(whole, Mapping) and all(
            key in whole and _within(value, whole[key]) for key, value in part.items()
        )
    return part == whole and isinstance(part, bool) == isinstance(whole, bool)


def _contrary(one: object, other: object) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return any(key in other and _contrary(value, other[key]) for key, value in one.items())
    return not _within(one, other)
