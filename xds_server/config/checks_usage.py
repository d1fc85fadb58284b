"""Faults of meaning in who measures what instances and providers use."""

import re
from typing import Final

from xds_server.config.checks import Findings
from xds_server.config.checks_sources import check_adapter, check_url
from xds_server.config.schema import MeshFile
from xds_server.config.schema_sources import (
    USAGE_KEYS,
    USAGE_QUERIES,
    ProcessSection,
    UsageSection,
)
from xds_server.config.source import KeyPath

_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_WAYS: Final = ("pid_file", "port", "command")
_PATTERN_CHARS_MAX: Final = 1000


def check_usage(mesh: MeshFile, findings: Findings) -> None:
    """Check every entry of ``usage``."""
    providers = {name for s in mesh.services.values() for name in s.providers}
    for i, section in enumerate(mesh.usage):
        at: KeyPath = ("usage", i)
        if not check_adapter(at, "usage", section, USAGE_KEYS, findings):
            continue
        if section.adapter == "prometheus":
            check_url(at, section, findings)
            _check_queries(at, section, findings)
        else:
            _check_processes(at, section, providers, findings)


def _check_queries(at: KeyPath, section: UsageSection, findings: Findings) -> None:
    keys = [(*at, key) for key in USAGE_QUERIES]
    if all(getattr(section, key) is None for key in USAGE_QUERIES):
        remedy = "write `cpu_query`, `memory_query` or both"
        findings.add(at, "asks for nothing", remedy, keys)
    labels = [(*at, "node_label"), (*at, "provider_label")]
    if (section.node_label is None) == (section.provider_label is None):
        both = "two labels" if section.node_label else "no label"
        remedy = "write `node_label`, whose values are node ids, or `provider_label`"
        findings.add(at, f"has {both} that says whose the values are", remedy, labels)
    for key in ("node_label", "provider_label"):
        label = getattr(section, key)
        if label is not None and not _LABEL.fullmatch(label):
            remedy = "use a-z, A-Z, 0-9 and _, with no digit first"
            findings.add((*at, key), f"{label[:60]!r} is not a label of Prometheus", remedy)
    if section.utilisation_query is not None and section.node_label is not None:
        here = (*at, "utilisation_query")
        remedy = "remove it, or write `provider_label` in place of `node_label`"
        findings.add(here, "only providers are utilised, not instances", remedy)


def _check_processes(
    at: KeyPath, section: UsageSection, providers: set[str], findings: Findings
) -> None:
    if not section.processes and not section.providers:
        keys = [(*at, "processes"), (*at, "providers")]
        remedy = "write `processes: {NODE: {pid_file: PATH}}` or `providers: [NAME]`"
        findings.add(at, "measures nobody", remedy, keys)
    for node_id, process in section.processes.items():
        _check_process((*at, "processes", node_id), process, findings)
    for i, name in enumerate(section.providers):
        if name not in providers:
            findings.unknown((*at, "providers", i), "provider", name, providers, ("services",))


def _check_process(at: KeyPath, process: ProcessSection, findings: Findings) -> None:
    if not at[-1]:
        findings.add(at, "has no name", "write the node id of an instance", depends=())
    ways = [way for way in _WAYS if getattr(process, way) is not None]
    if len(ways) != 1:
        found = " and ".join(ways) or "no way to find it"
        remedy = "write one of `pid_file`, `port` and `command`"
        findings.add(at, f"has {found}", remedy, [(*at, way) for way in _WAYS])
    if process.command is not None:
        try:
            re.compile(process.command)
        except re.error as error:
            message = f"is not a regular expression: {error}"
            findings.add((*at, "command"), message, "write it like `gunicorn.*checkout`")
        if len(process.command) > _PATTERN_CHARS_MAX:
            message = f"is longer than {_PATTERN_CHARS_MAX} characters"
            findings.add((*at, "command"), message, "shorten it")
