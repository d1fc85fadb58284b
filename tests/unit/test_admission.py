"""How many streams are let in, and how fast."""

import asyncio
import contextlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e.envoy import eventually
from xds_server.wire.admission import Admission, AdmissionRefusedError, Gate


class Tallied:
    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.waits = 0

    def refused(self, reason: str) -> None:
        self.reasons[reason] += 1

    def waiting(self, streams: int) -> None:
        self.waits = streams


def gate(tally: Tallied, *, per_s: float, open_max: int = 1000, wait_max_s: float = 5.0) -> Gate:
    admission = Admission(per_s=per_s, open_max=open_max, wait_max_s=wait_max_s)
    return Gate(admission, tally, np.random.default_rng(1))


def test_case_79_a_second_s_worth_enters_at_once_and_the_rest_in_order_at_the_rate() -> None:
    admission = Admission(per_s=10.0, open_max=100)
    assert [admission.enter(ticket, 7.0) for ticket in range(13)] == [True] * 10 + [False] * 3
    assert admission.next_s(7.0) == pytest.approx(7.1)
    assert admission.due(7.05) == []
    assert admission.due(7.1001) == [10]
    assert not admission.enter(13, 7.1001)  # a free token would be somebody else's
    assert admission.due(7.5) == [11, 12, 13]
    assert admission.next_s(7.5) is None
    assert (admission.open, admission.waiting) == (14, 0)


def test_case_79_who_would_wait_too_long_and_who_is_too_many_is_refused() -> None:
    admission = Admission(per_s=10.0, open_max=100, wait_max_s=0.2)
    for ticket in range(12):
        admission.enter(ticket, 0.0)
    with pytest.raises(AdmissionRefusedError, match="at once") as refusal:
        admission.enter(12, 0.0)
    assert refusal.value.reason == "rate"
    small = Admission(per_s=10.0, open_max=2)
    assert small.enter(0, 0.0)
    assert small.enter(1, 0.0)
    with pytest.raises(AdmissionRefusedError, match="open") as refusal:
        small.enter(2, 100.0)
    assert refusal.value.reason == "streams_max"
    small.release()
    assert small.enter(3, 100.0)


def test_who_leaves_the_queue_takes_nobody_s_turn() -> None:
    admission = Admission(per_s=1.0, open_max=100)
    assert admission.enter(0, 0.0)
    for ticket in (1, 2, 3):
        admission.enter(ticket, 0.0)
    admission.leave(1)
    admission.leave(2)
    assert admission.due(1.0) == [3]
    admission.leave(3)
    assert admission.open == 2


@given(
    st.lists(st.tuples(st.sampled_from(["enter", "leave", "due", "release"]), st.floats(0.0, 2.0))),
    st.floats(0.1, 20.0),
)
def test_no_second_lets_in_more_than_the_rate_and_its_burst(
    steps: list[tuple[str, float]], per_s: float
) -> None:
    admission, now_s, entered, open_now = Admission(per_s=per_s, open_max=15), 100.0, [], 0
    for ticket, (what, later_s) in enumerate(steps):
        now_s += later_s
        came = 0
        if what == "enter":
            with contextlib.suppress(AdmissionRefusedError):
                came = int(admission.enter(ticket, now_s))
        elif what == "due":
            came = len(admission.due(now_s))
        elif what == "leave":
            admission.leave(ticket - 1)
        elif open_now:
            admission.release()
            open_now -= 1
        open_now += came
        entered += [now_s] * came
        assert admission.open == open_now
        assert open_now + admission.waiting <= 15
        assert admission.waiting <= 5.0 * per_s
    for i, start_s in enumerate(entered):
        within = sum(start_s <= t <= start_s + 1.0 for t in entered[i:])
        assert within <= per_s + max(per_s, 1.0) + 1e-6


async def test_case_79_a_storm_enters_in_order_at_the_rate() -> None:
    tally, order = Tallied(), []
    door = gate(tally, per_s=50.0)

    async def come(i: int) -> None:
        await door.admit()
        order.append(i)

    loop = asyncio.get_running_loop()
    start_s = loop.time()
    await asyncio.gather(*(come(i) for i in range(80)))
    assert loop.time() - start_s > 0.5  # 30 of 50 a second
    assert order == list(range(80))
    assert tally.reasons == {}
    assert tally.waits == 0


async def test_case_79_refusals_are_spread_out() -> None:
    tally, at_s = Tallied(), []
    door = gate(tally, per_s=1.0, open_max=1)
    await door.admit()
    loop = asyncio.get_running_loop()

    async def come() -> None:
        with pytest.raises(AdmissionRefusedError):
            await door.admit()
        at_s.append(loop.time())

    start_s = loop.time()
    await asyncio.gather(*(come() for _ in range(200)))
    late = sorted(t - start_s for t in at_s)
    assert 0.09 < late[0] < 0.2
    assert 0.9 < late[-1] < 1.5
    assert late[100] == pytest.approx(0.55, abs=0.15)
    assert tally.reasons == {"streams_max": 200}


async def test_case_80_who_gives_up_while_waiting_leaves_nothing() -> None:
    tally = Tallied()
    admission = Admission(per_s=20.0, open_max=1000)
    door = Gate(admission, tally, np.random.default_rng(1))
    for _ in range(20):
        await door.admit()
    tasks = [asyncio.ensure_future(door.admit()) for _ in range(50)]
    await eventually("they wait", lambda: tally.waits == 50)
    for i in range(0, 50, 2):
        tasks[i].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [t.cancelled() for t in tasks] == [True, False] * 25
    assert (admission.open, admission.waiting, tally.waits) == (45, 0, 0)


@pytest.mark.parametrize("steps", range(4))
async def test_a_turn_that_comes_as_its_owner_goes_is_given_back(steps: int) -> None:
    """The loop takes a few steps from the turn to its owner; it may go at any of them."""
    admission = Admission(per_s=1000.0, open_max=1000)
    door = Gate(admission, Tallied(), np.random.default_rng(1))
    for _ in range(1000):
        await door.admit()
    task = asyncio.ensure_future(door.admit())
    await asyncio.sleep(0)
    for _ in range(1_000_000):
        if not admission.waiting:
            break
        await asyncio.sleep(0)
    for _ in range(steps):
        await asyncio.sleep(0)
    let_in = task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert admission.open == 1000 + let_in


async def test_closing_refuses_who_waits_and_who_comes() -> None:
    tally = Tallied()
    door = gate(tally, per_s=1.0)
    await door.admit()
    waiting = [asyncio.ensure_future(door.admit()) for _ in range(3)]
    await eventually("they wait", lambda: tally.waits == 3)
    door.close()
    for task in waiting:
        with pytest.raises(AdmissionRefusedError, match="shutting down"):
            await task
    with pytest.raises(AdmissionRefusedError, match="shutting down"):
        await door.admit()
    assert tally.reasons == {"draining": 4}
    assert tally.waits == 0
