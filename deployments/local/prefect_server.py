"""The local stack's Prefect server: SQLite, loopback, tuned, and without contact to the outside."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments.local.processes import LOOPBACK, ManagedProcess, Server, free_port, http_get, require_free

SERVER_QUIET: Final = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
"""No telemetry from server or client, no prompts that nobody can answer, no advertisements in the UI."""

TUNED: Final = {
    # Measured with 1000 generations of 5 tasks: 33 instead of 107 ms of the server's CPU each. Stock, such a burst
    # dropped 7,679 messages, and the UI showed Running for ever.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
    # Events are three quarters of the database: some 70 KB a generation.
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "7d",
    # In memory, a lease is lost with the server: after a power cut, the collector would never get its turn again.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}

START_TIMEOUT_SECONDS: Final = 120.0
"""Measured on 2 cores: 3.3 s with a database, 14 to 20 s without, of which about 10 s create it (114 migrations)."""


@dataclass(frozen=True, kw_only=True)
class PrefectServer(Server):
    """A Prefect server. `api_url` ends in `/api`; `home` holds its database and its clients' settings."""

    api_url: str
    home: Path


def start_prefect_server(*, home: Path, log_dir: Path, port: int = 0) -> PrefectServer:
    """Starts a Prefect server on loopback, its data in `home`. It is not ready yet: see `Server.ready`.

    Args:
        home: becomes its PREFECT_HOME; `prefect.db` in it is created at the first start.
        log_dir: `prefect.log` goes there.
        port: 0 picks a free one.

    Raises:
        ProcessError: `port` was given and is taken.
    """
    port = require_free(port, "The Prefect server") if port else free_port()
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
    """What a process needs, besides its own environment, to be a client of this server and no other."""
    return {
        **SERVER_QUIET,
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILE": "ephemeral",  # comes with Prefect; a profile of the user's does not exist in this home
        "PREFECT_API_KEY": "",  # a key for Prefect Cloud is nothing for this server
        "PREFECT_API_AUTH_STRING": "",
        # Without an address a client would start a server of its own, 16 s and forgotten at its end.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    }


def _server_environment(inherited: Mapping[str, str], *, home: Path, port: int) -> dict[str, str]:
    # No PREFECT_* of the caller gets through: a database address among them would let this throw-away server migrate
    # and run somebody's real one.
    clean = {name: value for name, value in inherited.items() if not name.startswith("PREFECT_")}
    return clean | {
        **SERVER_QUIET,
        **TUNED,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_HOST": LOOPBACK,
        # The UI in the browser gets its API's address from these, not from the option --port.
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_ENABLED": "true",
        "PREFECT_SERVER_UI_API_URL": f"http://{LOOPBACK}:{port}/api",
        # 3.8 opens its new UI (/v2) by default, which strips the <video> players from artifacts. It stays at /v2.
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _answers(port: int, home: Path) -> bool:
    if http_get(port, "/api/health") != (200, b"true"):
        return False
    # Another Prefect server may have been faster on this port, while ours has yet to notice: starting takes seconds.
    settings = http_get(port, "/api/admin/settings", timeout_seconds=10.0)
    return settings is not None and settings[0] == 200 and json.loads(settings[1]).get("home") == str(home)
