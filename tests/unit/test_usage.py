"""What is measured of instances and providers: whose word counts, for how long, and for what."""

import asyncio
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.unit.test_sources import until
from xds_server.app.clock import SystemClock
from xds_server.app.usage import Meters
from xds_server.behaviour.bands import check_bands
from xds_server.behaviour.rules import Rule, SignalHistory
from xds_server.config.when import faults
from xds_server.model.services import UNKNOWN, Reading
from xds_server.model.snapshot import Node
from xds_server.model.status import BandStatus
from xds_server.model.telemetry import InstanceSignals, LoadReport
from xds_server.model.template import Behaviour
from xds_server.model.topology import (
    EngineSettings,
    Mesh,
    Mode,
    ServerSettings,
    TelemetrySettings,
    UsageSource,
    UsedProcess,
)
from xds_server.model.usage import Usage
from xds_server.registry.registry import Registry
from xds_server.registry.usage import Usages

QUIET = InstanceSignals("n1", 1.0, 0.0, 0.0, math.nan, {}, {}, math.inf)


def registry() -> Registry:
    made = Registry({"a": "search"}, slot_s=1.0, load_valid_s=30.0)
    made.node_connected(Node("n1", "shop"), 0.0)
    return made


def test_a_value_has_its_age_and_its_source_and_is_stale_when_its_source_is_silent() -> None:
    usages = registry().usages
    usages.take(0, "psutil", [Usage("n1", cpu_ratio=0.5)], valid_s=30.0, now_s=10.0)
    assert usages.reading("n1", "cpu_ratio", 12.0) == Reading(0.5, 2.0, "psutil")
    assert usages.reading("n1", "cpu_ratio", 41.0) == Reading(0.5, 31.0, "psutil", stale=True)
    assert usages.value("n1", "cpu_ratio", 40.0) == 0.5
    assert math.isnan(usages.value("n1", "cpu_ratio", 41.0))
    assert usages.reading("n1", "memory_bytes", 12.0) == UNKNOWN
    assert usages.reading("n2", "cpu_ratio", 12.0) == UNKNOWN
    assert usages.reading("n1", "cpu_ratio", 12.0, is_provider=True) == UNKNOWN


def test_who_is_not_in_the_newest_update_is_not_known() -> None:
    usages = registry().usages
    usages.take(0, "psutil", [Usage("n1", cpu_ratio=0.5)], valid_s=30.0, now_s=10.0)
    usages.take(0, "psutil", [], valid_s=30.0, now_s=20.0)
    assert usages.reading("n1", "cpu_ratio", 20.0) == UNKNOWN


def test_the_first_source_with_a_valid_word_counts_for_each_value() -> None:
    usages = registry().usages
    usages.take(1, "prometheus", [Usage("n1", False, 0.9, 7.0)], valid_s=60.0, now_s=10.0)
    usages.take(0, "psutil", [Usage("n1", cpu_ratio=0.5)], valid_s=30.0, now_s=10.0)
    assert usages.reading("n1", "cpu_ratio", 11.0).source == "psutil"
    assert usages.reading("n1", "memory_bytes", 11.0) == Reading(7.0, 1.0, "prometheus")
    assert usages.reading("n1", "cpu_ratio", 50.0) == Reading(0.9, 40.0, "prometheus")
    usages.take(1, "prometheus", [Usage("n1", False, 0.8)], valid_s=60.0, now_s=20.0)
    newest = Reading(0.8, 180.0, "prometheus", stale=True)
    assert usages.reading("n1", "cpu_ratio", 200.0) == newest
    usages.forget(1)
    assert usages.reading("n1", "cpu_ratio", 200.0).source == "psutil"


@pytest.mark.parametrize("value", [-0.1, math.inf, -math.inf, 1e300])
def test_a_value_that_cannot_be_is_left_out_and_counted(value: float) -> None:
    known = registry()
    known.usages.take(0, "psutil", [Usage("n1", False, value, 7.0)], valid_s=30.0, now_s=0.0)
    assert known.usages.reading("n1", "cpu_ratio", 0.0) == UNKNOWN
    assert known.usages.value("n1", "memory_bytes", 0.0) == 7.0
    assert known.refused == {"absurd usage": 1}


def test_signals_have_what_is_measured_and_nothing_else() -> None:
    known = registry()
    (before,) = known.signals(10.0)
    assert math.isnan(before.cpu_ratio)
    assert math.isnan(before.memory_bytes)
    known.usages.take(0, "psutil", [Usage("n1", False, 0.5, 7.0)], valid_s=30.0, now_s=10.0)
    (after,) = known.signals(20.0)
    assert (after.cpu_ratio, after.memory_bytes) == (0.5, 7.0)


def test_utilisation_is_what_the_provider_says_else_what_is_measured() -> None:
    known = registry()
    measured = [Usage("a", is_provider=True, cpu_ratio=0.9, utilisation_ratio=0.6)]
    known.usages.take(0, "prometheus", measured, valid_s=30.0, now_s=10.0)
    assert known.provider_load(11.0).utilisation_ratio.tolist() == [0.6]
    assert math.isnan(known.provider_load(41.0).utilisation_ratio[0])
    known.observe_load("n1", [LoadReport("a", 0.3, math.nan, math.nan)], 12.0)
    assert known.provider_load(13.0).utilisation_ratio.tolist() == [0.3]


BANDS = Behaviour(read_ratio=(0.7, 1.0), cpu_ratio=(0.1, 0.8), memory_bytes=(10.0, 20.0))


def test_bands_of_usage_are_checked_once_it_is_measured() -> None:
    assert [b.state for b in check_bands(BANDS, QUIET)] == ["unmeasured"] * 3
    busy = replace(QUIET, read_ratio=0.75, cpu_ratio=0.9, memory_bytes=15.0)
    assert check_bands(BANDS, busy) == (
        BandStatus("read_ratio", "", 0.75, 0.7, 1.0, "ok"),
        BandStatus("cpu_ratio", "", 0.9, 0.1, 0.8, "breach"),
        BandStatus("memory_bytes", "", 15.0, 10.0, 20.0, "ok"),
    )


def test_a_phase_may_depend_on_usage() -> None:
    text = "instance.cpu_ratio > 0.8 && instance.memory_bytes < 1e9"
    assert list(faults(text, ())) == []
    rule = Rule(text)
    for signals, holds in ((QUIET, False), (replace(QUIET, cpu_ratio=0.9), True)):
        assert rule.holds(signals, SignalHistory(), {}, now_s=0.0, wall_s=0.0) is holds


def mesh_with(*usage: UsageSource) -> Mesh:
    return Mesh(
        "m", Mode.OBSERVE, EngineSettings(), TelemetrySettings(), {}, {}, {}, ServerSettings(),
        usage=usage,
    )  # fmt: skip


async def test_sources_are_followed_from_when_they_are_declared_until_they_are_others(
    tmp_path: Path,
) -> None:
    usages = Usages()
    meters = Meters(SystemClock(), tmp_path, dict, usages)
    (tmp_path / "n1.pid").write_text(str(os.getpid()))
    own = {"processes": {"n1": UsedProcess(pid_file="n1.pid")}}

    def knows() -> bool:
        return usages.reading("n1", "memory_bytes", 0.0).value is not None

    meters.set_mesh(mesh_with(UsageSource("psutil", 0.05, own)))
    try:
        await until(knows)
        meters.set_mesh(mesh_with(UsageSource("psutil", 0.05, own)))
        assert knows()  # the same source goes on
        (tmp_path / "n1.pid").write_text("?")
        with capture_logs() as logs:
            await until(lambda: any(e["event"] == "usage.lost" for e in logs))
        assert "n1.pid: has no pid" in logs[0]["reason"]
        assert knows()
        meters.set_mesh(mesh_with(UsageSource("psutil", 0.06, own)))
        assert not knows()
        meters.set_mesh(mesh_with())
        await asyncio.sleep(0)
        assert not [t for t in asyncio.all_tasks() if t.get_name().startswith("usage ")]
    finally:
        meters.stop()
