"""A recording replays identical on the build that made it, and says where another differs."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.unit.client import Client, resource, snapshot
from tests.unit.taped import TapedStream, recording, summary, taped_client
from xds_server.app.replay import Build, build_machine, replay
from xds_server.app.replay_report import exit_code, render, to_json
from xds_server.cli import app
from xds_server.errors import UnreadableTapeError
from xds_server.model.ids import CDS, EDS, RDS, VHDS
from xds_server.model.snapshot import Resource, Snapshot
from xds_server.model.versions import type_snapshot
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.messages import DeltaRequest, Response
from xds_server.protocol.quarantine import Quarantine
from xds_server.protocol.sotw import SotwStream
from xds_server.protocol.stream import StreamMachine
from xds_server.wire.tape.calls import Settings

WORLD = snapshot(
    CDS={"a": "1", "b": "1"},
    EDS={"a": "1", "b": "1"},
    LDS={"l": "1"},
    RDS={"r": "1"},
    RTDS={"rt": "1"},
)


def changed(**kinds: dict[str, str]) -> Snapshot:
    return Snapshot({**WORLD.types, **snapshot(**kinds).types})


@pytest.fixture(params=["delta", "sotw"])
def delta(request: pytest.FixtureRequest) -> bool:
    return request.param == "delta"


def converse(client: Client) -> None:
    """Start, changes, a removal, a NACK that is repaired, heartbeats."""
    client.start(WORLD)
    client.ask("RTDS", "rt")
    client.poll(WORLD)
    client.ack("RTDS")
    client.now_s += 1.5
    client.stream.heartbeat(WORLD, client.now_s)  # type: ignore[attr-defined]
    bad = changed(RDS={"r": "bad"})
    client.poll(bad)
    client.nack("RDS", "no such cluster")
    client.poll(bad)
    client.ack("RDS")
    client.now_s += 0.25
    fewer = changed(CDS={"a": "2"}, EDS={"a": "1"}, RDS={"r": "2"})
    for _ in range(8):
        for kind in ("CDS", "EDS", "RDS"):
            client.poll(fewer)
            client.ack(kind)
        client.now_s += 0.7
    client.poll(fewer)


def record(folder: Path, delta: bool, talk: Callable[[Client], None] = converse) -> None:
    with recording(folder) as tape:
        client = taped_client(tape, delta=delta)
        talk(client)
        client.stream.close()  # type: ignore[attr-defined]


def told(folder: Path, build: Build = build_machine) -> str:
    (outcome,) = replay(folder, build=build)
    return "\n".join(render(outcome))


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["replay", *map(str, args)])


def edit(folder: Path, change: Callable[[list[dict]], object], number: int = 1) -> None:
    (path,) = folder.glob(f"{number:06d}-*.jsonl")
    data = [json.loads(line) for line in path.read_text().splitlines()]
    change(data)
    path.write_text("".join(json.dumps(line) + "\n" for line in data))


def test_a_tape_knows_all_that_a_machine_is_built_with():
    """Another argument of the machine has to be recorded, or replays would lie."""
    for kind in (SotwStream, DeltaStream):
        arguments = set(signature(kind).parameters)
        recorded = {f.name for f in fields(Settings)} - {"protocol"}
        assert arguments - {"nonce_prefix", "quarantine"} == recorded


def test_the_command_has_help():
    assert "Example:" in run("--help").stdout


# -- identical -----------------------------------------------------------------------------


def test_a_conversation_replays_identical(tmp_path, delta):
    record(tmp_path, delta)
    (outcome,) = replay(tmp_path)
    assert outcome.difference is None
    assert (outcome.requests, outcome.responses) > (10, 10)
    kind = "delta" if delta else "sotw"
    (line,) = render(outcome)
    assert line.startswith(f"stream 1 (n1, {kind}): identical: {outcome.requests} requests, ")
    assert line.endswith(" s")
    assert exit_code([outcome]) == 0


def test_the_command_says_so_and_exits_0(tmp_path, delta):
    record(tmp_path, delta)
    result = run(tmp_path)
    assert result.exit_code == 0
    assert ": identical: " in result.stdout
    (data,) = json.loads(run(tmp_path, "--json").stdout)
    assert (data["identical"], data["stream"], data["difference"]) == (True, 1, None)


def test_a_stream_of_one_type_and_one_with_a_drain_are_built_as_they_were(tmp_path):
    with recording(tmp_path) as tape:
        one = taped_client(tape, delta=False, stream_id=1, only=EDS)
        one.ask("EDS", "a")
        one.poll(WORLD)
        one.ack("EDS")
        other = taped_client(tape, delta=True, stream_id=2, drain_s=30.0)
        converse(other)
        assert "b" in other.has["CDS"]
    assert [o.difference for o in replay(tmp_path)] == [None, None]
    assert "(n1, sotw EDS)" in render(replay(tmp_path)[0])[0]

    def without_drain(settings: Settings) -> StreamMachine:
        return build_machine(replace(settings, drain_s=0.0))

    first, second = replay(tmp_path, build=without_drain)
    assert first.difference is None
    assert second.difference is not None


def test_everything_a_resource_may_be_comes_back(tmp_path):
    host = Resource(VHDS, "r/h", "1", b"host", None, ("r/a", "r/b"), on_demand=True)
    cluster = replace(resource("CDS", "c"), needs=("eds-c",))
    world = Snapshot(
        {
            CDS: type_snapshot([cluster]),
            EDS: type_snapshot([resource("EDS", "eds-c")]),
            VHDS: type_snapshot([host]),
        }
    )
    with recording(tmp_path) as tape:
        stream = TapedStream(tape, 1, "delta")
        for type_url, *names in ((CDS,), (EDS, "eds-c"), (VHDS, "r/a", "r/none")):
            stream.receive(DeltaRequest(type_url, tuple(names)), 1.0)
            for response in stream.poll(world, 1.0):
                stream.receive(DeltaRequest(response.type_url, response_nonce=response.nonce), 1.5)
        again = Snapshot({**world.types, CDS: type_snapshot([replace(cluster, version="2")])})
        sent = stream.poll(again, 2.0)
        assert [r.type_url for r in sent] == [CDS, EDS]
    (outcome,) = replay(tmp_path)
    assert summary(outcome)[2:] == ("", "")
    assert outcome.responses == 5


def test_the_same_object_again_is_the_same_object_in_a_replay(tmp_path, delta):
    """A machine that sees a part that it has settled does not look at it again."""
    there, back = snapshot(EDS={"a": "1"}), snapshot(EDS={"a": "2"})
    seen: list[tuple[object, ...]] = []

    def watching(settings: Settings) -> StreamMachine:
        machine = build_machine(settings)
        poll = machine.poll

        def watched(world: Snapshot, now_s: float) -> list[Response]:
            seen.append(tuple(world.types.values()))
            return poll(world, now_s)

        machine.poll = watched  # type: ignore[method-assign]
        return machine

    def talk(client: Client) -> None:
        client.ask("EDS", "a")
        for world in (there, back, there, there, snapshot(EDS={"a": "1"})):
            client.poll(world)

    record(tmp_path, delta, talk)
    assert replay(tmp_path, build=watching)[0].difference is None
    first, second, third, fourth, fifth = (parts[0] for parts in seen)
    assert first is third is fourth
    assert first is not second
    assert fifth == first
    assert fifth is not first


# -- streams of one node -------------------------------------------------------------------

BAD = changed(RDS={"r": "bad"})


def refuse(client: Client, world: Snapshot) -> None:
    client.ask("RDS", "r")
    client.poll(WORLD)
    client.ack("RDS")
    client.poll(world)
    client.nack("RDS", "bad routes")


def test_streams_of_a_node_share_what_it_refused_in_the_order_of_calls(tmp_path):
    with recording(tmp_path) as tape:
        shared = Quarantine()
        first, second = (
            taped_client(tape, delta=True, stream_id=i, quarantine=shared) for i in (1, 2)
        )
        first.ask("RDS", "r")
        first.poll(WORLD)
        first.ack("RDS")
        request = DeltaRequest(RDS, ("r",), initial_versions={"r": "1"})
        second.stream.receive(request, 0.0)
        second.poll(WORLD)
        first.poll(BAD)
        first.nack("RDS")
        assert second.poll(BAD) == []  # what its other stream refused is not offered here
        first.stream.close()
        second.poll(WORLD)
    outcomes = replay(tmp_path)
    assert [o.difference for o in outcomes] == [None, None]
    (alone,) = replay(tmp_path, only=2)
    assert summary(alone) == (1, 0, "", "")


def test_what_a_node_had_refused_before_is_in_the_tape(tmp_path):
    shared = Quarantine()
    with recording(tmp_path / "first") as tape:
        refuse(taped_client(tape, delta=True, quarantine=shared), BAD)
    assert len(shared) == 1
    with recording(tmp_path / "second") as tape:
        later = taped_client(tape, delta=True, quarantine=shared)
        later.stream.receive(DeltaRequest(RDS, ("r",), initial_versions={"r": "1"}), 0.0)
        assert later.poll(BAD) == []
    assert replay(tmp_path / "second")[0].difference is None


def test_a_difference_may_come_from_a_stream_that_is_not_known_to_its_end(tmp_path):
    with recording(tmp_path) as tape:
        shared = Quarantine()
        for i in (1, 2):
            taped_client(tape, delta=True, stream_id=i, quarantine=shared).start(WORLD)
    edit(tmp_path, lambda data: data.append({"ended": "the disk is full"}))
    first, second = replay(tmp_path)
    assert "  recording ended before the stream did: the disk is full" in render(first)
    assert "  what the node refused on stream 1 is not known to the end" in render(second)


# -- different -----------------------------------------------------------------------------


class Eager(DeltaStream):
    """Sends no more than one resource in a response."""

    def _chunks(self, update):
        for one in update.resources:
            yield replace(update, resources=(one,), removed=())


class Late(DeltaStream):
    """Sends nothing of RTDS."""

    def poll(self, snapshot: Snapshot, now_s: float) -> list[Response]:
        return [r for r in super().poll(snapshot, now_s) if "Runtime" not in r.type_url]


class Failing(DeltaStream):
    def receive(self, request: DeltaRequest, now_s: float):
        if request.error is not None:
            raise KeyError("nack")
        return super().receive(request, now_s)


class Strict(DeltaStream):
    def receive(self, request: DeltaRequest, now_s: float):
        if request.type_url == EDS:
            request = replace(request, type_url="")
        return super().receive(request, now_s)


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (Eager, ["CDS response, nonce 1:", "resources: this build does not send b"]),
        (Late, ["the tape has RTDS response", "with rt", "this build sends nothing more"]),
        (Failing, ["this build fails: KeyError: 'nack'"]),
        (Strict, ["refuses the request: a request on an aggregated stream needs a type_url"]),
    ],
)
def test_the_first_difference_is_found_and_said(tmp_path, kind, facts):
    record(tmp_path, delta=True)
    text = told(tmp_path, lambda _: kind())
    assert ": different after " in text.splitlines()[0]
    assert [fact for fact in facts if fact not in text] == []
    assert exit_code(replay(tmp_path, build=lambda _: kind())) == 1


def test_what_came_before_is_shown_as_a_conversation(tmp_path, delta):
    record(tmp_path, delta)

    class Other(build_machine(Settings("delta" if delta else "sotw", None, 0.0)).__class__):
        def heartbeat(self, snapshot: Snapshot, now_s: float) -> list[Response]:
            return []

    text = told(tmp_path, lambda _: Other())
    assert text.splitlines()[0].endswith(
        ": different after 1.500 s, it opened 2026-09-21T14:13:20.000+00:00"
    )
    assert "the tape has RTDS heartbeat, version " in text
    before = text.partition("before that:\n")[2].splitlines()
    assert 2 < len(before) <= 8
    assert before[-1].split(" s  ")[1].startswith("client: RTDS ACK of ")
    assert before[-2].split(" s  ")[1].startswith("server: RTDS response, version ")


def test_other_versions_nonces_and_bytes_are_told_apart(tmp_path, delta):
    def talk(client: Client) -> None:
        client.ask("EDS", "a", "b")
        client.poll(WORLD)
        client.poll(changed(EDS={"a": "1", "b": "2"}))
        client.ack("EDS")
        client.poll(changed(EDS={"a": "1", "b": "2"}))

    record(tmp_path, delta, talk)
    kind = build_machine(Settings("delta" if delta else "sotw", None, 0.0)).__class__

    def text(change: Callable[[Response], Response]) -> str:
        class Other(kind):
            def poll(self, snapshot: Snapshot, now_s: float) -> list[Response]:
                return [change(r) for r in super().poll(snapshot, now_s)]

        return told(tmp_path, lambda _: Other())

    facts = text(lambda r: replace(r, nonce="n7"))
    assert "nonce: the tape has 1, this build sends n7" in facts
    facts = text(lambda r: replace(r, version_info=""))
    assert "this build sends (none)" in facts
    facts = text(lambda r: replace(r, payload=r.payload.replace(b"b@2", b"b@1")))
    assert ("b: version" in facts) or ("b: the tape has version 2" in facts)
    assert "a: " not in facts
    facts = text(lambda r: replace(r, payload=r.payload + b"\x1a\x00"))
    assert "the resources are the same, and the message around them is not" in facts
    facts = text(lambda r: replace(r, heartbeat=True))
    assert "kind: the tape has response, this build sends heartbeat" in facts
    facts = text(lambda r: replace(r, type_url=CDS))
    assert "type: the tape has EDS, this build sends CDS" in facts
    facts = text(lambda r: replace(r, names=r.names[::-1]))
    assert "resources: another order: a, b became b, a" in facts
    facts = text(lambda r: replace(r, removed=("x",)))
    assert "removed: this build sends also x" in facts


def test_an_older_version_of_a_resource_is_named(tmp_path, delta):
    newer = changed(EDS={"a": "1", "b": "2"})

    def talk(client: Client) -> None:
        client.ask("EDS", "a", "b")
        client.poll(WORLD)
        client.ack("EDS")
        client.ask("EDS", "c")
        client.ask("EDS", "a", "b")
        client.poll(newer)

    record(tmp_path, delta, talk)
    kind = build_machine(Settings("delta" if delta else "sotw", None, 0.0)).__class__

    class Behind(kind):
        def poll(self, snapshot: Snapshot, now_s: float) -> list[Response]:
            old = Snapshot({**snapshot.types, EDS: WORLD.of(EDS)})
            return super().poll(old, now_s)

    assert "b: the tape has version 2, this build sends version 1" in told(
        tmp_path, lambda _: Behind()
    )


def test_more_than_the_tape_has_is_a_difference(tmp_path, delta):
    record(tmp_path, delta)

    def drop(data: list[dict]) -> None:
        poll = next(line for line in data if line.get("poll"))
        poll["sent"].pop()
        poll["poll"] -= 1

    edit(tmp_path, drop)
    text = told(tmp_path)
    assert "the tape has nothing more" in text
    assert "this build sends CDS response, version " in text


def test_a_request_that_was_refused_is_refused_again(tmp_path, delta):
    def talk(client: Client) -> None:
        client.ask("CDS")
        client.poll(WORLD)
        stream = client.stream
        stream.tape.received(stream, b"", 1.0)  # type: ignore[attr-defined]

    with recording(tmp_path) as tape:
        client = taped_client(tape, delta=delta)
        talk(client)
        client.stream.close("protocol")  # type: ignore[attr-defined]
    assert replay(tmp_path)[0].difference is None
    edit(tmp_path, lambda data: data[-1].update(closed="client"))
    assert "refuses the request" in told(tmp_path)


def test_only_what_differs_counts_as_different(tmp_path):
    with recording(tmp_path) as tape:
        taped_client(tape, delta=True, stream_id=1, node_id="n1").start(WORLD)
        taped_client(tape, delta=True, stream_id=2, node_id="n2").start(WORLD)

    def lose(data: list[dict]) -> None:
        next(x for x in data if x.get("poll"))["sent"][0]["nonce"] = "9"

    edit(tmp_path, lose, 2)
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "stream 1 (n1, delta): identical" in result.stdout
    assert "stream 2 (n2, delta): different" in result.stdout
    assert run(tmp_path, "--stream", 1).exit_code == 0
    data = json.loads(run(tmp_path, "--stream", 2, "--json").stdout)
    assert [d["identical"] for d in data] == [False]
    difference = data[0]["difference"]
    assert (difference["recorded"]["nonce"], difference["built"]["nonce"]) == ("9", "1")
    assert difference["before"][-1]["what"] == "client: CDS request"


def test_what_a_client_says_cannot_steer_a_terminal(tmp_path):
    with recording(tmp_path) as tape:
        taped_client(tape, delta=True, node_id="n\x1b[2J\n1").start(WORLD)
    assert render(replay(tmp_path)[0])[0].startswith("stream 1 (n?[2J?1, delta): identical")


# -- damage --------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 10, 200])
def test_a_last_line_that_was_cut_is_left_out(tmp_path, delta, lost):
    record(tmp_path, delta)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-lost])
    first, note = render(replay(tmp_path)[0])
    assert ": identical: " in first
    assert note == "  the stream was open when recording stopped"
    assert run(tmp_path).exit_code == 0


@pytest.mark.parametrize("kept", [0, 40])
def test_a_tape_that_was_cut_in_its_header_is_empty(tmp_path, delta, kept):
    record(tmp_path, delta)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:kept])
    (outcome,) = replay(tmp_path)
    assert render(outcome) == [
        "000001-n1.jsonl: identical: 0 requests, 0 responses, 0.0 s",
        "  nothing is in it: recording stopped as the stream opened",
    ]
    assert to_json(outcome)["stream"] is None
    with pytest.raises(UnreadableTapeError, match="there is no stream 1"):
        replay(tmp_path, only=1)


def test_a_folder_without_a_recording_is_a_mistake(tmp_path):
    assert run(tmp_path / "none").exit_code == 2
    result = run(tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nothing was recorded there" in result.stderr


def damage_line(folder: Path) -> None:
    (path,) = folder.glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = b"{oops}\n"
    path.write_bytes(b"".join(lines))


def damage_resource(folder: Path) -> None:
    for path in (folder / "resources").iterdir():
        path.write_bytes(b"other")


def lose_parts(folder: Path) -> None:
    for path in (folder / "parts").iterdir():
        path.unlink()


def damage_call(folder: Path) -> None:
    edit(folder, lambda data: [x.pop("at") for x in data[1:] if "at" in x])


def another_format(folder: Path) -> None:
    edit(folder, lambda data: data[0].update(tape=99))


def damage_header(folder: Path) -> None:
    edit(folder, lambda data: data[0].pop("machine"))


def damage_refusals(folder: Path) -> None:
    edit(folder, lambda data: data[0].update(refused=[{}]))


def no_objects(folder: Path) -> None:
    (path,) = folder.glob("*.jsonl")
    path.write_text("[]\n")


def lose_responses(folder: Path) -> None:
    edit(folder, lambda data: [x.update(sent=[]) for x in data if x.get("poll")])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (damage_line, "000001-n1.jsonl"),
        (damage_resource, "is not what was recorded"),
        (lose_parts, "No such file"),
        (damage_call, ":2: KeyError('at')"),
        (another_format, "not a recording in format 1"),
        (damage_header, ":1: KeyError('machine')"),
        (damage_refusals, "KeyError"),
        (no_objects, "not a line of a tape"),
        (lose_responses, "responses are missing"),
    ],
)
def test_damage_is_said_with_its_place_and_exits_2(tmp_path, delta, damage, why):
    record(tmp_path, delta)
    damage(tmp_path)
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "unreadable: " in result.stdout
    assert why in result.stdout
    assert json.loads(run(tmp_path, "--json").stdout)[0]["unreadable"]


def test_a_folder_among_the_files_is_unreadable(tmp_path):
    (tmp_path / "000001-n1.jsonl").mkdir()
    assert run(tmp_path).exit_code == 2
