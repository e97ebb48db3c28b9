"""Runs a command on an 80-column terminal and types answers to its prompts."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

from tests.deployments.cli.sora import CommandResult, Sora

TIMEOUT_SECONDS = 150.0


def run_on_terminal(sora: Sora, *arguments: str, answers: dict[str, str] | None = None) -> CommandResult:
    """Runs a command. Each answer is typed once its prompt appears. `out` has all terminal output, without colors."""
    controller_fd, terminal_fd = pty.openpty()
    fcntl.ioctl(terminal_fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [*sora.program(), *arguments],
        cwd=sora.folder,
        env={**sora.environment, "TERM": "xterm"},
        stdin=terminal_fd,
        stdout=terminal_fd,
        stderr=terminal_fd,
    )
    os.close(terminal_fd)
    unanswered, output, answered_up_to = dict(answers or {}), "", 0
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while time.monotonic() < deadline:
            if select.select([controller_fd], [], [], 0.5)[0]:
                try:
                    output += os.read(controller_fd, 65_536).decode(errors="replace")
                except OSError:  # the command has closed its end
                    break
            prompt = next(iter(unanswered), None)
            if prompt is not None and prompt in output[answered_up_to:]:
                answered_up_to = len(output)
                os.write(controller_fd, f"{unanswered.pop(prompt)}\n".encode())
    finally:
        os.close(controller_fd)
        if process.poll() is None and time.monotonic() >= deadline:
            process.kill()
    plain_output = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r", "")
    return CommandResult(process.wait(TIMEOUT_SECONDS), plain_output, "")
