"""An application that calls ``xds:///...`` without a sidecar, in a process of its own.

gRPC reads its bootstrap from the environment once per process. Answers go to stdout, a line
each: the name of who answered, or ``!``, the status and its details.
"""

import asyncio
import json
import sys
from typing import Any

import grpc

CALLS_MAX = 20_000


async def call(channel: grpc.aio.Channel, gap_s: float, timeout_s: float | None) -> None:
    """Call, one after the other."""
    who = channel.unary_unary("/test.Who/Am")
    for _ in range(CALLS_MAX):
        try:
            line = (await who(b"", timeout=timeout_s)).decode()
        except grpc.aio.AioRpcError as error:
            line = f"!{error.code().name} {error.details()}".replace("\n", " ")
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        await asyncio.sleep(gap_s)


async def main(settings: dict[str, Any]) -> None:
    """Call until stdin ends."""
    channels = [grpc.aio.insecure_channel(target) for target in settings["targets"]]
    calls = [
        asyncio.create_task(call(channel, settings["gap_s"], settings["timeout_s"]))
        for channel in channels
        for _ in range(settings["workers"])
    ]
    await asyncio.to_thread(sys.stdin.read)
    for task in calls:
        task.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    for channel in channels:
        await channel.close()


asyncio.run(main(json.loads(sys.argv[1])))
