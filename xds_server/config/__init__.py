"""mesh.yaml: read, checked and translated; every error names file, line, key and remedy."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xds_server.config.checks import Findings, check_mesh
from xds_server.config.checks_sources import check_sources
from xds_server.config.checks_template import check_templates
from xds_server.config.checks_usage import check_usage
from xds_server.config.inert import inert_keys
from xds_server.config.own.files import Look, Sources
from xds_server.config.source import read_document, read_text
from xds_server.config.translate import translate
from xds_server.config.validate import validate
from xds_server.errors import ConfigError, Problem
from xds_server.model.topology import Mesh

if TYPE_CHECKING:
    from xds_server.config.own.sets import Entry

__all__ = ["Look", "Sources", "inert_keys", "load_mesh", "parse_mesh"]


def load_mesh(path: Path) -> Mesh:
    """Read a mesh from a file; raise ConfigError with all of its problems."""
    return parse_mesh(read_text(path), str(path))


def parse_mesh(text: str, path: str) -> Mesh:
    """Return the mesh that ``text`` declares; ``path`` is what errors name.

    Files of `resources:` are read relative to it.
    """
    document, problems = read_document(text, path)
    file, broken = validate(document, problems)
    findings = Findings(document, broken, problems)
    check_mesh(file, findings)
    check_sources(file, findings)
    check_usage(file, findings)
    check_templates(file, findings)
    entries: list[Entry] = []
    if file.resources:  # Envoy's message classes take a while to import
        from xds_server.config.own.sets import read_entries

        entries = read_entries(file, document, problems)
    _raise(problems, path)
    mesh = translate(file)
    if not entries:
        return mesh
    from xds_server.config.own.checks import check_entries

    check_entries(mesh, entries, document, problems)
    _raise(problems, path)
    return replace(mesh, resources=tuple(entry.resource_set() for entry in entries))


def _raise(problems: list[Problem], path: str) -> None:
    """Raise all problems, those of mesh.yaml first."""
    if problems:
        ordered = sorted(problems, key=lambda p: (p.path != path, p.path, p.line, p.key))
        raise ConfigError(tuple(ordered))
