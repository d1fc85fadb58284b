"""Where people's own resources are: files and folders, relative to mesh.yaml."""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from xds_server.config.source import Tree, read_text, read_trees
from xds_server.errors import ConfigError, Problem

SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
FILE_MAX_BYTES: Final = 16 * 1024 * 1024
FILES_MAX: Final = 10_000
"""Bounds on what is read; more is refused, not cut."""


def locate(mesh_path: Path, written: str) -> Path:
    """Return where an entry's ``path`` is."""
    return mesh_path.parent / Path(written).expanduser()


def files_in(place: Path) -> list[Path]:
    """Return the file itself, or the files of a folder, sorted; OSError if it is neither.

    Hidden files are left out: editors and Kubernetes keep theirs in the same folder.
    """
    if not place.is_dir():
        place.stat()
        return [place]
    found = sorted(
        p
        for p in place.iterdir()
        if p.suffix in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )
    return found[: FILES_MAX + 1]


@dataclass(frozen=True, slots=True)
class Sources:
    """What a configuration is read from: the folders that can change it, and its content."""

    folders: frozenset[Path]
    digest: bytes


class Look:
    """Looks at the sources of a mesh; reads the YAML of mesh.yaml only when it has changed."""

    def __init__(self, mesh_path: Path) -> None:
        self._path = mesh_path.absolute()
        self._mesh = b""
        self._places: list[Path] = []

    def __call__(self) -> Sources:
        """Return the sources as they are now; what cannot be read counts as absent.

        A folder stands for each file in it, since editors and Kubernetes replace files; and
        a place's own folder for a place that is not there yet.
        """
        digest = blake2b(digest_size=16)
        folders = {self._path.parent}
        _add_file(digest, self._path)
        if digest.digest() != self._mesh:
            self._mesh, self._places = digest.digest(), _places_in(self._path)
        for place in self._places:
            folders |= {place.parent, place} if place.is_dir() else {place.parent}
            try:
                found = files_in(place)
            except OSError:
                found = []
            digest.update(b"%d" % len(found))
            for file in found[:FILES_MAX]:
                _add_file(digest, file)
        return Sources(frozenset(f for f in folders if f.is_dir()), digest.digest())


def _add_file(digest: blake2b, file: Path) -> None:
    try:
        large = file.stat().st_size > FILE_MAX_BYTES
        content = b"" if large else file.read_bytes()
    except OSError:
        content = b"absent"
    name = str(file).encode()
    digest.update(b"%d %s %d " % (len(name), name, len(content)))
    digest.update(content)


def _places_in(mesh_path: Path) -> list[Path]:
    """Return the places that a mesh.yaml names, in force or not; none if it cannot be read."""
    try:
        trees, _ = read_trees(read_text(mesh_path), str(mesh_path))
    except ConfigError:
        return []
    data = trees[0].data if trees else None
    listed = data.get("resources") if isinstance(data, dict) else None
    paths = [
        entry.get("path")
        for entry in (listed if isinstance(listed, tuple) else ())
        if isinstance(entry, dict)
    ]
    return [locate(mesh_path, path) for path in paths if isinstance(path, str)]


def read_file(file: Path) -> tuple[list[Tree], list[Problem]]:
    """Return a file's documents, and what is wrong with them."""
    try:
        if file.stat().st_size > FILE_MAX_BYTES:
            remedy = f"keep it below {FILE_MAX_BYTES // 1024**2} MiB: split it"
            return [], [Problem(str(file), 0, "(file)", "is too large", remedy)]
        text = read_text(file)
    except OSError as error:  # gone in between
        remedy = "name a file that exists and that this user may read"
        return [], [Problem(str(file), 0, "(file)", f"cannot be read: {error.strerror}", remedy)]
    except ConfigError as error:
        return [], list(error.problems)
    if file.suffix == ".json":
        text = text.replace("\t", "  ")  # JSON may be indented by tabs, YAML may not
    try:
        trees, problems = read_trees(text, str(file))
    except ConfigError as error:
        return [], list(error.problems)
    trees = [tree for tree in trees if tree.data is not None]
    if not trees and not problems:
        remedy = "write a resource into it, or remove the file"
        problems = [Problem(str(file), 1, "(file)", "is empty", remedy)]
    return trees, problems
