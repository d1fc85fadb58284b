"""What an application expects in each phase of its life."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from xds_server.model.ids import PhaseName, ServiceName

Band: TypeAlias = tuple[float, float]
"""Lowest and highest normal value, both included."""


@dataclass(frozen=True, slots=True)
class Call:
    """One service that the application calls, and how."""

    service: ServiceName
    listener: str  # host:port on the sidecar; resolved by config, never empty
    requires: frozenset[str] = frozenset()
    timeout_s: float = 15.0
    retries: int = 0
    idempotent: bool = True


@dataclass(frozen=True, slots=True)
class Geography:
    """Regions: ``require`` excludes all others, ``prefer`` makes others dearer."""

    require: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """The expectations for one phase. ``when`` is CEL; None always holds."""

    name: PhaseName
    when: str | None = None
    latency_p95_s: float | None = None
    throughput_rps: float | None = None
    cost_usd_per_h: float | None = None
    geography: Geography = Geography()
    performance_weight: float = 0.5
    cost_weight: float = 0.5
    survive_loss: bool = False


@dataclass(frozen=True, slots=True)
class Phases:
    """What keeps phases from flapping and objectives from jumping."""

    min_dwell_s: float = 10.0
    blend_s: float = 6.0


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What is normal. None means that no expectation was declared."""

    call_rate_rps: Mapping[ServiceName, Band] = field(default_factory=dict)
    call_mix: Mapping[ServiceName, float] = field(default_factory=dict)
    response_bytes: Mapping[ServiceName, Band] = field(default_factory=dict)
    read_ratio: Band | None = None
    error_ratio: Band | None = None
    cpu_ratio: Band | None = None
    memory_bytes: Band | None = None


@dataclass(frozen=True, slots=True)
class Flag:
    """A feature of the application. ``owner`` is "engine" or "operator"."""

    name: str
    default: bool
    owner: str = "engine"
    saves: Mapping[ServiceName, float] = field(default_factory=dict)
    worth_usd_per_h: float = 0.0


@dataclass(frozen=True, slots=True)
class Template:
    """Everything an application declares about itself."""

    name: str
    calls: tuple[Call, ...]
    profiles: tuple[Profile, ...]  # in order of precedence
    phases: Phases = Phases()
    behaviour: Behaviour = Behaviour()
    flags: tuple[Flag, ...] = ()

    def profile(self, phase: PhaseName) -> Profile:
        """Return the profile of that phase; KeyError when there is none."""
        for profile in self.profiles:
            if profile.name == phase:
                return profile
        raise KeyError(phase)
