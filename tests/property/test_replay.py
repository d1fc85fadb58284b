"""Whatever is said on a stream, its recording replays identical."""

import shutil
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import settings
from hypothesis.stateful import rule

from tests.property.test_protocol import Server, SotwNetwork
from tests.unit.taped import StillClock, TapedStream
from xds_server.app.replay import replay
from xds_server.app.replay_report import exit_code, render
from xds_server.model.ids import TypeUrl
from xds_server.model.snapshot import Snapshot, TypeSnapshot
from xds_server.observability import Metrics
from xds_server.wire.tape.recorder import TapeRecorder


class TapedSotw(SotwNetwork):
    """Any interleaving, on tape; what comes back to the snapshot is the object from before."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp())
        self.tape = TapeRecorder(self.folder, Metrics(), StillClock(), max_bytes=2**26)
        self.parts: dict[tuple[TypeUrl, str], TypeSnapshot] = {}
        self.streams = 0

    @property
    def server(self) -> Server:
        return self._server

    @server.setter
    def server(self, server: Server) -> None:
        self.streams += 1
        protocol = "delta" if self.delta else "sotw"
        taped = TapedStream(self.tape, self.streams, protocol, quarantine=self.quarantine)
        server.stream = taped  # type: ignore[assignment]
        self._server = server

    @property
    def snapshot(self) -> Snapshot:
        fresh = super().snapshot.types
        return Snapshot(
            {url: self.parts.setdefault((url, p.version), p) for url, p in fresh.items()}
        )

    @rule()
    def server_extends(self) -> None:
        self.server_works(0)
        super().server_extends()  # the stream polls once more, as the pump does; nothing is due

    def teardown(self) -> None:
        try:
            super().teardown()
            self.tape.close()
            outcomes = replay(self.folder)
            told = "\n".join(line for o in outcomes for line in render(o))
            assert exit_code(outcomes) == 0, told
            assert len(outcomes) == self.streams
        finally:
            self.tape.close()
            shutil.rmtree(self.folder)


class TapedDelta(TapedSotw):
    delta = True


@pytest.mark.parametrize("machine", [TapedSotw, TapedDelta])
def test_any_conversation_replays_identical(machine: type[TapedSotw]) -> None:
    case = machine.TestCase
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
    case().runTest()
