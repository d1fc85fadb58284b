"""Asks Envoy itself whether it would take what its nodes would get."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xds_server.model.topology import Mesh
from xds_server.resources.preflight import Preflight, preflights

WITHIN_S: Final = 30.0
"""How long one validation may take; Envoy needs 0.2 s for 200 clusters and 200 routes."""
TEXT_MAX: Final = 4000
SUSPECTS_MAX: Final = 50
"""Own resources that are left out one by one, to find the one that Envoy refuses."""
_TOOLS: Final = ".tools/envoy/_bin/envoy"
_STAMP: Final = re.compile(r"^\[[\d :.-]+\](\[[\w-]+\])+ (\[[^\]]*\] )?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What Envoy says of what some nodes of an application would get."""

    application: str
    nodes: str
    accepted: bool
    text: str  # Envoy's own words, "" when it accepts
    culprits: tuple[str, ...] = ()  # own resources without each of which it would accept


def find_envoy(asked: Path | None) -> Path | None:
    """Return the Envoy to ask: the one asked for, $ENVOY, that of ``make setup``, or PATH's."""
    if asked is not None:
        found = shutil.which(asked)
        return Path(found) if found else None
    for name in (os.environ.get("ENVOY"), _TOOLS, "envoy"):
        found = shutil.which(name) if name else None
        if found:
            return Path(found)
    return None


def ask_envoy(mesh: Mesh, envoy: Path) -> Iterator[Verdict]:
    """Validate what each application's nodes would get.

    OSError when the binary cannot be run; subprocess.TimeoutExpired when it takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="xds-server-") as folder:
        for preflight in preflights(mesh):
            yield _verdict(preflight, envoy, Path(folder) / "bootstrap.pb")


def _verdict(preflight: Preflight, envoy: Path, file: Path) -> Verdict:
    said = _ask(preflight.render(None), envoy, file)
    culprits = [
        f"{r.type_url.rpartition('.')[2]} {r.name}"
        for r in (preflight.own[:SUSPECTS_MAX] if said else ())
        if not _ask(preflight.render(r), envoy, file)
    ]
    return Verdict(preflight.application, preflight.nodes, not said, said, tuple(culprits))


def _ask(bootstrap: bytes, envoy: Path, file: Path) -> str:
    """Return why Envoy refuses; "" if it does not."""
    file.write_bytes(bootstrap)
    done = subprocess.run(
        [envoy, "--mode", "validate", "-c", file, "-l", "error", "--concurrency", "1"],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=WITHIN_S,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode == 0:
        return ""
    said = _STAMP.sub("", done.stderr + done.stdout).replace(f" '{file}'", "").strip()
    return said[:TEXT_MAX] or f"exit status {done.returncode}"
