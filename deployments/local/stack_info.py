"""Describes the running local stack in `stack.json`, and keeps its secrets in separate files."""

import fcntl
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

from deployments.local.processes import ProcessError

LOCAL_DIR: Final = Path(".local")
"""Where the local stack keeps its data and logs by default."""


@dataclass(frozen=True)
class Credentials:
    """An access key and its secret, stored in a file that only its owner can read."""

    access_key: str
    secret_key: str = field(repr=False)

    @classmethod
    def load_or_create(cls, path: Path) -> "Credentials":
        """Reads the file, or creates it (mode 0600) with a random secret of 32 characters.

        Two processes must not create it at the same time: the stack's lock ensures that.

        Raises:
            ProcessError: the file exists but cannot be read.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(path, json.dumps({"access_key": "sora", "secret_key": secrets.token_urlsafe(24)}))
        try:
            stored = json.loads(path.read_text())
            return cls(access_key=str(stored["access_key"]), secret_key=str(stored["secret_key"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ProcessError(
                f"{path} does not contain credentials. Delete it: a new secret is generated at the next start."
            ) from error


@dataclass(frozen=True)
class ServiceInfo:
    """A running service, as in stack.json."""

    pid: int
    url: str
    log: str


@dataclass(frozen=True)
class StackInfo:
    """A running stack, as in stack.json: without secrets, but with the paths of the files that contain them."""

    services: dict[str, ServiceInfo]
    public_environment: dict[str, str]
    secret_files: dict[str, str]

    def load_environment(self) -> dict[str, str]:
        """The variables that a process needs to use this stack, including secrets."""
        secret = {name: Credentials.load_or_create(Path(path)).secret_key for name, path in self.secret_files.items()}
        return {**self.public_environment, **secret}

    @classmethod
    def read(cls, local_dir: Path = LOCAL_DIR) -> "StackInfo | None":
        """The stack that runs in this folder, or None. A file that a killed stack left behind is ignored."""
        try:
            with (local_dir / "stack.lock").open() as lock:
                if take_lock(lock, fcntl.LOCK_SH):
                    return None
            stored = json.loads((local_dir / "stack.json").read_text())
            services = {name: ServiceInfo(**service) for name, service in stored.pop("services").items()}
            return cls(**stored, services=services)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def take_lock(file: TextIO | int, kind: int) -> bool:
    """Locks an open file, unless another process has locked it. Closing it unlocks it, as does the process's end."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read. It is complete at once: no reader sees a part of it."""
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)
