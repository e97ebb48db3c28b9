"""A command next to a running stack: it uses the stack's Prefect server, and keeps its own settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

from blocks import ApixoApi, VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.local.stack import LocalStack
from deployments.sandbox import SandboxServer
from flows.resources import load_block
from tests.deployments.cli.sora import Sora, setup_environment
from tests.deployments.local.test_stack import ignore_output, tiny
from tests.flows.conftest import StoredBlocks
from tests.support import unique

ABSENT = "127.0.0.1:9"
STACK = {"APIXO_BASE_URL": f"http://{ABSENT}", "APIXO_ALLOW_PRIVATE_HOSTS": "true", "MINIO_ENDPOINT": ABSENT}
"""What a stack publishes for the blocks. Nothing listens there."""

CONNECT = """
import json, os, pathlib, sys
from deployments.connection import connect
before = dict(os.environ)
stack = connect(pathlib.Path(sys.argv[1])).stack
print(json.dumps([bool(stack), {name: value for name, value in os.environ.items() if before.get(name) != value}]))
"""


def test_connect_sets_only_what_chooses_the_stacks_server(tmp_path: Path) -> None:
    prefect = {"PREFECT_API_URL": f"http://{ABSENT}/api", "PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "yes"}
    of_its_shell = {"NO_PROXY": "its.example", "no_proxy": "its.example"}
    own = {"MINIO_ENDPOINT": "mine", "HTTPS_PROXY": "http://proxy.example"}
    own |= dict.fromkeys(("NO_PROXY", "no_proxy"), "mine.example")
    service = tiny("a", tmp_path, environment=STACK | prefect | of_its_shell)
    with LocalStack(tmp_path / "local", services=[service], say=ignore_output):
        connected = subprocess.run(
            [sys.executable, "-c", CONNECT, str(tmp_path / "local")],
            env={**os.environ, **own, "PREFECT_API_URL": "", "PREFECT_CLI_PROMPT": "false"},
            capture_output=True,
            text=True,
            check=True,
        )
    bypass = "mine.example,127.0.0.1,localhost"
    assert json.loads(connected.stdout) == [True, prefect | {"NO_PROXY": bypass, "no_proxy": bypass}]


async def test_setup_next_to_a_running_stack_saves_the_store_and_api_that_the_user_names(
    sora: Sora, stored: StoredBlocks, sandbox: SandboxServer, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    name, own = unique("cli"), setup_environment(sandbox, stored.archive)
    local_dir = tmp_path / "local"
    service = tiny("a", tmp_path, environment=STACK | prefect_server.environment)
    with LocalStack(local_dir, services=[service], say=ignore_output):
        command = ["--local-dir", str(local_dir), "setup", "--no-deploy", "--name", name]
        saved = sora(*command, **own, PREFECT_API_URL="")
    assert saved.code == 0, saved.all
    assert (await load_block(VideoArchive, name)).endpoint == own["MINIO_ENDPOINT"]
    api = await load_block(ApixoApi, name)
    assert (str(api.base_url).rstrip("/"), api.allow_private_hosts) == (own["APIXO_BASE_URL"], False)
