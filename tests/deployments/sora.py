"""The command line as a person uses it: a process of its own, and what it said."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
    """The command line in a folder of its own. No secret may ever be printed, so each run is searched for them."""

    def __init__(self, folder: Path, environment: dict[str, str], secrets: list[str]) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            **environment,
            "SORA_SPOOL_DIR": str(folder / "spool"),
            "PYTHONPATH": str(ROOT),
        }
        self._secrets = secrets
        self._started: list[subprocess.Popen[str]] = []

    def close(self) -> None:
        """Ends what a failed test left behind."""
        for process in self._started:
            process.kill()
            process.communicate()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.cli", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> Said:
        out, err = process.communicate(timeout=90)
        self._started.remove(process)
        for secret in self._secrets:
            assert secret not in out + err
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
