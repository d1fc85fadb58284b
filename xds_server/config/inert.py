"""Keys that are accepted and checked, but have no effect: in this version, or in this mesh."""

from collections.abc import Iterator

from xds_server.model.template import Flag
from xds_server.model.topology import Mesh, WeightsVia


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
        for flag in template.flags:
            for key in ("saves", "worth_usd_per_h"):
                if getattr(flag, key) and (why := _unswitched(mesh, flag)):
                    yield f"templates.{template.name}.flags.{flag.name}.{key}: {why}"


def _unswitched(mesh: Mesh, flag: Flag) -> str:
    """Say why the engine never switches a feature of its own; "" when it may."""
    if not flag.default:
        return "only features that are on by default are switched"
    if mesh.engine.weights_via is WeightsVia.RDS:
        return "engine.weights_via is rds, and features travel in runtime layers alone"
    if not flag.worth_usd_per_h:
        return "switching needs worth_usd_per_h as well"
    return "" if flag.saves else "switching needs saves as well"
