"""A real Prefect server, once: its settings, its clients' environment and its end."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deployments.local.prefect_server import PrefectServer, start_prefect_server
from deployments.local.processes import LOOPBACK, ProcessError, http_get
from tests.support.prefect_home import kept_database, prepare


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    folder = tmp_path_factory.mktemp("prefect-server")
    with pytest.MonkeyPatch.context() as patch:
        # What a user's shell may hold: none of it may reach this server.
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{folder}/somebody-elses.db")
        patch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
        patch.setenv("PREFECT_PROFILE", "no-such-profile")
        started = start_prefect_server(home=prepare(folder / "home"), log_dir=folder / "logs").ready()
    with started.process:
        yield started
        # It stops quickly and wholly, even with a connection open.
        with socket.create_connection((LOOPBACK, int(started.url.rsplit(":", 1)[1]))):
            assert started.process.stop() != 128 + signal.SIGKILL  # which comes when it has not ended after a while
    groups = subprocess.run(["ps", "-A", "-o", "pgid="], capture_output=True, text=True, check=True).stdout.split()
    assert str(started.process.pid) not in groups


def get(server: PrefectServer, path: str) -> Any:
    answer = http_get(int(server.url.rsplit(":", 1)[1]), path, timeout_seconds=10)
    assert answer is not None
    assert answer[0] == 200
    return json.loads(answer[1])


def test_the_server_is_tuned_quiet_and_keeps_its_data_at_home(server: PrefectServer) -> None:
    settings = get(server, "/api/admin/settings")
    assert settings["home"] == str(server.home)
    assert (server.home / "prefect.db").exists()
    assert not (server.home.parent / "somebody-elses.db").exists()
    assert settings["server"]["analytics_enabled"] is False
    assert settings["server"]["services"]["task_run_recorder"]["batch_size"] == 200
    assert settings["server"]["services"]["task_run_recorder"]["flush_interval"] == 1
    assert settings["server"]["services"]["event_persister"]["batch_size"] == 500
    assert settings["server"]["events"]["retention_period"] in ("P7D", 604800.0, 604800)


def test_the_ui_calls_this_server_and_plays_videos(server: PrefectServer) -> None:
    ui = get(server, "/ui-settings")
    assert ui["api_url"] == server.api_url == f"{server.url}/api"
    assert ui["default_ui"] == "v1"


def test_a_client_with_the_environment_reaches_it_whatever_the_shell_holds(server: PrefectServer) -> None:
    shell = {
        **os.environ,
        "PREFECT_API_URL": "http://127.0.0.1:1/api",
        "PREFECT_PROFILE": "x",
        "PREFECT_API_KEY": "pnu_x",
    }
    command = [sys.executable, "-m", "prefect", "config", "view", "--output", "json"]
    reported = subprocess.run(command, env={**shell, **server.environment}, capture_output=True, text=True, check=True)
    assert server.api_url in reported.stdout
    assert "pnu_x" not in reported.stdout
    command = [sys.executable, "-m", "prefect", "flow-run", "ls"]
    reported = subprocess.run(command, env={**shell, **server.environment}, capture_output=True, text=True, check=True)
    assert reported.stderr == ""


@pytest.mark.attack  # 114 migrations take ten seconds, and what is compared changes with Prefect alone
def test_the_database_that_the_suite_starts_with_is_what_a_server_makes(tmp_path: Path) -> None:
    def made(database: Path) -> list[list[tuple[Any, ...]]]:
        with closing(sqlite3.connect(database)) as connection:
            tables = connection.execute("select name, sql from sqlite_master order by 1").fetchall()
            return [
                # Alembic writes the constraints of a table in any order.
                [(name, sorted(line.strip(" \t,") for line in (sql or "").splitlines())) for name, sql in tables],
                connection.execute("select version_num from alembic_version").fetchall(),
                connection.execute("select slug, name from block_type order by 1").fetchall(),
            ]

    server = start_prefect_server(home=tmp_path / "home", log_dir=tmp_path).ready()
    server.process.stop()
    assert made(kept_database()) == made(server.home / "prefect.db")


def test_a_taken_port_is_refused_before_anything_starts(server: PrefectServer, tmp_path: Path) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(ProcessError, match=f"The Prefect server cannot use port {port}"):
        start_prefect_server(home=tmp_path, log_dir=tmp_path, port=port)
