"""Files for containers, Kubernetes and systemd refer only to existing commands, variables, block fields and pools."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import prefect.settings
import pytest
import yaml
from prefect.utilities.templating import find_placeholders
from typer.testing import CliRunner

from blocks import ApixoApi, VideoArchive
from deployments.cli.app import COMMANDS, app
from deployments.local.minio_build import MINIO_PACKAGE
from deployments.setup import deploy
from tests.support.fork_server import ForkServer

FOLDER: Final = deploy.ROOT / "deployments"
COMPOSE: Final = FOLDER / "docker/compose.yaml"
ENV: Final = FOLDER / "docker/example.env"
UNITS: Final = sorted((FOLDER / "systemd").glob("*.service"))
SERVICES: Final[dict[str, dict[str, Any]]] = yaml.safe_load(COMPOSE.read_text())["services"]
OWN_VARIABLES: Final = {
    *(f"APIXO_{name.upper()}" for name in ApixoApi.model_fields),
    *(f"MINIO_{name.upper()}" for name in VideoArchive.model_fields),
}
OTHER_PREFIXES: Final = ("POSTGRES_", "MINIO_ROOT_", "PREFECT_REDIS_MESSAGING_")


def commands() -> Iterator[tuple[str, list[str]]]:
    for name, service in SERVICES.items():
        if service.get("image") == "sora":
            yield name, service["command"]
    for unit in UNITS:
        found = re.search(r"^ExecStart=/srv/sora/\.venv/bin/(.+)$", unit.read_text(), re.MULTILINE)
        instances = re.findall(
            rf"{unit.stem}(\w+)", unit.read_text()
        )  # the instances of a template unit, from the comment at its top
        assert found, unit
        assert instances, unit
        for instance in instances:
            yield unit.name, found[1].replace("%i", instance).split()


@cache
def help_text(words: tuple[str, ...], forks: ForkServer) -> str:
    """The help text of a command. No new Python process is started, since that takes a second."""
    if words[0] == "sora":
        shown = CliRunner().invoke(app, [*words[1:], "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, shown.output
        return shown.output
    shown_by_prefect = forks.start([*words[1:], "--help"], os.environ, deploy.ROOT, module="prefect")
    output, error_output = shown_by_prefect.communicate(60)
    assert shown_by_prefect.returncode == 0, error_output
    return output


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=lambda item: item if isinstance(item, str) else "")
def test_every_command_and_its_options_exist(name: str, command: list[str], forks: ForkServer) -> None:
    if command[0] == "sora":
        assert command[1] in COMMANDS
        words = [command[0], command[1]]
    else:
        assert command[0] == "prefect"
        words = list(takewhile(lambda word: word[0] != "-", command))
    output = help_text(tuple(words), forks)
    for option in (word for word in command if word.startswith("--")):
        assert option in output, f"{name}: {option}"
    if "--pool" in command:
        assert command[command.index("--pool") + 1] == deploy.POOL


def test_every_variable_is_a_prefect_setting_or_a_block_field() -> None:
    for service in SERVICES.values():
        for name in service.get("environment", {}):
            is_prefect_setting = name.startswith("PREFECT_") and hasattr(prefect.settings, name)
            assert is_prefect_setting or name in OWN_VARIABLES or name.startswith(OTHER_PREFIXES), name


def test_example_env_has_every_variable_that_compose_uses() -> None:
    requested = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    assert {line.partition("=")[0] for line in ENV.read_text().splitlines() if line[0] != "#"} == requested


def test_ports_are_published_only_on_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed: apt-get install docker-compose")
    filled = tmp_path / ".env"
    filled.write_text(re.sub(r"=$", "=something-long", ENV.read_text(), flags=re.MULTILINE))
    command = [program, "-p", "sora", "--env-file", str(filled), "-f", str(COMPOSE), "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_image_has_the_tested_minio_and_all_source_files() -> None:
    text = (FOLDER / "docker/Dockerfile").read_text()
    assert f"go install {MINIO_PACKAGE}\n" in text
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE))
    files = {name for line in copied for name in line.split()}
    assert all((deploy.ROOT / name).exists() for name in files)
    assert {"apixo", "blocks", "flows", "deployments", "prefect.yaml", "requirements.txt", "pyproject.toml"} <= files


def test_job_template_uses_exactly_its_variables() -> None:
    template = json.loads((FOLDER / "kubernetes/base-job-template.json").read_text())
    used = {found.name for found in find_placeholders(template["job_configuration"])}
    assert used == template["variables"]["properties"].keys()


@pytest.mark.parametrize("name", ["prefect-server.yaml", "prefect-worker.yaml"])
def test_chart_values_contain_no_secret_and_use_the_pool(name: str) -> None:
    text = (FOLDER / "kubernetes" / name).read_text()
    assert not re.search(r"(authString|password):", text)
    values = yaml.safe_load(text)
    if "worker" in values:
        assert values["worker"]["config"]["workPool"] == deploy.POOL


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    output = [
        line for line in done.stderr.splitlines() if "is not executable" not in line
    ]  # it is not installed at the unit's path here
    assert output == []
