"""What-if and replayed decisions: of a running engine, of history, or of mesh.yaml alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from xds_server.app.history_view import reading
from xds_server.config import load_mesh
from xds_server.engine.changes import parse_changes
from xds_server.engine.offline import (
    imagine_endpoints,
    imagine_groups,
    imagine_state,
    look,
    problem_without_routes,
)
from xds_server.engine.problem import build_problem
from xds_server.engine.replay_decisions import replay_decisions
from xds_server.engine.runner import Engine
from xds_server.engine.what_if import PAIRS_MAX, what_if
from xds_server.errors import HistoryError
from xds_server.history.seeds import read_seeds
from xds_server.history.steps import newest_s
from xds_server.history.writer import History
from xds_server.model.decision_replay import DecisionReplay
from xds_server.model.history import Seeds
from xds_server.model.ids import ProviderName
from xds_server.model.topology import Mesh
from xds_server.model.what_if import Quantity, WhatIf


def ask_engine(
    engine: Engine,
    mesh: Mesh,
    endpoints: dict[ProviderName, int],
    application: str,
    service: str,
    texts: Sequence[str],
) -> Callable[[], WhatIf]:
    """Return what computes the answer, in any thread, from the engine as it is now.

    Raises KeyError and ValueError, as its result does.
    """
    changes = parse_changes(texts)
    if engine.last is None:
        raise KeyError(f"no route {application}/{service}; nothing was decided yet")
    # The engine puts new arrays into its state, it does not write into old ones: a copy of the
    # record stays what it is.
    state, last = replace(engine.state), engine.last.tick
    pairs = len(state.problem.excluded_because)
    if pairs > PAIRS_MAX:
        raise ValueError(
            f"{pairs} pairs of route and provider, a running engine answers up to {PAIRS_MAX}: "
            "ask offline, with --config"
        )
    return lambda: what_if(
        state,
        last,
        mesh.engine,
        application,
        service,
        changes,
        endpoints=endpoints,
        source="the running engine",
    )


def ask_offline(config: Path, application: str, service: str, texts: Sequence[str]) -> WhatIf:
    """Answer from what ``config`` declares, and from its history where there is one.

    Raises ConfigError, KeyError, ValueError, HistoryError.
    """
    changes, mesh = parse_changes(texts), load_mesh(config)
    seeds, source, notes = _seeds(config, mesh)
    groups, assumed = imagine_groups(mesh, seeds.routes)
    for name, provider in mesh.providers.items():
        if provider.discovery is not None and not provider.endpoints:
            assumed.append(f"{name}: endpoints are discovered, taken as 1")
    endpoints = imagine_endpoints(mesh, mesh.providers)
    nothing = problem_without_routes(mesh)
    state = imagine_state(build_problem(mesh, endpoints, groups), nothing, seeds)
    last = look(state, mesh.engine, {}, seeds.read_at_s)
    answer = what_if(
        state,
        last,
        mesh.engine,
        application,
        service,
        changes,
        endpoints={name: len(found) for name, found in endpoints.items()},
        source=source,
        notes=(*notes, *assumed),
    )
    silent = all(r.demand_rps <= 0.0 for r in answer.routes if r.asked)
    if silent and not any(change.quantity is Quantity.DEMAND for change in changes):
        raise ValueError(
            f"nothing says how often {application} calls {service}: "
            "add --set demand=RPS, or throughput_rps to its profile"
        )
    return answer


def ask_history(
    history: History, mesh: Mesh, profile: str, application: str, since_s: float, resolution: str
) -> Callable[[], DecisionReplay]:
    """Return what replays the decisions of a running server's history, in any thread."""

    def run() -> DecisionReplay:
        with history.reader() as reader:
            found, steps = reader.steps(since_s, resolution)
        return replay_decisions(mesh, steps, profile, application, found)

    return run


def replay_file(
    config: Path,
    history: Path | None,
    profile: str,
    application: str,
    since_s: float,
    resolution: str,
) -> DecisionReplay:
    """Replay the decisions in ``history``, or in the file that ``config`` names; read-only.

    Raises ConfigError, ValueError, HistoryError.
    """
    mesh = load_mesh(config)
    path = history or _history_path(config, mesh)
    if path is None:
        raise HistoryError(str(config), "has no `history`", "name the file with --history")
    if not path.exists():
        raise HistoryError(
            str(path), "no such file", "name one that a server has written with --history"
        )
    with reading(path) as reader:
        found, steps = reader.steps(since_s, resolution)
    return replay_decisions(mesh, steps, profile, application, found)


def _seeds(config: Path, mesh: Mesh) -> tuple[Seeds, str, list[str]]:
    """What history knows, where the models are from, and what was assumed."""
    path, declared = _history_path(config, mesh), f"what {config} declares"
    if path is None or not path.exists():
        return Seeds(), declared, ["no history: capacities and service times as declared"]
    try:
        with reading(path) as reader:
            newest = newest_s(path, reader.connection)
            if newest is None:
                return Seeds(), declared, ["history is empty: models as declared"]
            seeds = read_seeds(path, reader.connection, now_s=0.0, wall_s=newest)
    except HistoryError as error:
        return Seeds(), declared, [f"history not read, models as declared: {error}"]
    at = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return seeds, f"history up to {at} UTC", ["prices as declared in mesh.yaml"]


def _history_path(config: Path, mesh: Mesh) -> Path | None:
    return None if mesh.history is None else config.parent / mesh.history.path
