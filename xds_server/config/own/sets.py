"""The `resources:` of mesh.yaml: files to sets of resources, with everything that is wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from xds_server.config.own.files import FILES_MAX, files_in, locate, read_file
from xds_server.config.own.messages import Fault
from xds_server.config.own.shapes import Own, read_resources
from xds_server.config.schema import MeshFile, NodesSection
from xds_server.config.source import Document, KeyPath
from xds_server.errors import Problem
from xds_server.model.extra import NodeSelector, ResourceSet
from xds_server.model.ids import TypeUrl
from xds_server.model.snapshot import Resource


@dataclass(frozen=True, slots=True)
class Entry:
    """One element of `resources:` with what its files hold."""

    at: KeyPath
    selector: NodeSelector
    known_clusters: frozenset[str]
    own: tuple[Own, ...]

    def resource_set(self) -> ResourceSet:
        """Return it as the model has it, resources in the order of their names."""
        by_type: dict[TypeUrl, list[Resource]] = {}
        for one in sorted(self.own, key=lambda o: (o.resource.type_url, o.resource.name)):
            by_type.setdefault(one.resource.type_url, []).append(one.resource)
        return ResourceSet(self.selector, {url: tuple(found) for url, found in by_type.items()})


def read_entries(file: MeshFile, document: Document, problems: list[Problem]) -> list[Entry]:
    """Read every file; add what is wrong to ``problems``."""
    entries = []
    for i, section in enumerate(file.resources):
        at: KeyPath = ("resources", i)
        own: list[Own] = []
        for path in _files(document, at, section.path, problems):
            own += _read(path, problems)
        if section.on_demand:
            own = [replace(o, resource=replace(o.resource, on_demand=True)) for o in own]
        known = frozenset(section.known_clusters)
        entries.append(Entry(at, _selector(section.nodes), known, tuple(own)))
    return entries


def _files(document: Document, at: KeyPath, path: str, problems: list[Problem]) -> list[Path]:
    here = (*at, "path")
    try:
        found = files_in(locate(Path(document.path), path))
    except OSError as error:
        why = error.strerror or type(error).__name__
        remedy = "name a file or a folder, relative to this file"
        problems.append(document.problem(here, f"{path!r} cannot be read: {why}", remedy))
        return []
    if not found:
        remedy = "put a *.yaml, *.yml or *.json file into it, or remove the entry"
        problems.append(document.problem(here, f"the folder {path!r} has no resources", remedy))
    if len(found) > FILES_MAX:
        remedy = f"keep at most {FILES_MAX}"
        problems.append(document.problem(here, f"the folder {path!r} has too many files", remedy))
        return []
    return found


def _read(path: Path, problems: list[Problem]) -> list[Own]:
    own = []
    trees, wrong = read_file(path)
    problems += wrong
    for tree in trees if not wrong else ():
        for found in read_resources(tree):
            if isinstance(found, Fault):
                problems.append(tree.problem(found.at, found.message, found.remedy))
            else:
                own.append(found)
    return own


def _selector(section: NodesSection) -> NodeSelector:
    metadata: Mapping[str, object] = section.metadata
    return NodeSelector(
        id=section.id,
        cluster=section.cluster,
        region=section.locality.region or None,
        zone=section.locality.zone or None,
        sub_zone=section.locality.sub_zone or None,
        metadata=metadata,
    )
