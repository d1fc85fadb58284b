"""Faults of meaning in templates and applications."""

from collections.abc import Iterable, Mapping
from typing import Final

from xds_server.config.checks import Findings
from xds_server.config.schema import (
    BehaviourSection,
    CallSection,
    MeshFile,
    ProfileSection,
    ProviderSection,
    TemplateSection,
)
from xds_server.config.source import KeyPath
from xds_server.config.units import nearest
from xds_server.config.when import faults

CALL_MIX_TOLERANCE: Final = 0.02
_SERVES: Final = ("capabilities", "locality", "standby", "baseline_weight")


def check_templates(mesh: MeshFile, findings: Findings) -> None:
    """Check all templates, and what applications refer to."""
    for name, template in mesh.templates.items():
        at: KeyPath = ("templates", name)
        findings.label(at, "a template")
        _check_calls((*at, "calls"), template, mesh, findings)
        _check_profiles((*at, "profiles"), template, mesh, findings)
        _check_reach(at, template, mesh, findings)
        _check_behaviour((*at, "behaviour"), template.behaviour, template, findings)
        for flag_name, flag in template.flags.items():
            here = (*at, "flags", flag_name)
            findings.label(here, "a flag", underscore=True)
            _check_called((*here, "saves"), flag.saves, template, findings)
            if flag.owner == "operator" and (flag.saves or flag.worth_usd_per_h):
                message = "the engine never switches a flag of the operator's"
                key = "saves" if flag.saves else "worth_usd_per_h"
                findings.add((*here, key), message, "remove it, or write `owner: engine`")
    declared = set(mesh.templates) | set(findings.document.names("templates"))
    for name, application in mesh.applications.items():
        here = ("applications", name)
        findings.label(here, "an application")
        if application.template not in declared:
            at = (*here, "template")
            findings.unknown(at, "template", application.template, declared, ("templates",))


def _check_calls(
    at: KeyPath, template: TemplateSection, mesh: MeshFile, findings: Findings
) -> None:
    if not template.calls:
        findings.add(at, "has no entry", "name a service that the application calls")
    declared = set(mesh.services) | set(findings.document.names("services"))
    listeners: dict[str, str] = {}
    for name, call in template.calls.items():
        here = (*at, name)
        if name not in declared:
            findings.unknown(here, "service", name, declared, ("services",))
        if call.listener is not None:
            other = listeners.setdefault(str(call.listener), name)
            if other != name:
                message = f"{call.listener} is also the listener of `{other}`"
                findings.add((*here, "listener"), message, "write another port, or remove it")
        _check_requires(here, name, call, mesh, findings)


def _check_requires(
    at: KeyPath, service: str, call: CallSection, mesh: MeshFile, findings: Findings
) -> None:
    providers = _providers(mesh, service)
    if not providers:
        return
    known = {c for p in providers.values() for c in p.capabilities}
    for i, capability in enumerate(call.requires):
        if capability not in known:
            where = (*at, "requires", i)
            message = f"no provider of `{service}` is capable of {capability!r}"
            options = ", ".join(f"`{k}`" for k in sorted(known)[:8])
            has = f"write one of {options}" if known else "remove it"
            remedy = f"{has}, or add it to a provider's `capabilities`"
            findings.add(
                where, message, remedy, [where, *_facts(service, findings, "capabilities")]
            )


def _check_profiles(
    at: KeyPath, template: TemplateSection, mesh: MeshFile, findings: Findings
) -> None:
    if not template.profiles:
        findings.add(at, "has no entry", "write `profiles: {steady: {latency_p95_s: 0.3}}`")
    last = next(reversed(template.profiles), None)
    flags = set(template.flags) | set(findings.document.names(*map(str, at[:-1]), "flags"))
    for name, profile in template.profiles.items():
        here = (*at, name)
        findings.label(here, "a profile", underscore=True)
        _check_order(here, profile, name == last, str(last), findings)
        if profile.when is not None:
            for message, remedy in faults(profile.when, flags):
                findings.add((*here, "when"), message, remedy)
        _check_weights((*here, "weights"), profile, findings)
        if profile.survive_loss and profile.latency_p95_s is None:
            message, remedy = "there is no objective that could survive", "add latency_p95_s"
            findings.add((*here, "survive_loss"), message, remedy)
        _check_regions((*here, "geography"), profile, mesh, findings)


def _check_order(
    at: KeyPath, profile: ProfileSection, is_last: bool, last: str, findings: Findings
) -> None:
    when = (*at, "when")
    if is_last and profile.when is not None:
        message = "the last profile must hold whenever no other does"
        remedy = "remove it, or add a profile without `when` at the end"
        findings.add(when, message, remedy)
    elif not is_last and profile.when is None:
        message = f"has no `when`: it always holds, so `{last}` and all in between never would"
        findings.add(at, message, "write `when: <CEL>`, or move it to the end", [when])


def _check_weights(at: KeyPath, profile: ProfileSection, findings: Findings) -> None:
    weights = profile.weights
    if weights.performance == 0.0 and weights.cost == 0.0:
        findings.add(at, "performance and cost are both 0", "write one of them above 0")


def _check_regions(
    at: KeyPath, profile: ProfileSection, mesh: MeshFile, findings: Findings
) -> None:
    if findings.is_broken(("services",)):
        return
    known = _regions(mesh)
    for key in ("require", "prefer"):
        for i, region in enumerate(getattr(profile.geography, key)):
            if region not in known:
                where = (*at, key, i)
                options = ", ".join(f"`{r}`" for r in nearest(region, known) or sorted(known)[:8])
                remedy = f"write {options}" if known else "remove it"
                remedy += ", or give a provider that `locality`"
                message = f"no provider is in region {region!r}"
                depends = [f for s in mesh.services for f in _facts(s, findings, "locality")]
                findings.add(where, message, remedy, [where, *depends])


def _check_reach(
    at: KeyPath, template: TemplateSection, mesh: MeshFile, findings: Findings
) -> None:
    """Check that each call has a provider with baseline weight, in every phase."""
    for service, call in template.calls.items():
        providers = _providers(mesh, service)
        capable = [p for p in providers.values() if set(call.requires) <= set(p.capabilities)]
        if not capable:
            continue  # said where the service or the capability is
        here = (*at, "calls", service)
        depends = [(*here, "requires"), *_facts(service, findings, *_SERVES)]
        if not _weight(capable):
            message = "could never be served: no provider that it may use has a baseline weight"
            remedy = f"give a provider of `{service}` a `baseline_weight` above 0, not on standby"
            findings.add(here, message, remedy, depends)
            continue
        for name, profile in template.profiles.items():
            require = set(profile.geography.require)
            near = [p for p in capable if p.locality.region in require]
            if require and require <= _regions(mesh) and not _weight(near):
                where = (*at, "profiles", name, "geography", "require")
                message = f"leaves the call of `{service}` without a provider that takes traffic"
                regions = sorted({p.locality.region for p in capable if _weight([p])} - {""})
                remedy = f"add one of its regions: {', '.join(f'`{r}`' for r in regions)}"
                remedy = remedy if regions else f"give providers of `{service}` a `locality`"
                findings.add(where, message, remedy, [*depends, where])


def _check_behaviour(
    at: KeyPath, behaviour: BehaviourSection, template: TemplateSection, findings: Findings
) -> None:
    for key in ("call_rate_rps", "call_mix", "response_bytes"):
        values = getattr(behaviour, key)
        _check_called((*at, key), values, template, findings)
        if key != "call_mix":
            for service, band in values.items():
                _check_band((*at, key, service), band, findings)
    for key in ("read_ratio", "error_ratio", "cpu_ratio", "memory_bytes"):
        _check_band((*at, key), getattr(behaviour, key), findings)
    total = sum(behaviour.call_mix.values())
    if behaviour.call_mix and abs(total - 1.0) > CALL_MIX_TOLERANCE + 1e-9:
        message = f"sums to {total:.4g}; it is how the calls divide"
        findings.add((*at, "call_mix"), message, "write ratios that sum to 1")


def _check_band(at: KeyPath, band: tuple[float, float] | None, findings: Findings) -> None:
    if band is not None and band[0] > band[1]:
        message = f"lowest {band[0]:g} is above highest {band[1]:g}"
        findings.add(at, message, f"write `[{band[1]:g}, {band[0]:g}]`")


def _check_called(
    at: KeyPath, values: Mapping[str, object], template: TemplateSection, findings: Findings
) -> None:
    calls = ("templates", str(at[1]), "calls")
    called = set(template.calls) | set(findings.document.names(*calls))
    for service in values:
        if service not in called:
            findings.unknown((*at, service), "call", service, called, calls)


def _facts(service: str, findings: Findings, *keys: str) -> list[KeyPath]:
    """Return where the file says those things of each provider of a service."""
    at = ("services", service, "providers")
    return [(*at, p, key) for p in findings.document.names(*at) for key in keys]


def _regions(mesh: MeshFile) -> set[str]:
    providers = (p for s in mesh.services.values() for p in s.providers.values())
    return {p.locality.region for p in providers} - {""}


def _providers(mesh: MeshFile, service: str) -> dict[str, ProviderSection]:
    found = mesh.services.get(service)
    return found.providers if found is not None else {}


def _weight(providers: Iterable[ProviderSection]) -> int:
    return sum(
        1 if p.baseline_weight is None else p.baseline_weight for p in providers if not p.standby
    )
