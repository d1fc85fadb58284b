"""What the demo shows, on a screen of 100 columns and 35 lines."""

import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from rich.console import Console

from xds_server.demo.load import Recorder, Sample
from xds_server.demo.observe import Sidecars
from xds_server.demo.report import PriceChange
from xds_server.demo.story import Kind, tell
from xds_server.demo.view import Lines, Scene, make_view, progress_line, render
from xds_server.demo.world import make_world
from xds_server.model.topology import Mode

ROUTES = (("checkout", "search"), ("checkout", "payments"), ("browse", "search"))
STATUS = {
    "nodes": [
        {"node_id": n, "phase": "peak_usage", "rps": 61.0, "latency_p95_ms": 88.0}
        for n in ("checkout-1", "checkout-2", "browse-1", "browse-2")
    ],
    "routes": [
        {
            "application": application,
            "service": service,
            "phase": "peak_usage",
            "instances": 2,
            "move": "reweight",
            "hold_reason": "",
            "predicted_latency_ms": 51.0,
            "slo_p95_ms": None,
            "providers": [{"provider": "search-east", "share": 0.37}],
        }
        for application, service in ROUTES
    ],
}


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """Twenty seconds into the story: search-east browns out."""
    world = make_world(Mode.ENFORCE)
    async with aiohttp.ClientSession() as session:
        sidecars = Sidecars(session, world.instances, {})
        recorder = Recorder()
        story = tell(81.0, 4.0)
        now_s = story.of(Kind.SLOWER).at_s + 1.5
        for second in range(int(now_s)):
            for provider, n in (("search-east", 30), ("search-west", 10)):
                sidecars.counts.attempts[second, "checkout", provider] = n
        for status in (200, 200, 503):
            recorder.add(Sample(now_s - 1.0, 0.1, status, "checkout", "search", "search-east"))
        yield Scene(
            "adaptive",
            world,
            story,
            recorder,
            sidecars,
            [PriceChange(0.0, "search-east", 0.6)],
            started_s=time.monotonic() - now_s,
            status=STATUS,
        )


def drawn(scene: Scene) -> list[str]:
    console = Console(width=100, height=35)
    with console.capture() as capture:
        console.print(render(scene, "last line"))
    return capture.get().splitlines()


async def test_everything_fits_on_the_screen(scene: Scene) -> None:
    lines = drawn(scene)
    assert len(lines) <= 35
    assert max(map(len, lines)) <= 100


async def test_weights_asked_for_stand_beside_those_observed(scene: Scene) -> None:
    row = next(line for line in drawn(scene) if "checkout.search" in line)
    assert "37%" in row  # asked
    assert "75%" in row  # observed
    assert "search-east browns out" in "".join(drawn(scene))


async def test_without_a_controller_it_says_when_the_baseline_is_back(scene: Scene) -> None:
    scene.status = None
    scene.controller_killed_s = time.monotonic()
    scene.sidecars.runtime = {"checkout-1": {"routing.checkout.search.search-east": "1"}}
    assert "controller down, Envoy on baseline in 4 s" in drawn(scene)[-1]
    scene.sidecars.runtime = {"checkout-1": {}}
    assert "every Envoy on its baseline" in drawn(scene)[-1]


async def test_the_state_fits_in_a_line(scene: Scene) -> None:
    line = progress_line(scene)
    assert "checkout.search 75/25/0" in line
    assert "failed 1" in line
    assert line.endswith("[search-east browns out]")


async def test_lines_are_printed_where_there_is_no_terminal(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    view = make_view(Console(width=100), ui=True)
    assert isinstance(view, Lines)
    view.show(scene)
    view.show(scene)  # not again so soon
    view.close()
    assert capsys.readouterr().out.count("checkout.search") == 1
