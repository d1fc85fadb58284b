"""Faults of meaning in services, providers, engine, server and history."""

import re
from collections.abc import Iterable
from typing import Final

from xds_server.config.schema import (
    EngineSection,
    HistorySection,
    MeshFile,
    ProviderSection,
    ServerSection,
)
from xds_server.config.source import Document, KeyPath, dotted
from xds_server.config.units import nearest
from xds_server.errors import Problem
from xds_server.model.history import RESOLUTION_S

SCALERS: Final = ("process",)
HEARTBEATS_PER_TTL: Final = 3
"""Overlay renewals, one a tick, that may get lost before weights expire."""
_ROUNDED: Final = 1e-9
"""What three tenths may miss three times a tenth by."""

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL_UNDERSCORE: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")


class Findings:
    """Collects problems; keeps silent about what only follows from another one."""

    def __init__(self, document: Document, broken: set[KeyPath], problems: list[Problem]) -> None:
        self.document = document
        self.problems = problems
        self._broken = broken

    def is_broken(self, at: KeyPath) -> bool:
        """Whether exactly this was taken out, so that nothing is known of what is in it."""
        return at in self._broken

    def add(
        self, at: KeyPath, message: str, remedy: str, depends: Iterable[KeyPath] | None = None
    ) -> None:
        """Report a problem unless one of the paths that it depends on is broken already."""
        needs = (at,) if depends is None else tuple(depends)
        if not any(_related(b, n) for b in self._broken for n in needs):
            self.problems.append(self.document.problem(at, message, remedy))

    def unknown(
        self, at: KeyPath, what: str, name: str, known: Iterable[str], where: KeyPath
    ) -> None:
        """Report a name that nothing under ``where`` declares."""
        if self.is_broken(where):
            return
        options = sorted(known)
        near = nearest(name, options)
        if near:
            remedy = f"write `{near[0]}`, or declare `{name}` under `{dotted(where)}`"
        elif options:
            some = ", ".join(f"`{o}`" for o in options[:8])
            remedy = f"write one of {some}, or declare `{name}` under `{dotted(where)}`"
        else:
            remedy = f"declare `{name}` under `{dotted(where)}`"
        self.add(at, f"no {what} is named {name!r}", remedy, depends=())

    def label(self, at: KeyPath, what: str, name: str = "", *, underscore: bool = False) -> None:
        """Report a name that cannot be part of an Envoy resource name."""
        name = name or str(at[-1])
        if (_LABEL_UNDERSCORE if underscore else _LABEL).fullmatch(name):
            return
        allowed = "a-z, 0-9, - and _" if underscore else "a-z, 0-9 and -"
        slug = re.sub(r"[^a-z0-9_]+" if underscore else r"[^a-z0-9]+", "-", name.lower())[:63]
        slug = slug.strip("-_")
        example = f", like `{slug}`" if slug else ""
        remedy = f"use at most 63 of {allowed}, with a letter or digit at both ends{example}"
        self.add(at, f"{name[:70]!r} is no name for {what}", remedy, depends=())


def _related(one: KeyPath, other: KeyPath) -> bool:
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def check_mesh(mesh: MeshFile, findings: Findings) -> None:
    """Check all but templates, applications, and where endpoints and prices come from."""
    findings.label(("mesh",), "a mesh", mesh.mesh or "(empty)", underscore=True)
    for section in ("services", "templates", "applications"):
        if not getattr(mesh, section):
            remedy = f"declare at least one entry under `{section}`"
            findings.add((section,), "has no entry", remedy)
    _check_engine(mesh.engine, mesh, findings)
    _check_server(mesh.server, findings)
    if mesh.history is not None:
        _check_history(mesh.history, findings)
    seen: dict[str, str] = {}
    for service_name, service in mesh.services.items():
        at: KeyPath = ("services", service_name)
        findings.label(at, "a service")
        if not service.providers:
            remedy = "declare a provider with `endpoints` or `discovery`"
            findings.add((*at, "providers"), "has no entry", remedy)
        for name, provider in service.providers.items():
            here = (*at, "providers", name)
            findings.label(here, "a provider")
            if name in seen:
                remedy = f"rename one of the two, like `{service_name}-{name}`"
                message = f"is also a provider of `{seen[name]}`; it names an Envoy cluster"
                findings.add(here, message, remedy, depends=())
            seen.setdefault(name, service_name)
            _check_provider(here, provider, findings)


def _check_provider(at: KeyPath, provider: ProviderSection, findings: Findings) -> None:
    sources = ((*at, "endpoints"), (*at, "discovery"))
    if provider.endpoints is not None and provider.discovery is not None:
        findings.add(at, "has both endpoints and discovery", "remove one of the two", sources)
    elif provider.endpoints is None and provider.discovery is None:
        remedy = "write `endpoints: [{address: 127.0.0.1, port: 9101}]` or `discovery: {...}`"
        findings.add(at, "has neither endpoints nor discovery", remedy, sources)
    if provider.endpoints is not None:
        _check_endpoints((*at, "endpoints"), provider, findings)
    if provider.standby and provider.baseline_weight:
        message = "a standby provider takes no traffic until it substitutes for another"
        findings.add((*at, "baseline_weight"), message, "write 0, or remove `standby`")
    scale = provider.scale
    if scale is None:
        return
    if scale.adapter not in SCALERS:
        message = f"no scaling adapter is named {scale.adapter!r}"
        findings.add((*at, "scale", "adapter"), message, f"write `{SCALERS[0]}`")
    if scale.min > scale.max:
        message = f"min {scale.min} is above max {scale.max}"
        findings.add((*at, "scale", "min"), message, f"write at most {scale.max}", [(*at, "scale")])


def _check_endpoints(at: KeyPath, provider: ProviderSection, findings: Findings) -> None:
    if not provider.endpoints:
        findings.add(at, "has no entry", "write `[{address: 127.0.0.1, port: 9101}]`")
    seen: dict[tuple[str, int | None], int] = {}
    for i, endpoint in enumerate(provider.endpoints or ()):
        pipe = endpoint.address.startswith("unix:")
        if not pipe and endpoint.port is None:
            findings.add((*at, i), "has no port", "write `port: <port>`", [(*at, i, "port")])
        if pipe and endpoint.port is not None:
            findings.add((*at, i, "port"), "a unix socket has no port", "remove it")
        key = (endpoint.address, endpoint.port)
        if key in seen:
            message = f"is the same as entry {seen[key]}"
            findings.add((*at, i), message, "list each endpoint once")
        seen.setdefault(key, i)


def _check_engine(engine: EngineSection, mesh: MeshFile, findings: Findings) -> None:
    tick, ttl = ("engine", "tick_s"), ("engine", "weights_ttl_s")
    least_s = HEARTBEATS_PER_TTL * engine.tick_s
    if engine.weights_ttl_s < least_s * (1.0 - _ROUNDED):
        message = f"{engine.weights_ttl_s:g} s would expire when one or two ticks are late"
        remedy = f"write at least {least_s:g} ({HEARTBEATS_PER_TTL} times tick_s)"
        findings.add(ttl, message, remedy, [tick, ttl])
    flush_s = mesh.telemetry.stats_flush_interval_s
    if engine.tick_s < flush_s * (1.0 - _ROUNDED):
        flush = ("telemetry", "stats_flush_interval_s")
        message = f"{engine.tick_s:g} s is shorter than the {flush_s:g} s between two reports"
        remedy = f"write at least {flush_s:g}, or `stats_flush_interval_s: {engine.tick_s:g}`"
        findings.add(tick, f"{message} of a sidecar", remedy, [tick, flush])
    slow = ("engine", "slow_tick_s")
    if engine.slow_tick_s < engine.tick_s:
        message = f"{engine.slow_tick_s:g} s is shorter than tick_s"
        findings.add(slow, message, f"write at least {engine.tick_s:g}", [tick, slow])
    share = ("engine", "min_share_ratio")
    for name, service in mesh.services.items():
        count = len(service.providers)
        if engine.min_share_ratio * count >= 1.0:
            message = f"{engine.min_share_ratio:g} for each of the {count} providers of `{name}`"
            remedy = f"write less than {1.0 / count:g}"
            findings.add(share, f"{message} is all the traffic", remedy)


def _check_server(server: ServerSection, findings: Findings) -> None:
    if server.xds.address == server.admin.address and (
        server.xds.address.is_pipe or server.xds.address.port != 0
    ):
        xds, admin = ("server", "xds", "address"), ("server", "admin", "address")
        remedy = "write another port"
        at = admin if findings.document.names("server", "admin") else xds
        message = f"xds and admin both listen on {server.xds.address}"
        findings.add(at, message, remedy, [xds, admin])
    tls = server.xds.tls
    if tls is not None and tls.bind_node_id and tls.client_ca is None:
        bind = ("server", "xds", "tls", "bind_node_id")
        message = "clients show no certificate that their node could be bound to"
        findings.add(bind, message, "add client_ca, or drop bind_node_id")


def _check_history(history: HistorySection, findings: Findings) -> None:
    at: KeyPath = ("history", "keep")
    if not history.keep:
        findings.add(at, "has no entry", "write `keep: {1s: 1h}`")
    for resolution, keep_s in history.keep.items():
        if resolution not in RESOLUTION_S:
            message = f"{resolution[:40]!r} is not a resolution of history"
            findings.add((*at, resolution), message, "write `1s`, `1m` or `1h`")
        elif keep_s < RESOLUTION_S[resolution]:
            message = f"keeps steps of {resolution} for less than one step"
            findings.add((*at, resolution), message, f"write at least `{resolution}`")
