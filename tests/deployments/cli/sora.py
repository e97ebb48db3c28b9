"""The command line as a person uses it: a process of its own, and what it said."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.fork_server import ROOT, Forked, ForkServer

Process = subprocess.Popen[str] | Forked


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


class Sora:
    """The command line in a folder of its own. No secret may ever be printed, so each run is searched for them.

    Args:
        folder: where it runs.
        environment: what it has beside the suite's own.
        secrets: what no command may print.
        forks: forks the commands that it can; None: each starts Python anew.
    """

    def __init__(
        self, folder: Path, environment: dict[str, str], secrets: list[str], forks: ForkServer | None = None
    ) -> None:
        self.folder, self._forks = folder, forks
        self.environment = {
            **os.environ,
            **environment,
            "SORA_WORK_DIR": str(folder / "work"),
            "PYTHONPATH": str(ROOT),
        }
        self._secrets = secrets
        self._started: list[Process] = []

    def close(self) -> None:
        """Ends what a failed test left behind."""
        for process in self._started:
            process.kill()
            process.communicate()

    def start(self, *arguments: str, **environment: str) -> Process:
        whole = {**self.environment, **environment}
        process: Process
        if self._forks is not None and self._forks.serves(whole):
            process = self._forks.start(list(arguments), whole, self.folder)
        else:
            process = subprocess.Popen(
                [sys.executable, "-m", "deployments.cli", *arguments],
                cwd=self.folder,
                env=whole,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self._started.append(process)
        return process

    def program(self) -> list[str]:
        """What a shell or a terminal starts: `sora` in this environment, forked where it can be."""
        if self._forks is not None and self._forks.serves(self.environment):
            return self._forks.command()
        return [sys.executable, "-m", "deployments.cli"]

    def end(self, process: Process) -> Said:
        out, err = process.communicate(timeout=150)
        self._started.remove(process)
        for secret in self._secrets:
            assert secret not in out + err
        assert process.returncode is not None
        return Said(process.returncode, out, err)

    def __call__(self, *arguments: str, **environment: str) -> Said:
        return self.end(self.start(*arguments, **environment))


def one_line(said: Said, code: int) -> str:
    """What a command that failed in a foreseen way said: one line that a person can read."""
    assert said.code == code, said.all
    assert "Traceback" not in said.all
    lines = [line for line in said.err.splitlines() if "✗" in line]
    assert len(lines) == 1, said.err
    return lines[0]
