"""A process that uses a known part of one CPU and a known piece of memory, until stdin closes.

``python used.py BYTES PORT [child]``: listens on a port of 127.0.0.1 unless it is 0, writes
"ready", and computes for ``BUSY`` of the time. With ``child``, a child process does all that.
"""

import socket
import subprocess
import sys
import threading
import time

BUSY = 0.5
STEP_S = 0.02


def main() -> None:
    size, port, *more = sys.argv[1:]
    if more:
        subprocess.run([sys.executable, __file__, size, port], check=False)
        return
    ballast = bytearray(b"x" * int(size))
    server = socket.create_server(("127.0.0.1", int(port)), reuse_port=True) if int(port) else None
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    print("ready", flush=True)  # noqa: T201 - its parent waits for it
    while not ended.is_set():
        until_s = time.process_time() + BUSY * STEP_S
        while time.process_time() < until_s:
            pass
        ended.wait((1.0 - BUSY) * STEP_S)
    del ballast, server


if __name__ == "__main__":
    main()
