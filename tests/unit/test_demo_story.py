"""The demo's story: how it scales, and that both runs get the same load."""

import numpy as np
import pytest

from xds_server.config import parse_mesh
from xds_server.demo.options import DEFAULT_DURATION_S, MIN_DURATION_S, DemoOptions
from xds_server.demo.run import run_demo
from xds_server.demo.story import RESUME_S, Kind, arrivals_s, tell
from xds_server.demo.world import PEAK_RPS, make_world
from xds_server.model.topology import Mode

TTL_S = 4.0


@pytest.mark.parametrize("duration_s", [MIN_DURATION_S, 47.0, DEFAULT_DURATION_S, 300.0])
def test_every_event_has_its_place_in_a_story_of_any_length(duration_s: float) -> None:
    story = tell(duration_s, TTL_S)
    assert {e.kind for e in story.events} == set(Kind)
    ends = [0.0]
    for event in story.events:
        assert ends[-1] <= event.at_s < event.until_s
        ends.append(event.until_s)
    assert ends[-1] == pytest.approx(duration_s - RESUME_S)


@pytest.mark.parametrize("duration_s", [MIN_DURATION_S, DEFAULT_DURATION_S, 300.0])
def test_the_controller_stays_away_for_longer_than_weights_live(duration_s: float) -> None:
    killed = tell(duration_s, TTL_S).of(Kind.CONTROLLER_KILLED)
    assert killed.until_s - killed.at_s > TTL_S + 1.0


def test_an_event_is_current_while_it_lasts() -> None:
    story = tell(DEFAULT_DURATION_S, TTL_S)
    slower = story.of(Kind.SLOWER)
    assert story.current(slower.at_s) is slower
    assert story.current(slower.until_s) is None
    assert story.upcoming(slower.at_s) is story.of(Kind.DEARER)


def test_load_rises_to_the_peak_and_stays() -> None:
    story = tell(DEFAULT_DURATION_S, TTL_S)
    assert story.load_ratio(0.0) < 0.5
    assert story.load_ratio(story.of(Kind.SLOWER).at_s) == 1.0


def test_arrivals_follow_the_rate_and_only_the_seed() -> None:
    story = tell(DEFAULT_DURATION_S, TTL_S)
    first, again = (
        arrivals_s(np.random.default_rng(7), 50.0, story.load_ratio, 78.0) for _ in range(2)
    )
    assert np.array_equal(first, again)
    assert np.all(np.diff(first) > 0)
    rate_rps = [np.sum((first >= a) & (first < b)) / (b - a) for a, b in ((0, 8), (20, 78))]
    assert rate_rps[0] == pytest.approx(50.0 * story.load_ratio(0.0), rel=0.25)
    assert rate_rps[1] == pytest.approx(50.0, rel=0.1)


def test_a_world_has_a_valid_mesh_with_ports_of_its_own() -> None:
    one, other = make_world(Mode.ENFORCE), make_world(Mode.OBSERVE)
    assert (one.mesh.mode, other.mesh.mode) == (Mode.ENFORCE, Mode.OBSERVE)
    assert parse_mesh(one.mesh_text, "mesh.yaml") == one.mesh
    ports = [e.port for p in one.mesh.providers.values() for e in p.endpoints]
    ports += [i.admin_port for i in one.instances] + list(one.controls.values())
    ports += [p for i in one.instances for p in i.listeners.values()]
    ports += [one.mesh.server.xds.port, one.mesh.server.admin.port]
    assert len(set(ports)) == len(ports)
    assert set(PEAK_RPS) == set(one.services())


def test_every_instance_has_a_bootstrap_for_its_own_ports() -> None:
    world = make_world(Mode.ENFORCE)
    for instance in world.instances:
        boot = world.bootstrap(instance)
        assert boot["node"]["id"] == instance.name
        assert boot["admin"]["address"]["socket_address"]["port_value"] == instance.admin_port
        listeners = boot["node"]["metadata"]["listeners"]
        assert listeners == {s: f"127.0.0.1:{p}" for s, p in instance.listeners.items()}


def test_a_story_too_short_is_refused_with_what_would_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_demo(DemoOptions(duration_s=5.0)) == 2
    assert f"--duration is at least {MIN_DURATION_S:g}" in capsys.readouterr().err
