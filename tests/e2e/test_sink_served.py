"""OTLP and the access log in the product as its user runs it."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.envoy import eventually
from tests.e2e.served import Plane, ports, served
from tests.e2e.telemetry import send
from tests.e2e.test_access_log_envoy import request
from tests.e2e.upstream import serving

pytestmark = pytest.mark.e2e
KEYS = "sink: open_telemetry, access_log_sample_ratio: 0.0, stats_flush_interval_s"


async def test_both_are_chosen_by_a_key_and_shown_by_the_api(tmp_path: Path) -> None:
    async with serving("a", "b") as up:
        plane = Plane(tmp_path, ports(up))
        listen = plane.ports["listen"]
        text = plane.path.read_text()
        band = "    behaviour: {read_ratio: [0.9, 1.0]}\n    profiles:"
        text = text.replace("stats_flush_interval_s", KEYS).replace("    profiles:", band)
        plane.path.write_text(text)
        async with served(plane, ("n1", listen, "delta")):
            (inert,) = (await plane.get("/v1/status"))["inert_keys"]
            assert "read_ratio" in inert
            plane.path.write_text(text.replace("sample_ratio: 0.0", "sample_ratio: 1.0"))

            async def counted() -> Any:
                await send(listen, 10)
                await request(listen, "POST", 10)
                row = (await plane.get("/v1/instances"))[0]
                rps = row["traffic"]["rps"]["value"]
                return row if rps and row["sampled"] and row["sampled"]["calls"] >= 40 else None

            row: Any = await eventually("an instance with traffic", counted)
            assert row["traffic"]["rps"]["source"] == "sidecars"
            assert row["sampled"]["read_ratio"]["value"] == pytest.approx(0.5, abs=0.2)
            assert row["sampled_by_service"].keys() == {"search"}
            providers = (await plane.get("/v1/services"))[0]["providers"]
            seen = [p for p in providers if p["sampled"]]
            assert seen
            assert all(p["sampled"]["latency_p99_ms"]["value"] > 0.0 for p in seen)

            async def out_of_band() -> bool:  # since the tick after the calls
                status = await plane.get("/v1/status")
                assert status["inert_keys"] == []
                bands = [b for n in status["nodes"] for b in n["behaviour"]]
                return [b["state"] for b in bands if b["name"] == "read_ratio"] == ["breach"]

            await eventually("reads are out of their band", out_of_band)
            assert await plane.end(signal.SIGTERM) == 0
