"""What a recording holds, and how it ends when it cannot go on."""

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from structlog.testing import capture_logs

from tests.unit.client import Client, snapshot
from tests.unit.taped import TapedStream, recording, summary, taped_client
from xds_server.app.replay import replay
from xds_server.errors import AdapterError
from xds_server.model.ids import SDS
from xds_server.model.snapshot import Snapshot
from xds_server.model.versions import make_resource, type_snapshot
from xds_server.observability import Metrics
from xds_server.protocol.messages import DeltaRequest, SotwRequest
from xds_server.wire.tape.format import without_node
from xds_server.wire.tape.store import RealDisk, file_name, used_bytes

WORLD = snapshot(CDS={"a": "1"}, EDS={"a": "1"}, LDS={"l": "1"}, RDS={"r": "1"})
NEXT = snapshot(CDS={"a": "1"}, EDS={"a": "2"}, LDS={"l": "1"}, RDS={"r": "2"})


@pytest.fixture(params=["delta", "sotw"])
def delta(request: pytest.FixtureRequest) -> bool:
    return request.param == "delta"


def lines(folder: Path, number: int = 1) -> list[dict]:
    (path,) = folder.glob(f"{number:06d}-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def count(metrics: Metrics, reason: str) -> float:
    name = "xds_server_tapes_cut_total"
    return metrics.registry.get_sample_value(name, {"reason": reason}) or 0.0


# -- what is written -----------------------------------------------------------------------


def test_a_tape_says_who_spoke_and_how_the_machine_was_built(tmp_path):
    with recording(tmp_path) as tape:
        TapedStream(tape, 7, "delta", only=SDS, drain_s=5.0, node_id="../x/\n1").close("drained")
    header, end = lines(tmp_path)
    assert header["machine"] == {"protocol": "delta", "only": SDS, "drain_s": 5.0}
    assert header["node"]["node_id"] == "../x/\n1"
    assert header["node"]["metadata"] == {"a": [1, None]}
    assert (header["at"], header["time"]) == (0.0, "2026-09-21T14:13:20.000+00:00")
    assert end == {"n": 2, "closed": "drained"}


def test_content_is_written_once_whatever_stream_has_it(tmp_path, delta):
    with recording(tmp_path) as tape:
        for i in range(3):
            taped_client(tape, delta=delta, stream_id=i).start(WORLD)
    assert len(list((tmp_path / "parts").iterdir())) == 4
    assert len(list((tmp_path / "resources").iterdir())) == 3  # CDS and EDS have equal bodies
    assert [len([x for x in lines(tmp_path, i) if "part" in x]) for i in (1, 2, 3)] == [4, 4, 4]


def test_nobody_else_can_read_it(tmp_path, delta):
    folder = tmp_path / "new"
    before = os.umask(0)
    try:
        with recording(folder) as tape:
            taped_client(tape, delta=delta).start(WORLD)
    finally:
        os.umask(before)
    for path in (folder, *folder.rglob("*")):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_second_run_adds_to_the_folder(tmp_path, delta):
    for _ in range(2):
        with recording(tmp_path) as tape:
            taped_client(tape, delta=delta).start(WORLD)
    assert len({lines(tmp_path, i)[0]["run"] for i in (1, 2)}) == 2
    assert [summary(o)[3] for o in replay(tmp_path)] == ["", ""]


def test_names_of_files_are_harmless():
    assert file_name(12, "a/../b c\x00") == "000012-a-..-b-c-.jsonl"
    assert len(file_name(1, "x" * 1000)) < 100
    assert file_name(1, "") == "000001--.jsonl"


def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    said = r"--record .*file: cannot record there: File exists"
    with pytest.raises(AdapterError, match=said), recording(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    "kind", [discovery_pb2.DiscoveryRequest, discovery_pb2.DeltaDiscoveryRequest]
)
def test_requests_are_kept_without_their_node(kind):
    request = kind(type_url=SDS, response_nonce="7")
    request.error_detail.message = "no"
    bare = request.SerializeToString()
    request.node.id, request.node.cluster = "n1" * 100, "shop"
    delta = kind is discovery_pb2.DeltaDiscoveryRequest
    assert kind.FromString(
        without_node(request.SerializeToString(), delta=delta)
    ) == kind.FromString(bare)
    assert without_node(bare, delta=delta) == bare
    assert without_node(b"\xff\xff", delta=delta) == b"\xff\xff"


def test_a_folder_that_is_recorded_into_is_taken(tmp_path):
    said = r"--record .*: cannot record there: another process records there"
    with recording(tmp_path), pytest.raises(AdapterError, match=said), recording(tmp_path):
        pass
    with recording(tmp_path):
        pass


# -- secrets -------------------------------------------------------------------------------

KEYS = tuple(b"\x0a\x01s-----BEGIN PRIVATE KEY " + c * size for c, size in ((b"A", 300), (b"B", 7)))


def secrets(*bodies: bytes, ttl_s: float | None = None) -> Snapshot:
    resources = (make_resource(SDS, f"s{i}", body, ttl_s) for i, body in enumerate(bodies))
    return Snapshot({SDS: type_snapshot(resources)})


@pytest.mark.parametrize("ttl_s", [None, 5.0])
def test_secrets_are_never_written_and_their_streams_replay(tmp_path, delta, ttl_s):
    with recording(tmp_path) as tape:
        stream = TapedStream(tape, 1, "delta" if delta else "sotw")
        request = DeltaRequest(SDS, ("s0", "s1")) if delta else SotwRequest(SDS, ("s0", "s1"))
        stream.receive(request, 1.0)
        (first,) = stream.poll(secrets(*KEYS, ttl_s=ttl_s), 1.0)
        assert KEYS[0] in first.payload
        nonce = first.nonce
        stream.receive(
            DeltaRequest(SDS, response_nonce=nonce, error="no")
            if delta
            else SotwRequest(SDS, ("s0", "s1"), nonce, error="no"),
            2.0,
        )
        stream.poll(secrets(KEYS[1], KEYS[0], ttl_s=ttl_s), 2.0)
        stream.heartbeat(secrets(KEYS[1], KEYS[0], ttl_s=ttl_s), 9.0)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"PRIVATE" not in path.read_bytes(), path
    assert list((tmp_path / "resources").iterdir()) == []
    (outcome,) = replay(tmp_path)
    requests, responses, *errors = summary(outcome)
    assert (requests, errors) == (2, ["", ""])
    assert responses >= 2


def test_a_secret_that_a_node_keeps_is_not_written_with_its_refusals(tmp_path):
    with recording(tmp_path) as tape:
        stream = TapedStream(tape, 1, "sotw")
        good = make_resource(SDS, "s0", KEYS[0])
        stream.quarantine.add(make_resource(SDS, "s0", KEYS[1]), "bad key", good)
        again = TapedStream(tape, 2, "sotw", quarantine=stream.quarantine)
        again.receive(SotwRequest(SDS, ("s0",), version_info="x"), 1.0)
        (kept,) = again.poll(secrets(KEYS[1]), 1.0)
        assert KEYS[0] in kept.payload
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"PRIVATE" not in path.read_bytes(), path
    assert [o.difference for o in replay(tmp_path)] == [None, None]


# -- ends ----------------------------------------------------------------------------------


class SlowDisk(RealDisk):
    """Writes when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = Event()

    def append(self, path: Path, body: bytes) -> None:
        assert self.may.wait(10.0)
        super().append(path, body)


class FullDisk(RealDisk):
    """Takes so many lines, and half of one more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def append(self, path: Path, body: bytes) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().append(path, body)


def test_a_stream_that_overflows_the_queue_ends_its_tape_and_no_other(tmp_path, delta):
    disk, metrics = SlowDisk(), Metrics()
    with recording(tmp_path, disk=disk, queue_calls=20, metrics=metrics) as tape:
        with capture_logs() as logs:
            noisy = taped_client(tape, delta=delta, stream_id=1)
            noisy.start(WORLD)
            for _ in range(30):
                assert noisy.poll(WORLD) == []
            noisy.stream.close()
        disk.may.set()
        assert tape.flush()
        taped_client(tape, delta=delta, stream_id=2, node_id="n2").start(WORLD)
    assert [(e["event"], e["stream_id"]) for e in logs] == [("tape.cut", 1)]
    assert count(metrics, "queue") == 1
    first, second = replay(tmp_path)
    assert summary(first)[2] == "the disk is too slow"
    assert lines(tmp_path)[-1]["ended"] == "the disk is too slow"
    assert summary(second) == (8 if not delta else summary(second)[0], 4, "", "")


def test_large_messages_overflow_it_too(tmp_path):
    disk = SlowDisk()
    with recording(tmp_path, disk=disk, queue_bytes=8192) as tape:
        stream = TapedStream(tape, 1, "delta")
        stream.receive(DeltaRequest("x" * 9000), 1.0)
        disk.may.set()
    assert [line.get("ended") for line in lines(tmp_path)] == [None, "the disk is too slow"]


def test_a_stream_that_opens_while_the_queue_is_full_is_not_recorded(tmp_path):
    disk = SlowDisk()
    with recording(tmp_path, disk=disk, queue_calls=1) as tape:
        TapedStream(tape, 1, "delta")
        for stream_id in (2, 3, 4):
            TapedStream(tape, stream_id, "delta").close()
        disk.may.set()
    assert len(list(tmp_path.glob("*.jsonl"))) <= 2


def talk(folder: Path, delta: bool, **settings: object) -> tuple[Client, list[dict]]:
    with capture_logs() as logs, recording(folder, **settings) as tape:
        client = taped_client(tape, delta=delta)
        client.start(WORLD)
        for i in range(20):
            client.poll(snapshot(EDS={"a": f"{i} {'x' * 3000}"}))
            client.now_s += 1.0
            client.ack("EDS")
            assert tape.flush()
    return client, logs


def test_a_full_disk_ends_the_tapes_and_not_the_streams(tmp_path, delta):
    metrics = Metrics()
    client, logs = talk(tmp_path, delta, disk=FullDisk(9), metrics=metrics)
    assert client.has["EDS"]["a"].startswith("19 ")
    assert [(e["event"], e["reason"], e["tapes"]) for e in logs] == [("tape.stopped", "disk", 1)]
    assert count(metrics, "disk") == 1
    (outcome,) = replay(tmp_path)
    assert summary(outcome)[3] == ""
    assert outcome.requests > 0


def test_a_line_that_did_not_fit_is_taken_back(tmp_path, monkeypatch):
    disk, path = RealDisk(), tmp_path / "x"
    disk.append(path, b"one\n")
    write, room = os.write, [3]

    def half(handle: int, body: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "full")
        wrote = write(handle, body[: room[0]])
        room[0] -= wrote
        return wrote

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="full"):
        disk.append(path, b"two two\n")
    disk.close()
    assert path.read_bytes() == b"one\n"


def test_a_recording_stays_within_its_bound_and_says_that_it_ended(tmp_path, delta):
    metrics = Metrics()
    bound = 24 * 4096
    client, logs = talk(tmp_path, delta, max_bytes=bound, metrics=metrics)
    assert client.has["EDS"]["a"].startswith("19 ")
    assert used_bytes(tmp_path) <= bound + 4096
    assert [(e["event"], e["reason"]) for e in logs] == [("tape.stopped", "size")]
    assert count(metrics, "size") == 1
    (outcome,) = replay(tmp_path)
    assert "--record-max-mib" in summary(outcome)[2]


def test_what_earlier_runs_left_counts(tmp_path, delta):
    talk(tmp_path, delta)
    _, logs = talk(tmp_path, delta, max_bytes=used_bytes(tmp_path))
    assert [(e["event"], e["reason"]) for e in logs] == [("tape.stopped", "size")]
    assert len(list(tmp_path.glob("*.jsonl"))) == 1


def test_a_bug_in_the_writer_is_logged_and_serving_goes_on(tmp_path, delta):
    class Broken(RealDisk):
        def append(self, path: Path, body: bytes) -> None:
            raise RuntimeError("bug")

    metrics = Metrics()
    client, logs = talk(tmp_path, delta, disk=Broken(), metrics=metrics)
    assert client.has["EDS"]["a"].startswith("19 ")
    (line,) = logs
    assert (line["reason"], str(line["exc_info"])) == ("error", "bug")
    assert count(metrics, "error") == 1


def test_many_streams_need_few_open_files(tmp_path, open_files: Callable[[], int]):
    with recording(tmp_path) as tape:
        before = open_files()
        for stream_id in range(200):
            taped_client(tape, delta=True, stream_id=stream_id).start(WORLD)
        assert tape.flush()
        assert open_files() - before < 80
    outcomes = replay(tmp_path)
    assert len(outcomes) == 200
    assert {summary(o)[3] for o in outcomes} == {""}


@pytest.fixture
def open_files() -> Callable[[], int]:
    return lambda: len(list(Path("/proc/self/fd").iterdir()))


def test_types_that_leave_a_snapshot_are_said(tmp_path):
    with recording(tmp_path) as tape:
        client = taped_client(tape, delta=False)
        client.ask("CDS")
        client.poll(Snapshot({}))
        client.poll(WORLD)
        client.poll(Snapshot({}))
    assert len([x for x in lines(tmp_path) if x.get("part", 0) is None]) == 4
    assert summary(replay(tmp_path)[0])[:2] == (1, 1)
