"""An engine without a mesh: models from what is declared and what history knows of them."""

import math
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from xds_server.engine.loop import Tick, tick
from xds_server.engine.problem import build_problem
from xds_server.engine.seeding import plant_providers, plant_routes
from xds_server.engine.state import EngineState, initial_state
from xds_server.engine.types import Group, Problem
from xds_server.model.history import Seeds
from xds_server.model.ids import GroupKey, Locality, ProviderName, RouteKey
from xds_server.model.snapshot import Overlay
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, PairWindow, ProviderLoad
from xds_server.model.topology import Address, EngineSettings, Mesh, Mode

_ELAPSED_S: Final = 1e-3
"""So little that nothing that is known grows old."""
_LONG_AGO_S: Final = -1e9
_SOMEBODY: Final = frozenset({"offline"})
_SOMEWHERE: Final = (Address("192.0.2.1"),)  # counted, never connected to (RFC 5737)


class Nobody:
    """An actuator without sidecars."""

    def publish(self, overlay: Overlay, now_s: float) -> None:
        """Take weights nowhere."""

    def renew(self, now_s: float) -> None:
        """Keep nothing alive."""


def imagine_state(problem: Problem, nothing: Problem, seeds: Seeds) -> EngineState:
    """Return an engine's memory that knows what ``seeds`` say, as if it were of this moment.

    ``nothing`` is a problem without routes.
    """
    state = initial_state(problem)
    plant_providers(state, seeds)
    plant_routes(state, nothing, seeds, now_s=seeds.read_at_s, ttl_s=math.inf)
    return state


def look(
    state: EngineState,
    settings: EngineSettings,
    price_usd: Mapping[ProviderName, float],
    now_s: float,
) -> Tick:
    """Run one tick of ``state``, which is nobody else's, without telemetry or sidecars.

    ``price_usd`` is per request; a provider without one has its declared price.
    """
    return tick(
        state, _silence(), _prices(price_usd), Nobody(), settings, Mode.OBSERVE,
        now_s=now_s, elapsed_s=_ELAPSED_S,
    )  # fmt: skip


def imagine_groups(mesh: Mesh, routes: Iterable[RouteKey]) -> tuple[tuple[Group, ...], list[str]]:
    """Return the groups of ``routes`` that the mesh still has; and what was assumed.

    An application without any has one instance, in the phase that needs no condition.
    """
    keys = {r.group for r in routes if _known(mesh, r.group)}
    notes = []
    for name, application in mesh.applications.items():
        if any(key.application == name for key in keys):
            continue
        profiles = application.template.profiles
        phase = next((p.name for p in profiles if p.when is None), profiles[-1].name)
        keys.add(GroupKey(name, phase, Locality()))
        notes.append(
            f"{name}: one instance, in phase {phase}, in no region; no history of its calls"
        )
    return tuple(imagine_group(mesh, key) for key in sorted(keys)), notes


def imagine_group(mesh: Mesh, key: GroupKey) -> Group:
    """Return a group of one instance that is long in its phase."""
    template = key.template or mesh.applications[key.application].template.name
    return Group(key, _SOMEBODY, template, None, _LONG_AGO_S)


def imagine_endpoints(
    mesh: Mesh, present: Iterable[ProviderName]
) -> dict[ProviderName, tuple[Address, ...]]:
    """Return endpoints as declared; one where they are discovered and it is ``present``."""
    there = set(present)
    found = {}
    for name, provider in mesh.providers.items():
        if provider.endpoints or provider.discovery is None:
            found[name] = provider.endpoints
        else:
            found[name] = _SOMEWHERE if name in there else ()
    return found


def problem_without_routes(mesh: Mesh) -> Problem:
    """Return what an engine begins with."""
    return build_problem(mesh, {}, ())


def _known(mesh: Mesh, key: GroupKey) -> bool:
    if key.application not in mesh.applications:
        return False
    template = mesh.templates.get(key.template) if key.template else None
    found = template or mesh.applications[key.application].template
    return any(p.name == key.phase for p in found.profiles)


def _silence() -> PairWindow:
    rows, none = np.empty(0, dtype=np.int64), np.empty(0)
    return PairWindow(
        window_s=1.0,
        nodes=(),
        providers=(),
        node_row=rows,
        provider_row=rows,
        covered_s=none,
        requests=none,
        errors=none,
        latency_sum_s=none,
        latency_count=none,
        latency_hist=np.empty((0, len(LATENCY_BUCKETS_MS) + 1)),
        active=none,
        rx_bytes=none,
        tx_bytes=none,
        age_s=none,
    )


def _prices(price_usd: Mapping[ProviderName, float]) -> ProviderLoad:
    unknown = np.full(len(price_usd), np.nan)
    usd = np.array(list(price_usd.values()), dtype=np.float64)
    return ProviderLoad(tuple(price_usd), unknown, unknown, 1e6 * usd, np.zeros(len(price_usd)))
