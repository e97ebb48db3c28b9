"""The test suite's real Prefect server: its settings and its clients' environment. Its fixture checks how it ends."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deployments.local.prefect_server import PrefectServer, start_prefect_server
from deployments.local.processes import ProcessError, http_get
from tests.support.prefect_home import kept_database

CLIENT = """
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_KEY

client = get_client(sync_client=True)
client.hello().raise_for_status()
print(client.api_url, "with a key" if PREFECT_API_KEY.value() else "without a key")
"""


def get_json(server: PrefectServer, path: str) -> Any:
    answer = http_get(int(server.url.rsplit(":", 1)[1]), path, timeout_seconds=10)
    assert answer is not None
    assert answer[0] == 200
    return json.loads(answer[1])


def test_server_is_tuned_without_analytics_and_keeps_data_in_its_home(prefect_server: PrefectServer) -> None:
    settings = get_json(prefect_server, "/api/admin/settings")
    assert settings["home"] == str(prefect_server.home)
    assert (prefect_server.home / "prefect.db").exists()
    assert not (prefect_server.home.parent / "somebody-elses.db").exists()
    assert settings["server"]["analytics_enabled"] is False
    assert settings["server"]["services"]["task_run_recorder"]["batch_size"] == 200
    assert settings["server"]["services"]["task_run_recorder"]["flush_interval"] == 1
    assert settings["server"]["services"]["event_persister"]["batch_size"] == 500
    assert settings["server"]["events"]["retention_period"] in ("P7D", 604800.0, 604800)


def test_ui_calls_this_server_and_is_version_1(prefect_server: PrefectServer) -> None:
    ui = get_json(prefect_server, "/ui-settings")
    assert ui["api_url"] == prefect_server.api_url == f"{prefect_server.url}/api"
    assert ui["default_ui"] == "v1"


def test_client_environment_overrides_prefect_settings_of_the_shell(prefect_server: PrefectServer) -> None:
    shell = {
        **os.environ,
        "PREFECT_API_URL": "http://127.0.0.1:1/api",
        "PREFECT_PROFILE": "x",
        "PREFECT_API_KEY": "pnu_x",
    }
    result = subprocess.run(
        [sys.executable, "-c", CLIENT],
        env={**shell, **prefect_server.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (result.stdout, result.stderr) == (f"{prefect_server.api_url}/ without a key\n", "")


@pytest.mark.attack  # 114 migrations take ten seconds, and the result changes only with Prefect
def test_prebuilt_database_equals_one_that_a_server_creates(tmp_path: Path) -> None:
    def schema(database: Path) -> list[list[tuple[Any, ...]]]:
        with closing(sqlite3.connect(database)) as connection:
            tables = connection.execute("select name, sql from sqlite_master order by 1").fetchall()
            return [
                # Alembic writes a table's constraints in an arbitrary order.
                [(name, sorted(line.strip(" \t,") for line in (sql or "").splitlines())) for name, sql in tables],
                connection.execute("select version_num from alembic_version").fetchall(),
                connection.execute("select slug, name from block_type order by 1").fetchall(),
            ]

    server = start_prefect_server(home=tmp_path / "home", log_dir=tmp_path).ready()
    server.process.stop()
    assert schema(kept_database()) == schema(server.home / "prefect.db")


def test_port_in_use_is_named_in_the_error(prefect_server: PrefectServer, tmp_path: Path) -> None:
    port = int(prefect_server.url.rsplit(":", 1)[1])
    with pytest.raises(ProcessError, match=f"Port {port} is already in use"):
        start_prefect_server(home=tmp_path, log_dir=tmp_path, port=port).ready()
