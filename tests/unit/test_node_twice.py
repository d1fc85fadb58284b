"""Two Envoys with one node id: one of them counts, and nothing is made up."""

from collections.abc import Callable

import pytest

from tests.e2e.envoy import eventually
from tests.unit.otlp_messages import START_MS, Export
from tests.unit.telemetry_messages import NOW_MS, Message
from tests.unit.test_speaker import METRICS, served, total
from xds_server.model.telemetry import SampleBatch
from xds_server.telemetry.counters import Bases
from xds_server.telemetry.metrics import MetricsDecoder
from xds_server.telemetry.otlp import OtlpDecoder
from xds_server.telemetry.otlp_values import node_of, parse_otlp, read_otlp
from xds_server.telemetry.turns import NODES_KEPT, SILENT_S, TWICE_S, Caller, Turns

ONE, OTHER = Caller("ipv4:10.0.0.1:1001", 1), Caller("ipv4:10.0.0.2:1002", 2)
OURS = frozenset({"a"})


class World:
    """Callers that speak for the node "n", each a second after the one before."""

    def __init__(self, bases: Bases | None = None) -> None:
        self.bases, self.now_s, self.counted, self.refused = bases or Bases(), 0.0, 0.0, 0
        self._metrics = {c: MetricsDecoder(self.bases, OURS) for c in (ONE, OTHER)}
        self._otlp = OtlpDecoder(self.bases)

    def by_metrics(self, caller: Caller, total: int) -> None:
        body = Message(at_ms=self._later()).counts("a", total=total).body
        decoder = self._metrics.setdefault(caller, MetricsDecoder(self.bases, OURS))
        if self._may(caller):
            self._add(decoder.decode(body, "n", self.now_s))

    def by_otlp(self, caller: Caller, total: int) -> None:
        body = Export("n", self._later() - START_MS).counts("a", total=total).body
        message = parse_otlp(body)
        values = read_otlp(message, OURS)
        if self._may(caller):
            self._add(self._otlp.decode(body, values, node_of(message), self.now_s))

    def _later(self) -> int:
        self.now_s += 1.0
        return NOW_MS + round(1e3 * self.now_s)

    def _may(self, caller: Caller) -> bool:
        its = self.bases.turn("n", caller, 1.0, self.now_s)
        self.refused += not its
        return its

    def _add(self, batch: SampleBatch | None) -> None:
        self.counted += 0.0 if batch is None else float(batch.counts[:, 0].sum())


SINKS = pytest.mark.parametrize("say", [World.by_metrics, World.by_otlp])
Say = Callable[[World, Caller, int], None]


@SINKS
def test_of_two_envoys_one_counts_until_it_leaves_and_then_the_others_differences_do(
    say: Say,
) -> None:
    world = World()
    for second in range(20):
        say(world, ONE, 1000 + second)
        say(world, OTHER, 77 + 5 * second)
    assert (world.counted, world.refused) == (19.0, 20)
    world.bases.leave("n", ONE)
    say(world, OTHER, 200)
    assert world.counted == 19.0
    say(world, OTHER, 203)
    assert world.counted == 22.0
    for second in range(5):  # and back: nothing is made up either
        say(world, ONE, 2000 + second)
        say(world, OTHER, 203)
    assert world.counted == 22.0


@SINKS
def test_who_is_silent_loses_its_turn(say: Say) -> None:
    world = World()
    say(world, ONE, 1000)
    say(world, OTHER, 50)
    say(world, ONE, 1001)
    world.now_s += 5.0
    say(world, OTHER, 60)
    say(world, OTHER, 67)
    assert (world.counted, world.refused) == (8.0, 1)


@SINKS
def test_an_envoy_that_comes_back_on_another_connection_counts_on(say: Say) -> None:
    world = World()
    say(world, ONE, 1000)
    say(world, ONE, 1010)
    say(world, OTHER, 1020)  # the one before is still open, and will not speak again
    assert (world.counted, world.refused) == (10.0, 1)
    world.bases.leave("n", ONE)
    say(world, OTHER, 1030)
    assert world.counted == 30.0
    world.bases.leave("n", OTHER)
    say(world, ONE, 4)  # another Envoy in its place
    assert world.counted == 34.0


def test_clients_of_a_unix_socket_are_told_apart_by_stream_or_by_their_start() -> None:
    turns = Turns()
    for node_id, one, other in (
        ("streams", Caller("unix:", 1), Caller("unix:", 2)),
        ("starts", Caller("unix:", start_ms=5), Caller("unix:", start_ms=9)),
    ):
        assert turns.take(node_id, one, 1.0, 1.0, 0.0) == (True, False)
        assert turns.take(node_id, other, 1.0, 1.0, 0.1) == (False, False)
        assert turns.take(node_id, one, 1.0, 1.0, 1.0) == (True, False)


def test_one_connection_may_report_by_both_sinks() -> None:
    turns = Turns()
    stream, export = Caller("ipv4:10.0.0.1:1", stream=3), Caller("ipv4:10.0.0.1:1", start_ms=7)
    assert turns.take("n", stream, 1.0, 1.0, 0.0) == (True, False)
    assert turns.take("n", export, 1.0, 1.0, 0.1) == (True, False)
    turns.leave("n", stream)
    assert turns.take("n", OTHER, 1.0, 1.0, 0.2) == (True, False)
    turns.leave("n", stream)  # it is not the one whose turn it is
    assert turns.take("n", stream, 1.0, 1.0, 0.3) == (False, False)


def test_a_gap_keeps_no_turn_for_long_and_a_long_interval_is_no_silence() -> None:
    turns = Turns()
    turns.take("n", ONE, 3600.0, 1.0, 0.0)
    assert turns.take("n", OTHER, 3600.0, 1.0, SILENT_S) == (False, False)
    assert turns.take("n", OTHER, 3600.0, 1.0, SILENT_S + 0.1) == (True, False)
    turns.take("m", ONE, 60.0, 60.0, 0.0)
    assert turns.take("m", OTHER, 60.0, 60.0, 140.0) == (False, False)


def test_after_a_while_a_change_of_turn_is_a_reconnect_again() -> None:
    turns = Turns()
    for caller in (ONE, OTHER, ONE):
        turns.take("n", caller, 1.0, 1.0, 1.0)
    assert turns.twice("n", TWICE_S)
    turns.leave("n", ONE)
    assert turns.take("n", OTHER, 1.0, 1.0, TWICE_S) == (True, True)
    turns.leave("n", OTHER)
    assert turns.take("n", ONE, 1.0, 1.0, TWICE_S + 2.0) == (True, False)


def test_turns_are_bounded() -> None:
    turns = Turns()
    for i in range(NODES_KEPT + 5):
        turns.take(f"n{i}", ONE, 1.0, 1.0, 0.0)
    assert len(turns._turns) == NODES_KEPT
    assert turns.take("n0", OTHER, 1.0, 1.0, 0.0) == (True, False)


def test_the_counters_of_a_node_that_is_there_twice_are_not_left_to_the_next_process() -> None:
    world = World()
    world.by_metrics(ONE, 10)
    assert len(world.bases.saved(world.now_s, 60.0)) == 1
    world.by_metrics(OTHER, 500)
    world.by_metrics(ONE, 11)
    assert world.bases.saved(world.now_s, 60.0) == []


def test_a_flush_in_several_messages_is_one_base() -> None:
    for split in (Message, lambda at_ms: Export("n", at_ms - START_MS)):
        world, counted = World(), []
        for second, totals in enumerate(((900, 7), (901, 9))):
            for name, value in zip("ab", totals, strict=True):
                at_ms = NOW_MS + 1000 * second
                body = split(at_ms=at_ms).counts(name, total=value).body
                counted.append(_decoded(world.bases, body, split is Message, float(second)))
        assert counted == [None, None, 1.0, 2.0]


def _decoded(bases: Bases, body: bytes, metrics: bool, now_s: float) -> float | None:
    both = frozenset({"a", "b"})
    if metrics:
        batch = MetricsDecoder(bases, both).decode(body, "n", now_s)
    else:
        batch = OtlpDecoder(bases).decode(body, read_otlp(parse_otlp(body), both), "n", now_s)
    return None if batch is None else float(batch.counts[:, 0].sum())


# -- over real connections ---------------------------------------------------------------


async def test_a_second_connection_with_a_nodes_id_is_refused_until_it_is_alone() -> None:
    async with served() as plane, plane.channel() as of_one, plane.channel() as of_other:
        for channel in (of_one, of_other):
            await plane.announce(channel, "a")
        one, other = of_one.stream_unary(METRICS)(), of_other.stream_unary(METRICS)()
        await one.write(total("a", 1000))
        await eventually("a base", lambda: plane.tally.counted["metrics_service messages"] == 1)
        for k in range(1, 4):
            await other.write(total("a", 5000 + k))
            await eventually(
                "it is refused", lambda k=k: plane.tally.refused["metrics_service node twice"] == k
            )
            await one.write(total("a", 1000 + k))
            await eventually("the first counts", lambda k=k: plane.counted() == k)
        one.cancel()

        async def alone() -> bool:
            await other.write(total("a", 5010))
            return plane.tally.counted["metrics_service messages"] > 4

        await eventually("it has the turn", alone)
        await other.write(total("a", 5017))
        await eventually("its differences count", lambda: plane.counted() == 10)
        assert plane.tally.events == {}


async def test_what_is_counted_while_a_node_waits_for_its_ads_stream_counts() -> None:
    async with served() as plane, plane.channel() as channel:
        call = channel.stream_unary(METRICS)()
        for count in (100, 110):
            await call.write(total("a", count))
        await eventually(
            "both wait", lambda: plane.tally.refused["metrics_service no ADS stream"] == 2
        )
        await plane.announce(channel, "a")
        await call.write(total("a", 135))
        await eventually("all since the first is there", lambda: plane.counted() == 35)
