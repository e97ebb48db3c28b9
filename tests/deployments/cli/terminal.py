"""A command on a terminal of 80 columns, and a person who answers."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

from tests.deployments.cli.sora import Said, Sora

SECONDS = 150.0


def on_terminal(sora: Sora, *arguments: str, answers: dict[str, str] | None = None) -> Said:
    """Runs a command. Each answer is typed once its question has come; what is seen is in `out`, without colors."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [*sora.program(), *arguments],
        cwd=sora.folder,
        env={**sora.environment, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    waiting, seen, at = dict(answers or {}), "", 0
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.5)[0]:
                try:
                    seen += os.read(ours, 65_536).decode(errors="replace")
                except OSError:  # the other end is closed
                    break
            question = next(iter(waiting), None)
            if question is not None and question in seen[at:]:
                at = len(seen)
                os.write(ours, f"{waiting.pop(question)}\n".encode())
    finally:
        os.close(ours)
        if process.poll() is None and time.monotonic() >= deadline:
            process.kill()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).replace("\r", "")
    return Said(process.wait(SECONDS), plain, "")
