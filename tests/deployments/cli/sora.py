"""Runs the command line as a user does: each command is a separate process with its own result."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from blocks import VideoArchive
from deployments.sandbox import SandboxServer
from tests.support import unique
from tests.support.fork_server import ROOT, Forked, ForkServer

Process = subprocess.Popen[str] | Forked


@dataclass(frozen=True)
class CommandResult:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


class Sora:
    """The command line in its own folder. No secret may ever be printed, so the output of every run is searched.

    Args:
        folder: the directory in which commands run.
        environment: variables added to the test suite's own environment.
        secrets: texts that no command may print.
        forks: a server that forks commands where possible. If None, each command starts a new Python interpreter.
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
        """Kills the processes that a failed test left running."""
        for process in self._started:
            process.kill()
            process.communicate()

    def start(self, *arguments: str, **environment: str) -> Process:
        full_environment = {**self.environment, **environment}
        process: Process
        if self._forks is not None and self._forks.serves(full_environment):
            process = self._forks.start(list(arguments), full_environment, self.folder)
        else:
            process = subprocess.Popen(
                [sys.executable, "-m", "deployments.cli", *arguments],
                cwd=self.folder,
                env=full_environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self._started.append(process)
        return process

    def program(self) -> list[str]:
        """The command that a shell or a terminal starts for `sora` in this environment, forked where possible."""
        if self._forks is not None and self._forks.serves(self.environment):
            return self._forks.command()
        return [sys.executable, "-m", "deployments.cli"]

    def end(self, process: Process) -> CommandResult:
        out, err = process.communicate(timeout=150)
        self._started.remove(process)
        for secret in self._secrets:
            assert secret not in out + err
        assert process.returncode is not None
        return CommandResult(process.returncode, out, err)

    def __call__(self, *arguments: str, **environment: str) -> CommandResult:
        return self.end(self.start(*arguments, **environment))


def one_line(result: CommandResult, code: int) -> str:
    """Returns the only error line of a command that failed with this exit code, and with no traceback."""
    assert result.code == code, result.all
    assert "Traceback" not in result.all
    lines = [line for line in result.err.splitlines() if "✗" in line]
    assert len(lines) == 1, result.err
    return lines[0]


def setup_environment(sandbox: SandboxServer, archive: VideoArchive) -> dict[str, str]:
    """All that `sora setup` reads, for this sandbox and this store, with a new bucket."""
    return {
        "APIXO_API_KEY": sandbox.settings.api_key,
        "APIXO_BASE_URL": sandbox.base_url,
        "MINIO_ENDPOINT": archive.endpoint,
        "MINIO_ACCESS_KEY": archive.access_key,
        "MINIO_SECRET_KEY": archive.secret_key.get_secret_value(),
        "MINIO_SECURE": "false",
        "MINIO_BUCKET": unique("bucket"),
    }
