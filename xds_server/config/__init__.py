"""mesh.yaml: read, checked and translated; every error names file, line, key and remedy."""

from pathlib import Path

from xds_server.config.checks import Findings, check_mesh
from xds_server.config.checks_template import check_templates
from xds_server.config.inert import inert_keys
from xds_server.config.source import read_document
from xds_server.config.translate import translate
from xds_server.config.validate import validate
from xds_server.errors import ConfigError, Problem
from xds_server.model.topology import Mesh

__all__ = ["inert_keys", "load_mesh", "parse_mesh"]


def load_mesh(path: Path) -> Mesh:
    """Read a mesh from a file; raise ConfigError with all of its problems."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        why = error.strerror or type(error).__name__
        remedy = "name a file that exists and that this user may read"
        problem = Problem(str(path), 0, "(file)", f"cannot be read: {why}", remedy)
        raise ConfigError((problem,)) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8: byte 0x{raw[error.start]:02x}"
        problem = Problem(str(path), line, "(file)", message, "save the file as UTF-8")
        raise ConfigError((problem,)) from error
    return parse_mesh(text, str(path))


def parse_mesh(text: str, path: str) -> Mesh:
    """Return the mesh that ``text`` declares; ``path`` is what errors name."""
    document, problems = read_document(text, path)
    file, broken = validate(document, problems)
    findings = Findings(document, broken, problems)
    check_mesh(file, findings)
    check_templates(file, findings)
    if problems:
        raise ConfigError(tuple(sorted(problems, key=lambda p: (p.line, p.key))))
    return translate(file)
