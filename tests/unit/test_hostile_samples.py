"""What a sidecar sends that cannot be true, or too much of it; counted by name."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from tests.e2e.envoy import eventually
from tests.unit.telemetry_messages import NOW_MS, Message
from tests.unit.test_speaker import METRICS, Served, served, total
from xds_server.errors import RemoteProtocolError
from xds_server.model.telemetry import LATENCY_BUCKETS_MS, SampleBatch
from xds_server.telemetry.counters import DOUBTS_MAX, SEEN_MAX, Bases
from xds_server.telemetry.messages import MESSAGE_MAX_BYTES
from xds_server.telemetry.metrics import MetricsDecoder, parse_metrics
from xds_server.wire.bounds import BURST, SHARE_BYTES, OversizedError, Pace

COUNT = len(LATENCY_BUCKETS_MS)
BEYOND = {
    math.nan: "not a number", -1.0: "negative", -math.inf: "negative",
    math.inf: "too large", 1e300: "too large", 1e16: "too large",
}  # fmt: skip


class Stream:
    """Messages of one node, a second apart."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.decoder = MetricsDecoder(Bases(), frozenset({"a", "b"}))

    def say(self, message: Message) -> SampleBatch | None:
        self.now_s += 1.0
        return self.decoder.decode(message.body, "n1", self.now_s)

    def requests(self, message: Message) -> float:
        batch = self.say(message)
        assert batch is not None
        return float(batch.counts[batch.providers.index("a"), 0])


@pytest.fixture(params=["parsed", "laid out"])
def stream(request: pytest.FixtureRequest) -> Stream:
    """A stream whose next message is read in that way."""
    made = Stream()
    if request.param == "laid out":
        for value in (1, 2):
            made.say(Message().counts("a", total=value).active("a", 1.0).times("a", [0] * COUNT))
        assert made.decoder._layouts
    return made


@pytest.mark.parametrize(("value", "reason"), BEYOND.items())
def test_a_number_that_cannot_be_true_is_dropped_by_name(
    stream: Stream, value: float, reason: str
) -> None:
    stream.say(Message().counts("a", total=100).active("a", 1.0).times("a", [0] * COUNT))
    false = Message().counts("a", total=value).active("a", value).times("a", [0] * COUNT)
    batch = stream.say(false)
    assert stream.decoder.refused == {reason: 2}
    assert batch is None or batch.counts.sum() == 0.0
    right = Message().counts("a", total=103).active("a", 1.0).times("a", [0] * COUNT)
    assert stream.requests(right) == 3.0
    assert stream.decoder.refused == {}


@pytest.mark.parametrize("sum_ms", [math.nan, -1.0, math.inf, 1e300, 4e9 * 86.4])
def test_a_histogram_whose_sum_cannot_be_is_dropped(stream: Stream, sum_ms: float) -> None:
    stream.say(Message().counts("a", total=100).active("a", 1.0).times("a", [0] * COUNT))
    false = Message().counts("a", total=101).active("a", 1.0).times("a", [1] * COUNT, sum_ms=sum_ms)
    batch = stream.say(false)
    assert batch is not None
    assert stream.decoder.refused == {"false histogram": 1}
    assert (batch.latency_sum_s.sum(), batch.latency_hist.sum()) == (0.0, 0.0)
    assert batch.counts[0, 0] == 1.0


def test_a_counter_that_is_a_gauge_is_refused_and_counts_nothing() -> None:
    stream = Stream()
    stream.say(Message().counts("a", total=100))
    for _ in range(3):
        wrong = Message().counts("a", retry=0).gauge("cluster.upstream_rq_total", "a", 500.0)
        assert stream.requests(wrong) == 0.0
        assert stream.decoder.refused == {"wrong type": 1}
    wrong = Message().counts("a", total=101).gauge("cluster.upstream_rq_time", "a", 1.0)
    assert stream.requests(wrong) == 1.0
    assert stream.decoder.refused == {"wrong type": 1}


def test_a_message_that_comes_twice_counts_once() -> None:
    stream = Stream()
    stream.say(Message().counts("a", total=100))
    message = Message().counts("a", total=105).times("a", [5] * COUNT, sum_ms=5.0)
    batch = stream.say(message)
    assert batch is not None
    assert batch.latency_hist.sum() == 5
    assert stream.say(message) is None
    assert stream.decoder.refused == {"duplicate": 1}
    assert stream.requests(Message().counts("a", total=106)) == 1.0


def test_messages_of_one_flush_are_not_repeated_ones() -> None:
    stream = Stream()
    for second in range(3):
        at_ms = NOW_MS + 1000 * second
        stream.say(Message(at_ms=at_ms).counts("a", total=second))
        batch = stream.say(Message(at_ms=at_ms).counts("b", total=5 + second))
        assert (batch is None) == (second == 0)  # the first flush is the base, as a whole
        assert batch is None or batch.counts[:, 0].sum() == 1.0
        assert stream.decoder.refused == {}


def test_an_older_message_is_dropped_and_is_no_restart() -> None:
    stream = Stream()
    first, late, newest = (Message().counts("a", total=n) for n in (100, 110, 120))
    stream.say(first)
    assert stream.requests(newest) == 20.0
    assert stream.say(late) is None
    assert stream.decoder.refused == {"out of order": 1}
    assert stream.requests(Message().counts("a", total=125)) == 5.0
    assert stream.decoder.events == []


def test_a_clock_that_is_set_back_makes_nobody_blind() -> None:
    stream = Stream()
    stream.say(Message(at_ms=NOW_MS).counts("a", total=100))
    assert stream.requests(Message(at_ms=NOW_MS - 3_600_000).counts("a", total=110)) == 10.0
    assert stream.decoder.events == ["clock"]
    assert stream.requests(Message(at_ms=NOW_MS - 3_599_000).counts("a", total=111)) == 1.0
    assert stream.decoder.events == []


def test_a_gap_and_a_restart_are_noted() -> None:
    stream = Stream()
    said = []
    for second, value in ((0, 100), (1, 110), (2, 120), (60, 700), (61, 5), (62, 6)):
        stream.say(Message(at_ms=NOW_MS + 1000 * second).counts("a", total=value))
        said.append(stream.decoder.events)
    assert said == [[], [], [], ["gap"], ["reset"], []]


def test_increments_that_no_envoy_can_count_are_dropped_until_they_stay() -> None:
    stream = Stream()
    stream.say(Message().counts("a", total=100, rx=1))
    assert stream.requests(Message().counts("a", total=1e12, rx=1e14)) == 0.0
    assert stream.decoder.refused == {"absurd rate": 2}
    assert stream.requests(Message().counts("a", total=103, rx=1)) == 3.0
    for _ in range(DOUBTS_MAX):
        assert stream.requests(Message().counts("a", total=1e12, rx=1)) == 0.0
        assert stream.decoder.refused == {"absurd rate": 1}
    assert stream.requests(Message().counts("a", total=1e12 + 7, rx=1)) == 7.0


def test_more_responses_than_an_envoy_can_have_are_dropped() -> None:
    stream = Stream()
    stream.say(Message().counts("a", total=100))
    batch = stream.say(Message().counts("a", total=101).times("a", [10**9] * COUNT, sum_ms=1e9))
    assert batch is not None
    assert (batch.latency_hist.sum(), batch.latency_sum_s.sum()) == (0.0, 0.0)
    assert stream.decoder.refused == {"absurd rate": 1}


def test_what_is_kept_of_a_flush_is_bounded() -> None:
    stream = Stream()
    for value in range(3 * SEEN_MAX):
        stream.say(Message(at_ms=NOW_MS).counts("a", total=value))
    base = stream.decoder._bases.get("n1")
    assert base is not None
    assert len(base.seen) == SEEN_MAX


def test_the_pace_is_twenty_times_what_was_agreed() -> None:
    pace = Pace(0.2, 2**30)
    assert sum(pace.take(100, 0.0) for _ in range(1000)) == BURST
    assert pace.lost == 1000 - BURST
    assert pace.gap_s == pytest.approx(0.01)
    taken = sum(pace.take(100, 10.0 + i / 500) for i in range(5000))  # 100 times too fast
    assert taken == pytest.approx(BURST + 10 * 100, abs=2)
    slow = Pace(300.0, 2**30)  # an Envoy from before a reload may be as fast as one a second
    assert all(slow.take(100, float(i)) for i in range(1000))


def test_a_large_message_counts_more_and_a_larger_one_is_not_read() -> None:
    pace = Pace(1.0, MESSAGE_MAX_BYTES)
    large = sum(pace.take(MESSAGE_MAX_BYTES, 0.0) for _ in range(100))
    assert large == int(BURST / (1 + MESSAGE_MAX_BYTES // SHARE_BYTES))
    with pytest.raises(OversizedError, match="8388609 bytes; the most is 8 MiB"):
        pace.take(MESSAGE_MAX_BYTES + 1, 0.0)
    with pytest.raises(RemoteProtocolError, match="8 MiB"):
        parse_metrics(bytes(MESSAGE_MAX_BYTES + 1))


# -- over real connections ---------------------------------------------------------------


def _of(node_id: str, **values: float) -> bytes:
    return Message(node_id).counts("p", **values).body


HOSTILE: dict[str, tuple[Callable[[], list[bytes]], dict[str, int], grpc.StatusCode | None]] = {
    # what is sent after a base of 100; what is counted; how the stream ends, None: it goes on
    "truncated": (
        lambda: [_of("a", total=101)[:-3]],
        {"malformed": 1}, grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "oversized": (
        lambda: [bytes(MESSAGE_MAX_BYTES + 1)],
        {"oversized": 1}, grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "no message": (lambda: [b"\xff" * 99], {"malformed": 1}, grpc.StatusCode.INVALID_ARGUMENT),
    "wrong type": (
        lambda: [Message("a").gauge("cluster.upstream_rq_total", "p", 900.0).body],
        {"wrong type": 1}, None,
    ),
    "NaN": (lambda: [_of("a", total=math.nan)], {"not a number": 1}, None),
    "negative": (lambda: [_of("a", total=-5.0)], {"negative": 1}, None),
    "huge": (lambda: [_of("a", total=1e300)], {"too large": 1}, None),
    "absurd": (lambda: [_of("a", total=1e14)], {"absurd rate": 1}, None),
    "twice": (lambda: [_of("a", total=100)] * 2, {"duplicate": 1}, None),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
async def test_hostile_input_is_counted_by_name_and_touches_nobody_else(what: str) -> None:
    bodies, counted, ends = HOSTILE[what]
    async with served() as plane, plane.channel() as of_a, plane.channel() as of_b:
        await plane.announce(of_a, "a")
        await plane.announce(of_b, "b")
        honest, hostile = of_b.stream_unary(METRICS)(), of_a.stream_unary(METRICS)()
        await honest.write(total("b", 1000))
        await hostile.write(total("a", 100))
        for body in bodies():
            await hostile.write(body)
        expected = {f"metrics_service {reason}": count for reason, count in counted.items()}
        await eventually("it is counted", lambda: dict(plane.tally.refused) == expected)
        await honest.write(total("b", 1007))
        await eventually("the other counts", lambda: plane.counted() == 7)
        if ends is not None:
            assert await hostile.code() is ends
            return
        await hostile.write(total("a", 103))
        await eventually("and so does it, what is true", lambda: plane.counted() == 10)
        assert not honest.done()
        assert dict(plane.tally.refused) == expected


async def _flood(call: Any, bodies: list[bytes]) -> None:
    for body in bodies:
        await call.write(body)


async def test_a_hundred_times_the_rate_costs_the_others_nothing() -> None:
    async with served() as plane, plane.channel() as of_a, plane.channel() as of_b:
        await plane.announce(of_a, "a")
        await plane.announce(of_b, "b")
        honest, fast = of_b.stream_unary(METRICS)(), of_a.stream_unary(METRICS)()
        await honest.write(total("b", 0))
        await eventually("a base", lambda: plane.tally.counted["metrics_service messages"] == 1)
        began_s = asyncio.get_running_loop().time()
        flood = asyncio.create_task(_flood(fast, [total("a", 0)] * 1000))
        waited = [await _answered(plane, honest, k) for k in range(1, 11)]
        spent_s = asyncio.get_running_loop().time() - began_s
        await eventually("it is named", lambda: plane.tally.refused["metrics_service rate"] > 0)
        read = plane.tally.counted["metrics_service messages"] - 11
        assert read <= BURST + 20.0 * (spent_s + 2.0)
        assert np.median(waited) < 0.5
        flood.cancel()
        fast.cancel()


async def _answered(plane: Served, call: Any, count: int) -> float:
    """How long a message of the honest node takes to be counted, s."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await call.write(total("b", count))
    await eventually("it counts", lambda: plane.counted() == count)
    return loop.time() - began_s


async def test_an_oversized_load_report_is_not_read() -> None:
    async with served() as plane, plane.channel() as of_a:
        await plane.announce(of_a, "a")
        call = of_a.stream_stream(
            "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
        )()
        await call.write(bytes(MESSAGE_MAX_BYTES + 1))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert plane.tally.refused == {"load_stats oversized": 1}
