"""Where the local stack runs, for whoever wants to use it: `stack.json`."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from deployments.local.credentials import Credentials
from deployments.local.processes import port_answers

LOCAL_DIR: Final = Path(".local")
"""Where the local stack keeps its data and logs, unless something else is said."""


@dataclass(frozen=True)
class ServiceInfo:
    """A running service as stack.json describes it."""

    pid: int
    url: str
    log: str


@dataclass(frozen=True)
class StackInfo:
    """A running stack as stack.json describes it: no secrets, but the files that hold them."""

    pid: int
    started_at: str
    services: dict[str, ServiceInfo]
    public_environment: dict[str, str]
    secret_files: dict[str, str]

    def load_environment(self) -> dict[str, str]:
        """The variables that a process needs to use this stack, secrets included."""
        secrets = {name: Credentials.load_or_create(Path(path)).secret_key for name, path in self.secret_files.items()}
        return {**self.public_environment, **secrets}

    def is_alive(self) -> bool:
        """Whether every process of it lives and every port of it answers."""
        pids = [self.pid, *(service.pid for service in self.services.values())]
        ports = [urlsplit(service.url).port for service in self.services.values()]
        return all(map(_pid_exists, pids)) and all(port is not None and port_answers(port) for port in ports)

    @classmethod
    def read(cls, local_dir: Path = LOCAL_DIR) -> "StackInfo | None":
        """The stack that runs on this folder, or None. A file that a killed stack left behind is ignored."""
        try:
            stored = json.loads((local_dir / "stack.json").read_text())
            services = {name: ServiceInfo(**service) for name, service in stored.pop("services").items()}
            info = cls(**stored, services=services)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return info if info.is_alive() else None


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, as another user
        return True
    return True
