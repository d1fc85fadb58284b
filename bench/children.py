"""Processes of a benchmark that answer questions: one JSON object a line, in and out."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

Answer: TypeAlias = dict[str, Any]
Commands: TypeAlias = Mapping[str, Callable[..., Awaitable[Answer]]]
ASK_TIMEOUT_S = 90.0
LINE_MAX_BYTES = 2**24


class Child:
    """One ``python -m module`` that runs ``answering``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, module: str, *arguments: str) -> "Child":
        """Start it; its errors go to this process's stderr."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_MAX_BYTES,
            env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def ask(self, command: str, **arguments: Any) -> Answer:
        """Send one command and return its answer. Raises RuntimeError for a failed one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(
            json.dumps([command, arguments], allow_nan=False).encode() + b"\n"
        )
        async with asyncio.timeout(ASK_TIMEOUT_S):
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{command}: the process ended")
        answer: Answer = json.loads(line)
        if "failed" in answer:
            raise RuntimeError(f"{command}: {answer['failed']}")
        return answer

    async def stop(self) -> None:
        """End the process, by force if need be."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def answering(commands: Commands) -> None:
    """Answer commands, one after the other, until stdin ends."""
    reader = asyncio.StreamReader(limit=LINE_MAX_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command, arguments = json.loads(line)
        try:
            answer = await commands[command](**arguments)
        except Exception as error:  # noqa: BLE001 - it is told to the one who asked
            answer = {"failed": repr(error)}
        print(json.dumps(answer, allow_nan=False), flush=True)
