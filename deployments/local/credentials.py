"""Keys of the local stack, each in a file that only its owner can read."""

import json
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from deployments.local.processes import ProcessError


@dataclass(frozen=True)
class Credentials:
    """An access key and its secret, kept in a file that only its owner can read."""

    access_key: str
    secret_key: str = field(repr=False)

    @classmethod
    def load_or_create(cls, path: Path, *, access_key: str = "sora") -> "Credentials":
        """Reads the file, or creates it (mode 0600) with a random secret of 32 characters. Safe against a race.

        Raises:
            ProcessError: the file is there but cannot be understood.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = {"access_key": access_key, "secret_key": secrets.token_urlsafe(24)}
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mkstemp's mode is 0600
            with os.fdopen(handle, "w") as file:
                json.dump(draft, file)
            try:
                os.link(name, path)  # unlike a rename it fails when another process was first: that one's secret counts
            except FileExistsError:
                pass
            finally:
                Path(name).unlink()
        try:
            stored = json.loads(path.read_text())
            return cls(access_key=str(stored["access_key"]), secret_key=str(stored["secret_key"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ProcessError(
                f"{path} holds no credentials. Delete it: a new secret is made at the next start"
            ) from error
