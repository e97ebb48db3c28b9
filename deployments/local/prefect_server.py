"""The local stack's Prefect server: on loopback, with SQLite and tuned settings, and without telemetry."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments.local.processes import LOOPBACK, ManagedProcess, Server, free_port, http_get

SERVER_QUIET: Final = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
"""No telemetry from server or client, no prompts, no advertisements in the UI."""

TUNED: Final = {
    # Measured with 1000 generations of 5 tasks: 33 ms of the server's CPU each, instead of 107 with the defaults, which
    # also dropped 7,679 messages, so that the UI showed Running forever.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
    # Events take up three quarters of the database: some 70 KB per generation.
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "7d",
    # In memory, leases are lost with the server: after a power failure, the collector would never run again.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}

START_TIMEOUT_SECONDS: Final = 120.0
"""Measured on 2 cores: 3.3 s with an existing database; 14 to 20 s without, about 10 s of which are 114 migrations."""


@dataclass(frozen=True, kw_only=True)
class PrefectServer(Server):
    """A Prefect server. `api_url` ends in `/api`; `home` contains its database and its clients' settings."""

    api_url: str
    home: Path


def start_prefect_server(*, home: Path, log_dir: Path, port: int = 0) -> PrefectServer:
    """Starts a Prefect server on loopback, with its data in `home`. It is not ready yet: see `Server.ready`.

    Args:
        home: its PREFECT_HOME, in which `prefect.db` is created at the first start.
        log_dir: the folder for `prefect.log`.
        port: 0 picks a free one.
    """
    port = port or free_port()
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    process = ManagedProcess(
        [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)],
        name="The Prefect server",
        log_path=log_dir / "prefect.log",
        environment=_server_environment(os.environ, home=home, port=port),
        cwd=home,  # Prefect also reads .env, prefect.toml and pyproject.toml of its working folder
    )
    url = f"http://{LOOPBACK}:{port}"
    return PrefectServer(
        process=process,
        url=url,
        api_url=f"{url}/api",
        home=home,
        environment=_client_environment(f"{url}/api", home),
        answers=lambda: _answers(port, home),
        timeout_seconds=START_TIMEOUT_SECONDS,
    )


def _client_environment(api_url: str, home: Path) -> dict[str, str]:
    """The variables that make a process a client of this server and no other, in addition to its own environment."""
    return {
        **SERVER_QUIET,
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILE": "ephemeral",  # built into Prefect; the user's profiles do not exist in this home
        "PREFECT_API_KEY": "",  # this server must not get a key for Prefect Cloud
        "PREFECT_API_AUTH_STRING": "",
        # Without an API URL, a client would start a temporary server of its own, which takes 16 s.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    }


def _server_environment(inherited: Mapping[str, str], *, home: Path, port: int) -> dict[str, str]:
    # None of the caller's PREFECT_* variables are passed on: with a database URL among them, this temporary server
    # would migrate and use a real database.
    clean = {name: value for name, value in inherited.items() if not name.startswith("PREFECT_")}
    return clean | {
        **SERVER_QUIET,
        **TUNED,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_HOST": LOOPBACK,
        # The UI in the browser gets the API's URL from these, not from the option --port.
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_ENABLED": "true",
        "PREFECT_SERVER_UI_API_URL": f"http://{LOOPBACK}:{port}/api",
        # 3.8 opens its new UI by default, which removes <video> players from artifacts. It is still available at /v2.
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _answers(port: int, home: Path) -> bool:
    if http_get(port, "/api/health") != (200, b"true"):
        return False
    # Another Prefect server may have taken this port before this one, which notices it only seconds later.
    settings = http_get(port, "/api/admin/settings", timeout_seconds=10.0)
    return settings is not None and settings[0] == 200 and json.loads(settings[1]).get("home") == str(home)
