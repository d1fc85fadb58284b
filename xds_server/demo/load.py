"""The load generator: open loop by arrival times, and a few users that wait for answers.

The latency of an open-loop request counts from the moment at which it was meant to start,
so that a slow system cannot hide its delay by delaying the generator (no coordinated
omission). A request that the generator's own limit kept from being sent is counted as
``unsent``, never dropped silently.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import numpy as np

from xds_server.model.ids import ApplicationName, ProviderName, ServiceName

TIMEOUT_S: Final = 5.0
"""Above every timeout of the demo's calls: Envoy, not the client, gives up first."""
IN_FLIGHT_MAX: Final = 400
"""Per target; open-loop requests beyond it are not sent but counted."""
SAMPLES_MAX: Final = 200_000
"""Of one run; what comes after is not recorded but counted."""
IDEMPOTENT: Final = frozenset({"search"})


@dataclass(frozen=True, slots=True)
class Target:
    """A listener of one sidecar."""

    application: ApplicationName
    instance: str
    service: ServiceName
    url: str

    @property
    def method(self) -> str:
        """GET where the demo's service only reads."""
        return "GET" if self.service in IDEMPOTENT else "POST"


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its caller saw it. Status 0: no answer at all."""

    start_s: float  # intended, from the story's start
    latency_s: float
    status: int
    application: ApplicationName
    service: ServiceName
    provider: ProviderName  # "" when none answered

    @property
    def failed(self) -> bool:
        """Whether the caller got anything but a proper answer."""
        return not 200 <= self.status < 500


@dataclass(slots=True)
class Recorder:
    """All samples of one run, bounded, and the newest for the live view."""

    samples: list[Sample] = field(default_factory=list)
    recent: deque[Sample] = field(default_factory=lambda: deque(maxlen=2000))
    unsent: int = 0
    unrecorded: int = 0

    def add(self, sample: Sample) -> None:
        """Keep one more."""
        self.recent.append(sample)
        if len(self.samples) < SAMPLES_MAX:
            self.samples.append(sample)
        else:
            self.unrecorded += 1


class Generator:
    """Sends requests of one run; time counts from ``started_s``, monotonic."""

    def __init__(
        self, session: aiohttp.ClientSession, recorder: Recorder, started_s: float
    ) -> None:
        self._session, self._recorder, self._started_s = session, recorder, started_s

    async def open_loop(
        self, target: Target, arrivals_s: Sequence[float], in_flight_max: int = IN_FLIGHT_MAX
    ) -> None:
        """Send one request at each of these times, whatever became of the ones before."""
        in_flight: set[asyncio.Task[None]] = set()
        try:
            for at_s in arrivals_s:
                wait_s = self._started_s + at_s - time.monotonic()
                if wait_s > 0.0:
                    await asyncio.sleep(wait_s)
                if len(in_flight) >= in_flight_max:
                    self._recorder.unsent += 1
                    continue
                task = asyncio.create_task(self._send(target, at_s))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)
            await asyncio.gather(*in_flight)
        finally:
            for task in tuple(in_flight):
                task.cancel()

    async def closed_loop(
        self, target: Target, rng: np.random.Generator, think_s: float, until_s: float
    ) -> None:
        """Be one user: ask, wait for the answer, think, ask again."""
        while True:
            await asyncio.sleep(float(rng.exponential(think_s)))
            at_s = time.monotonic() - self._started_s
            if at_s >= until_s:
                return
            await self._send(target, at_s)

    async def _send(self, target: Target, start_s: float) -> None:
        status, provider = 0, ""
        try:
            async with self._session.request(target.method, target.url) as response:
                await response.read()
                status = response.status
                provider = response.headers.get("x-provider", "")
        except (aiohttp.ClientError, TimeoutError):
            status = 0
        latency_s = time.monotonic() - self._started_s - start_s
        sample = Sample(start_s, latency_s, status, target.application, target.service, provider)
        self._recorder.add(sample)


def make_session() -> aiohttp.ClientSession:
    """Return a client without limits of its own: the generator's are the ones that count."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
    )
