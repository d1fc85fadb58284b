from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from xds_server.behaviour.bands import check_bands
from xds_server.behaviour.phases import PhaseTracker
from xds_server.behaviour.rules import SignalHistory, duration_s, in_schedule
from xds_server.model.telemetry import InstanceSignals
from xds_server.model.template import Behaviour, Call, Flag, Phases, Profile, Template

YOUNG = InstanceSignals("n1", 1.0, 10.0, 0.0, 0.05, {"search": 10.0}, {"search": 900.0}, 0.2)


def template(*profiles: Profile, dwell_s: float = 10.0) -> Template:
    return Template(
        "web",
        (Call("search", "127.0.0.1:1"),),
        (*profiles, Profile("steady")),
        Phases(dwell_s, 6.0),
        flags=(Flag("maintenance", default=True, owner="operator"),),
    )


class Life:
    """One instance whose clock a test turns."""

    def __init__(self, expected: Template) -> None:
        self.template, self.tracker, self.now_s = expected, PhaseTracker(), 0.0

    def at(self, now_s: float, **signals: object) -> str:
        self.now_s = now_s
        now = replace(YOUNG, age_s=now_s, **signals)
        state = self.tracker.update([(now, self.template)], now_s=now_s, wall_s=0.0)
        return state["n1"].phase


def test_an_instance_is_born_into_the_first_phase_that_holds() -> None:
    assert Life(template(Profile("early", "instance.age_s < 30.0"))).at(0.0) == "early"
    assert Life(template(Profile("early", "instance.age_s < 30.0"))).at(60.0) == "steady"


def test_a_phase_lasts_at_least_its_dwell() -> None:
    life = Life(template(Profile("peak", "instance.rps > 80.0"), dwell_s=10.0))
    assert life.at(0.0, rps=10.0) == "steady"
    assert life.at(5.0, rps=100.0) == "steady"
    assert life.at(10.0, rps=100.0) == "peak"
    assert life.at(15.0, rps=10.0) == "peak"
    assert life.at(20.0, rps=10.0) == "steady"


def test_the_phase_before_is_remembered() -> None:
    tracker, expected = PhaseTracker(), template(Profile("early", "instance.age_s < 30.0"))
    for now_s in (0.0, 40.0):
        states = tracker.update([(replace(YOUNG, age_s=now_s), expected)], now_s=now_s, wall_s=0.0)
    assert states["n1"].previous == "early"


def test_a_flag_and_a_trend_can_decide() -> None:
    assert Life(template(Profile("off", 'flag("maintenance")'))).at(0.0) == "off"
    rising = Life(template(Profile("peak", 'trend(instance.rps, "30s") > 2.0'), dwell_s=0.0))
    phases = [rising.at(float(t), rps=3.0 * t) for t in range(5)]
    assert phases == ["steady", "steady", "peak", "peak", "peak"]


def test_a_rule_that_fails_does_not_hold_and_is_logged_once() -> None:
    life = Life(template(Profile("odd", 'instance.rps_by_service["mail"] > 1.0'), dwell_s=0.0))
    with capture_logs() as logs:
        assert [life.at(float(t)) for t in range(3)] == ["steady"] * 3
    assert [entry["event"] for entry in logs] == ["phase.rule_failed"]


def test_a_phase_that_a_reload_removed_is_left_at_once() -> None:
    life = Life(template(Profile("early", "instance.age_s < 30.0")))
    assert life.at(0.0) == "early"
    life.template = template()
    assert life.at(1.0) == "steady"


def test_an_instance_that_left_is_forgotten() -> None:
    tracker = PhaseTracker()
    tracker.update([(YOUNG, template())], now_s=0.0, wall_s=0.0)
    assert tracker.update([], now_s=1.0, wall_s=0.0) == {}


@pytest.mark.parametrize(("hour", "inside"), [(2.9, False), (3.0, True), (3.5, True), (4.1, False)])
def test_a_schedule_holds_from_its_start_for_its_length(hour: float, inside: bool) -> None:
    assert in_schedule("0 3 * * *", "1h", hour * 3600.0) is inside


def test_durations_add_up() -> None:
    assert duration_s("1h30m") == 5400.0
    assert duration_s("250ms") == 0.25


def test_a_steady_signal_has_no_slope() -> None:
    history = SignalHistory()
    for t in range(10):
        history.add({"rps": 5.0}, float(t))
    assert history.slope_per_s("rps", 30.0, 9.0) == 0.0


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("instance.rps > 5.0", []), ('trend(instance.rps, "30s") > 0.0', [{"rps": YOUNG.rps}] * 3)],
)
def test_only_signals_that_rules_ask_a_trend_of_are_kept(
    rule: str, kept: list[dict[str, float]]
) -> None:
    life = Life(template(Profile("busy", rule)))
    for now_s in range(3):
        life.at(float(now_s))
    samples = life.tracker._histories["n1"]._samples
    assert [values for _, values in samples] == kept


def test_bands_are_kept_breached_or_unmeasured() -> None:
    behaviour = Behaviour(
        call_rate_rps={"search": (2.0, 5.0), "mail": (0.0, 1.0)},
        call_mix={"search": 1.0},
        response_bytes={"search": (500.0, 1000.0), "mail": (1.0, 2.0)},
        error_ratio=(0.0, 0.02),
        cpu_ratio=(0.0, 0.5),
    )
    states = {(b.name, b.service): b.state for b in check_bands(behaviour, YOUNG)}
    assert states == {
        ("call_rate_rps", "search"): "breach",
        ("call_rate_rps", "mail"): "ok",
        ("call_mix", "search"): "ok",
        ("response_bytes", "search"): "ok",
        ("response_bytes", "mail"): "unmeasured",
        ("error_ratio", ""): "ok",
        ("cpu_ratio", ""): "unmeasured",
    }
