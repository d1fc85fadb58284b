"""Faults between resources: names that meet, and names that nothing has."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from xds_server.config.own.references import ANY_NAME, Reference
from xds_server.config.own.sets import Entry
from xds_server.config.own.shapes import Own
from xds_server.config.source import Document
from xds_server.config.units import nearest
from xds_server.errors import Problem
from xds_server.model.ids import CDS, EDS, LDS, RDS, RTDS, ApplicationName, ResourceName, TypeUrl
from xds_server.model.topology import Mesh

RUNTIME_LAYER: Final = "weights"
CONTROL_PLANE: Final = "xds"
"""Names in every generated bootstrap: its layer, and its cluster."""

_Key = tuple[TypeUrl, ResourceName]


@dataclass(frozen=True, slots=True)
class _Place:
    """One own resource with the entry that it is in."""

    entry: Entry
    own: Own

    @property
    def written(self) -> str:
        return f"{self.own.tree.path}:{self.own.tree.line(self.own.at)}"


def check_entries(
    mesh: Mesh, entries: Sequence[Entry], document: Document, problems: list[Problem]
) -> None:
    """Check all entries against each other and against what is generated for the mesh."""
    generated = {name: _generated(mesh, name) for name in mesh.applications}
    by_key: dict[_Key, list[_Place]] = {}
    for entry in entries:
        _check_cluster(mesh, entry, document, problems)
        for own in entry.own:
            for name in (own.resource.name, *own.resource.aliases):
                key = (own.resource.type_url, name)
                by_key.setdefault(key, []).append(_Place(entry, own))
    for key, places in by_key.items():
        _check_collision(key, places, generated, problems)
        _check_twice(key, places, problems)
    for entry in entries:
        reach = _applications(mesh, entry)
        for own in entry.own:
            for reference in own.references:
                wrong = _dangling(reference, entry, reach, by_key, generated)
                if wrong is not None:
                    problems.append(own.tree.problem(reference.at, *wrong))


def _generated(mesh: Mesh, application: ApplicationName) -> frozenset[_Key]:
    """What every node of an application has without anybody's own resources."""
    calls = mesh.applications[application].template.calls
    providers = {p.name for call in calls for p in mesh.candidates(call)}
    return frozenset(
        {(url, name) for url in (CDS, EDS) for name in providers}
        | {(url, f"{application}.{call.service}") for url in (LDS, RDS) for call in calls}
        | {(RTDS, RUNTIME_LAYER)}
    )


def _applications(mesh: Mesh, entry: Entry) -> list[ApplicationName]:
    pattern = entry.selector.cluster or "*"
    return [name for name in mesh.applications if fnmatchcase(name, pattern)]


def _check_cluster(mesh: Mesh, entry: Entry, document: Document, problems: list[Problem]) -> None:
    pattern = entry.selector.cluster
    if pattern is None or _applications(mesh, entry):
        return
    near = nearest(pattern, mesh.applications) or sorted(mesh.applications)[:8]
    options = " or ".join(f"`{name}`" for name in near)
    message = f"no application is named like {pattern!r}, so no node ever gets these"
    at = (*entry.at, "nodes", "cluster")
    problems.append(document.problem(at, message, f"write {options}, or remove it"))


def _check_collision(
    key: _Key,
    places: Iterable[_Place],
    generated: Mapping[ApplicationName, frozenset[_Key]],
    problems: list[Problem],
) -> None:
    """Refuse a generated name even where the selector keeps the two apart: it may change."""
    owner = next((name for name, keys in generated.items() if key in keys), None)
    if owner is None and key != (CDS, CONTROL_PLANE):
        return
    if owner is None:
        what = "the cluster of the control plane in every bootstrap"
    elif key[0] == RTDS:
        what = "the layer of the engine's weights"
    else:
        what = f"what the control plane generates for `{owner}`"
    for place in places:
        own = place.own
        message = f"the {own.kind} {key[1]!r} has the name of {what}"
        problems.append(own.tree.problem(own.at, message, "rename it"))


def _check_twice(key: _Key, places: Sequence[_Place], problems: list[Problem]) -> None:
    """Report one name where a node certainly would get both."""
    for i, place in enumerate(places):
        for other in places[:i]:
            one, two = other.entry.selector, place.entry.selector
            if one.covers(two) or two.covers(one):
                own = place.own
                message = f"the {own.kind} {key[1]!r} is also in {other.written}"
                remedy = (
                    "rename one of the two, or give each entry `nodes` that exclude the other's"
                )
                problems.append(own.tree.problem(own.at, message, remedy))
                break


def _dangling(
    reference: Reference,
    entry: Entry,
    reach: Sequence[ApplicationName],
    by_key: Mapping[_Key, Sequence[_Place]],
    generated: Mapping[ApplicationName, frozenset[_Key]],
) -> tuple[str, str] | None:
    """Say what is wrong with a reference that some node of the entry cannot resolve.

    What only some of the nodes get is enough where there are several such sources:
    together they may reach all. It is not where there is one.
    """
    url, name = reference.type_url, reference.name
    if url == CDS and name in (entry.known_clusters | {CONTROL_PLANE}):
        return None
    sources = _sources(reference, by_key)
    if any(source.selector.covers(entry.selector) for source in sources):
        return None
    having = [a for a in reach if (url, name) in generated[a]]
    if reach and len(having) == len(reach):
        return None
    partial = [s for s in sources if not s.selector.excludes(entry.selector)]
    if len(partial) + bool(having) > (1 if reference.needed else 0):
        return None
    kind = url.rpartition(".")[2]
    if partial:
        message = f"only nodes with {partial[0].selector} get the {kind} {name!r}"
        return message, "give both entries of `resources` the same `nodes`"
    if having:
        lacking = next(a for a in reach if a not in having)
        message = f"nodes of application `{lacking}` have no {kind} {name!r}"
        return message, f"add `nodes: {{cluster: {having[0]}}}` to the entry of `resources`"
    return _nowhere(reference, kind, sources, by_key, generated)


def _sources(reference: Reference, by_key: Mapping[_Key, Sequence[_Place]]) -> list[Entry]:
    if reference.name == ANY_NAME:
        found = [p for (url, _), ps in by_key.items() if url == reference.type_url for p in ps]
    else:
        found = list(by_key.get((reference.type_url, reference.name), ()))
    return list({p.entry.at: p.entry for p in found}.values())


def _nowhere(
    reference: Reference,
    kind: str,
    excluded: Sequence[Entry],
    by_key: Mapping[_Key, Sequence[_Place]],
    generated: Mapping[ApplicationName, frozenset[_Key]],
) -> tuple[str, str]:
    if excluded:
        message = f"the {kind} {reference.name!r} is only for nodes with {excluded[0].selector}"
        return message, "give both entries of `resources` the same `nodes`"
    if reference.name == ANY_NAME:
        return f"there is no {kind}", "add one to the files of `resources`"
    names = {name for url, name in by_key if url == reference.type_url}
    names |= {n for keys in generated.values() for url, n in keys if url == reference.type_url}
    near = nearest(reference.name, names)
    write = f"write `{near[0]}`, or add" if near else "add"
    remedy = f"{write} a {kind} of that name to the files of `resources`"
    if reference.type_url == CDS:
        remedy += ", or name it in `known_clusters` if the nodes' own bootstrap has it"
    return f"there is no {kind} {reference.name!r}", remedy
