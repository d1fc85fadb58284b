"""Keys that are accepted and checked, but have no effect: in this version, or in this mesh."""

from collections.abc import Iterator

from xds_server.model.topology import Mesh


def inert_keys(mesh: Mesh) -> tuple[str, ...]:
    """Return one line per key that nothing acts on yet: "key: what will use it"."""
    return tuple(_inert(mesh))


def _without_source(mesh: Mesh) -> dict[str, str]:
    """Return the keys of behaviour that nothing measures, with what would."""
    sources = mesh.usage
    measured = [s for s in sources if "node_label" in s.options or "processes" in s.options]
    lacking = {}
    if not mesh.telemetry.access_log_sample_ratio:
        lacking["read_ratio"] = "telemetry.access_log_sample_ratio is 0, so nothing measures it"
    for key, query in (("cpu_ratio", "cpu_query"), ("memory_bytes", "memory_query")):
        if not any("processes" in s.options or query in s.options for s in measured):
            lacking[key] = "no entry of `usage` measures it for instances"
    return lacking


def _inert(mesh: Mesh) -> Iterator[str]:
    flags = [(t.name, f) for t in mesh.templates.values() for f in t.flags]
    for service in mesh.services.values():
        for provider in service.providers:
            at = f"services.{service.name}.providers.{provider.name}"
            if provider.scale is not None:
                yield f"{at}.scale.adapter: will start endpoints; their number is recommended"
    lacking = _without_source(mesh)
    for template in mesh.templates.values():
        for key, why in lacking.items():
            if getattr(template.behaviour, key) is not None:
                yield f"templates.{template.name}.behaviour.{key}: checks will use it; {why}"
    for name, flag in flags:
        if flag.owner == "engine":
            at = f"templates.{name}.flags.{flag.name}"
            if not flag.default and (flag.saves or flag.worth_usd_per_h):
                key = "saves" if flag.saves else "worth_usd_per_h"
                yield f"{at}.{key}: only features that are on by default are switched"
            elif flag.saves and not flag.worth_usd_per_h:
                yield f"{at}.saves: switching needs worth_usd_per_h as well"
            elif flag.worth_usd_per_h and not flag.saves:
                yield f"{at}.worth_usd_per_h: switching needs saves as well"
