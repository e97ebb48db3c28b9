"""A home for a Prefect server whose database exists already.

An empty one is made in 114 migrations, which take 10 s of processor. So a server makes one from nothing, once for each
version of Prefect; it is kept in the checkout like the built MinIO, and each server starts with a copy of it.
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
    """Puts a database of a server that has just been started for the first time into a new home, and returns that."""
    home.mkdir(parents=True, exist_ok=True)
    copy(kept_database(), home / "prefect.db")
    return home


def kept_database() -> Path:
    """The database as a server made it. Whoever comes first has it made; the others wait."""
    path = KEPT / f"prefect-{_made_by()}.db"
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
    """Copies a database, also while a server uses it."""
    with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target)) as written:
        read.backup(written)


def _made_by() -> str:
    """What its content depends on."""
    # Collections, such as prefect-redis, bring block types of their own.
    collections = sorted({point.dist.name for point in entry_points(group="prefect.collections") if point.dist})
    versions = [f"{name} {version(name)}" for name in ("prefect", "sqlalchemy", "alembic", *collections)]
    start = Path(prefect_server.__file__).read_bytes()
    return hashlib.sha256(repr((versions, sqlite3.sqlite_version, sys.version, start)).encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the end of this process unlocks as well
        yield
