"""Which resources a file holds, in any of the shapes that Envoy's users have."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from xds_server.config.own.messages import PREFIX, TYPE, Fault, parse, type_fault
from xds_server.config.own.references import Placed, Reference, inspect, walk
from xds_server.config.source import KeyPath, Tree, Value
from xds_server.config.units import nearest
from xds_server.model.ids import CDS, EDS, LDS, RDS, SDS, SHORT, VHDS, ResourceName, TypeUrl
from xds_server.model.snapshot import Resource
from xds_server.model.versions import make_resource

_NAME_FIELDS: Final[Mapping[TypeUrl, str]] = dict.fromkeys(SHORT, "name") | {EDS: "cluster_name"}
"""The types that people may bring, and the field that is the resource's name."""
_STATIC: Final[Mapping[str, TypeUrl]] = {"listeners": LDS, "clusters": CDS, "secrets": SDS}
_DISCOVERY_KEYS: Final = frozenset({"resources", "version_info", "nonce", "type_url", TYPE})
_SHAPES: Final = (
    f'write a resource with "{TYPE}", a list of them, `resources: [...]` '
    "or `static_resources: {...}`"
)


@dataclass(frozen=True, slots=True)
class Own:
    """One resource of somebody's, what it names, and where it is written."""

    resource: Resource
    references: tuple[Reference, ...]
    tree: Tree
    at: KeyPath

    @property
    def kind(self) -> str:
        """The short name of its message, as in `Cluster`."""
        return self.resource.type_url.rpartition(".")[2]


def read_resources(tree: Tree) -> Iterator[Own | Fault]:
    """Return the resources of one document, and what is wrong with the others."""
    for item in _items(tree.data):
        if isinstance(item, Fault):
            yield item
        else:
            yield from _resource(tree, *item)


def _items(data: Value) -> Iterator[tuple[TypeUrl, Value, KeyPath] | Fault]:
    """Return type, value and place of every resource."""
    if isinstance(data, tuple):
        for i, value in enumerate(data):
            yield _typed(value, (i,))
    elif not isinstance(data, Mapping):
        yield Fault((), "is no resource", _SHAPES)
    elif "static_resources" in data:
        yield from _bootstrap(data)
    elif "resources" in data:
        for key in data.keys() - _DISCOVERY_KEYS:
            yield Fault((key,), "has no place beside `resources`", "remove it")
        listed = data["resources"]
        if not isinstance(listed, tuple):
            yield Fault(("resources",), "is not a list", "write `resources: [...]`")
            return
        for i, value in enumerate(listed):
            yield _typed(value, ("resources", i))
    else:
        yield _typed(data, ())


def _bootstrap(data: Mapping[str, Value]) -> Iterator[tuple[TypeUrl, Value, KeyPath] | Fault]:
    for key in data.keys() - {"static_resources", TYPE}:
        remedy = "remove it: only static_resources are served; the rest belongs into the bootstrap"
        yield Fault((key,), "has no place beside `static_resources`", remedy)
    static = data["static_resources"]
    if not isinstance(static, Mapping):
        yield Fault(("static_resources",), "is no mapping", "write `clusters: [...]` in it")
        return
    for key, listed in static.items():
        at = ("static_resources", key)
        if key not in _STATIC:
            options = " or ".join(f"`{k}`" for k in _STATIC)
            yield Fault(at, "is no key of static_resources", f"write {options}")
        elif not isinstance(listed, tuple):
            yield Fault(at, "is not a list", f"write `{key}: [...]`")
        else:
            for i, value in enumerate(listed):
                yield _STATIC[key], value, (*at, i)


def _typed(value: Value, at: KeyPath) -> tuple[TypeUrl, Value, KeyPath] | Fault:
    if not isinstance(value, Mapping):
        return Fault(at, "is no resource", _SHAPES)
    if TYPE not in value:
        return Fault(at, f"has no {TYPE}, which says what it is", _SHAPES)
    url, here = value[TYPE], (*at, TYPE)
    if isinstance(url, str) and url in _NAME_FIELDS:
        return url, {k: v for k, v in value.items() if k != TYPE}, at
    wrong = type_fault(url, here)
    if wrong is not None:
        return wrong
    kinds = {u.rpartition(".")[2]: u for u in _NAME_FIELDS}
    near = nearest(str(url).rpartition(".")[2], kinds)
    options = f"`{kinds[near[0]]}`" if near else f"one of {', '.join(kinds)}, with `{PREFIX}`"
    return Fault(here, "is no type of resource that clients ask for", f"write {options}")


def _resource(tree: Tree, type_url: TypeUrl, value: Value, at: KeyPath) -> Iterator[Own | Fault]:
    if not isinstance(value, Mapping):
        yield Fault(at, "is no resource", "write keys and values")
        return
    message: Any = parse(value, type_url.removeprefix(PREFIX), at)
    if isinstance(message, list):
        yield from message
        return
    placed = Placed(message, value, at)
    name: ResourceName = getattr(message, _NAME_FIELDS[type_url])
    if not name:
        yield Fault(placed.key(_NAME_FIELDS[type_url]), "is missing", "name the resource")
        return
    references = list(_routes_of(type_url, message, placed))
    faults = list(_own_rules(type_url, message, placed))
    for part in walk(message, value, at):
        for found in inspect(part):
            references += [found] if isinstance(found, Reference) else []
            faults += [found] if isinstance(found, Fault) else []
    yield from faults
    if not faults:
        body = message.SerializeToString(deterministic=True)
        resource = replace(
            make_resource(type_url, name, body),
            aliases=_aliases(message) if type_url == VHDS else (),
            needs=tuple(r.name for r in references if r.type_url == EDS and r.name != name),
            own=True,
        )
        yield Own(resource, tuple(references), tree, at)


def _own_rules(type_url: TypeUrl, message: Any, placed: Placed) -> Iterator[Fault]:
    """What holds for a resource at the top alone."""
    if type_url != VHDS:
        return
    at = placed.key("name")
    routes, slash, host = message.name.rpartition("/")
    if not slash or not routes or not host:
        remedy = f"write `name: <its RouteConfiguration>/{host or message.name}`"
        yield Fault(at, "a virtual host by VHDS is named after its RouteConfiguration", remedy)
    if not message.domains:
        yield Fault(placed.key("domains"), "is missing", 'write `domains: ["example.com"]`')


def _routes_of(type_url: TypeUrl, message: Any, placed: Placed) -> Iterator[Reference]:
    """Return the RouteConfiguration that a virtual host says it is of."""
    routes = message.name.rpartition("/")[0] if type_url == VHDS else ""
    if routes:
        yield Reference(RDS, routes, placed.key("name"), needed=False)


def _aliases(message: Any) -> tuple[ResourceName, ...]:
    """Names by which Envoy asks for a virtual host: its RouteConfiguration's and a domain."""
    routes = message.name.rpartition("/")[0]
    return tuple(a for d in message.domains if (a := f"{routes}/{d}") != message.name)
