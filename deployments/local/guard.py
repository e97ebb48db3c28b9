"""A program, `python guard.py FD command…`, that runs a command and stops it when the parent process is gone.

`FD` is the read end of a pipe whose write end only the parent holds: it is closed however the parent ends. (Linux's
PR_SET_PDEATHSIG fires when the *thread* that started the child ends, and does not reach grandchildren.)
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

ORPHAN_GRACE_SECONDS = 5.0
"""How long the command may take to exit after its parent was killed. No process waits for it."""


def guard(lifeline: int, command: Sequence[str]) -> int:
    """Runs the command, and stops its process group when `lifeline` is closed. Returns its exit code."""
    received: list[int] = []

    def record(number: int, _: FrameType | None) -> None:
        received.append(number)

    # A handler, not SIG_IGN, which the command would inherit. The command gets the group's signals too, and decides.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, record)
    try:
        child = subprocess.Popen(command)  # noqa: S603
    except OSError as error:
        print(f"{command[0]} could not be started: {error}", file=sys.stderr, flush=True)
        return 127
    if received:  # a signal arrived before the command existed
        child.terminate()
    orphaned = threading.Event()

    def end_with_the_parent() -> None:
        os.read(lifeline, 1)
        orphaned.set()
        os.killpg(0, signal.SIGTERM)
        time.sleep(ORPHAN_GRACE_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    code = child.wait()
    if orphaned.is_set():
        os.killpg(0, signal.SIGKILL)  # grandchildren, and this guard
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # Without the interpreter's cleanup, which is not needed here: the thread above blocks in a read.
    os._exit(guard(int(sys.argv[1]), sys.argv[2:]))
