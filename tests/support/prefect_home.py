"""Home directories for Prefect servers, with a database that already has its tables.

Creating the database takes 114 migrations and 10 s of processor time. So this is done once for each version of Prefect.
The result is kept in the checkout, like the built MinIO, and each server starts with a copy of it.
"""

import fcntl
import hashlib
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Final

from deployments.local import prefect_server
from deployments.local.prefect_server import start_prefect_server

KEPT: Final = Path(__file__).parents[2] / ".local" / "tests"


def prepare(home: Path) -> Path:
    """Creates a home with the database of a newly started server, and returns it."""
    home.mkdir(parents=True, exist_ok=True)
    copy(kept_database(), home / "prefect.db")
    return home


def kept_database() -> Path:
    """The path of the kept database. The first process creates it, and concurrent ones wait."""
    path = KEPT / f"prefect-{_version_digest()}.db"
    with _locked(KEPT / "lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=KEPT) as folder:
                home = Path(folder) / "home"
                server = start_prefect_server(home=home, log_dir=Path(folder)).ready()
                server.process.stop()
                copy(home / "prefect.db", Path(folder) / "draft.db")
                (Path(folder) / "draft.db").replace(path)
    return path


def copy(source: Path, target: Path) -> None:
    """Copies a database. This is safe even while a server uses it."""
    with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target)) as written:
        read.backup(written)


def _version_digest() -> str:
    """A digest of everything that the database depends on."""
    # Collections, such as prefect-redis, register their own block types.
    collections = sorted({point.dist.name for point in entry_points(group="prefect.collections") if point.dist})
    versions = [f"{name} {version(name)}" for name in ("prefect", "sqlalchemy", "alembic", *collections)]
    start = Path(prefect_server.__file__).read_bytes()
    return hashlib.sha256(repr((versions, sqlite3.sqlite_version, sys.version, start)).encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # also released if this process ends
        yield
